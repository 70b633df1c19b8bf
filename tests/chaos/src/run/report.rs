//! The result of a run.

use std::{collections::BTreeMap, fs::File, io::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use serde::Serialize;
use tenure_containers::LeaseExpiryMonitor;
use tenure_testkit::history::{Verdict, check};

use super::plan::{Disruption, PlannedFault, Target};
use crate::{
    history::History,
    options::{ReplicationKind, RunOptions},
    postgres::{AuditCounts, SupervisedPostgres},
};

/// The counts of a run, and every violation. The field names are those of the JSON output.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    store: String,
    seed: u64,
    faults: u64,
    elections: u64,
    overlaps: u64,
    /// Overlaps and work outside its window around which an etcd member that did not lead revoked leases.
    explained_by_revocations: u64,
    stale_writes_accepted: u64,
    stale_tokens: u64,
    work_outside_window: u64,
    stuck: u64,
    leaks: u64,
    /// When it is negative: the shortest time between the end of a term and the beginning of the next.
    max_overlap_ms: Option<f64>,
    writes_refused: u64,
    elected_too_late: u64,
    slowest_leader_ms: u64,
    /// Kubernetes only: campaigns that a server refused before it had read the roles.
    refused_campaigns: u64,
    /// Servers that had to be restarted after all faults were healed.
    servers_restarted: u64,
    /// ZooKeeper servers whose data differed from their leader's.
    servers_differed: u64,
    /// PostgreSQL only.
    #[serde(flatten)]
    failovers: Option<FailoverReport>,
    seconds: f64,
    #[serde(skip)]
    faults_by_disruption: BTreeMap<Disruption, BTreeMap<Target, u64>>,
    #[serde(skip)]
    violations: Vec<String>,
}

/// What failovers have cost.
#[derive(Debug, Serialize)]
struct FailoverReport {
    replication: ReplicationKind,
    failovers: u64,
    acknowledged_commits: u64,
    /// Acknowledged commits that no primary has any more. None may be lost when replication is synchronous.
    lost_commits: u64,
}

impl Report {
    pub(crate) fn new(options: &RunOptions) -> Self {
        let store = options.store.to_possible_value().map(|value| value.get_name().to_owned());
        Self {
            store: store.unwrap_or_default(),
            seed: options.seed,
            faults: 0,
            elections: 0,
            overlaps: 0,
            explained_by_revocations: 0,
            stale_writes_accepted: 0,
            stale_tokens: 0,
            work_outside_window: 0,
            stuck: 0,
            leaks: 0,
            max_overlap_ms: None,
            writes_refused: 0,
            elected_too_late: 0,
            slowest_leader_ms: 0,
            refused_campaigns: 0,
            servers_restarted: 0,
            servers_differed: 0,
            failovers: None,
            seconds: 0.0,
            faults_by_disruption: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    pub(crate) fn count_fault(&mut self, planned: &PlannedFault) {
        self.faults += 1;
        *self
            .faults_by_disruption
            .entry(planned.disruption)
            .or_default()
            .entry(planned.target)
            .or_default() += 1;
    }

    /// L1: how long after all faults were healed an election had a leader.
    pub(crate) fn add_leader_delay(&mut self, took: Duration) {
        self.slowest_leader_ms = self.slowest_leader_ms.max(took.as_millis().try_into().unwrap_or(u64::MAX));
    }

    /// L1, L2: an election has no leader, or a candidate does not get its turn.
    pub(crate) fn add_stuck(&mut self, what: String) {
        self.stuck += 1;
        self.add_violation(format!("L2: {what}"));
    }

    /// L2: `count` entries, leases or sessions are left that should be gone.
    pub(crate) fn add_leak(&mut self, what: String, count: usize) {
        self.leaks += count as u64;
        self.add_violation(format!("L2: {what}"));
    }

    /// A server had to be restarted.
    pub(crate) fn add_restarted_server(&mut self, what: &str) {
        println!("after {} faults: {what}", self.faults);
        self.servers_restarted += 1;
    }

    /// A server's data differed from its leader's.
    pub(crate) fn add_divergent_server(&mut self, what: &str) {
        println!("after {} faults: {what}", self.faults);
        self.servers_differed += 1;
    }

    /// The run was aborted.
    pub(crate) fn add_abort(&mut self, error: &anyhow::Error) {
        self.add_violation(format!("the run was aborted: {error:#}"));
    }

    fn add_violation(&mut self, what: String) {
        println!("VIOLATION after {} faults: {what}", self.faults);
        self.violations.push(what);
    }

    /// Counts failovers, and commits that were lost in them.
    pub(crate) async fn check_failovers(
        &mut self,
        supervised: &SupervisedPostgres,
        replication: ReplicationKind,
    ) {
        match supervised.audit().await {
            Ok(AuditCounts { acknowledged, lost }) => {
                self.failovers = Some(FailoverReport {
                    replication,
                    failovers: supervised.failovers(),
                    acknowledged_commits: acknowledged,
                    lost_commits: lost,
                });
                if lost > 0 && replication == ReplicationKind::Synchronous {
                    self.add_violation(format!("PostgreSQL has lost {lost} acknowledged commits"));
                }
            }
            Err(error) => self.add_violation(format!("the audit was not read: {error:#}")),
        }
    }

    /// Checks that the labels of Leases were changed meanwhile.
    pub(crate) fn check_labels(&mut self, patched: u64) {
        if patched == 0 {
            self.add_violation("no label of a Lease was patched".to_owned());
        }
    }

    /// Checks the history. Violations that etcd caused by early revocations of leases are printed and counted separately.
    pub(crate) fn check_history(
        &mut self,
        history: &History,
        lease_expiries: Option<&LeaseExpiryMonitor>,
        took: Duration,
    ) {
        let Verdict {
            elections,
            overlaps,
            max_overlap,
            stale_tokens,
            stale_writes_accepted,
            writes_refused,
            work_outside_window,
            details,
            ..
        } = check(&history.events());
        (self.elections, self.overlaps, self.stale_tokens) = (elections, overlaps, stale_tokens);
        self.max_overlap_ms = max_overlap.map(|nanos| (nanos as f64 / 1e3).round() / 1e3);
        (self.stale_writes_accepted, self.writes_refused) = (stale_writes_accepted, writes_refused);
        self.work_outside_window = work_outside_window;
        self.elected_too_late = history.elected_too_late();
        self.seconds = took.as_secs_f64();
        for detail in details {
            let explained =
                || lease_expiries.is_some_and(|monitor| monitor.non_leader_revoked_around(detail.at));
            if detail.promise != "S2" && explained() {
                println!(
                    "{detail}: explained by an etcd member that did not lead and revoked leases just before"
                );
                self.explained_by_revocations += 1;
            } else {
                self.add_violation(detail.to_string());
            }
        }
        for failure in history.failures() {
            // An API server that starts refuses everybody until it has read the roles. A candidate that has just started, too, cannot tell
            // that from a role that is missing.
            match self.store == "kubernetes" && failure.contains(": 403: ") {
                true => self.refused_campaigns += 1,
                false => self.add_violation(failure),
            }
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.elections > 0
    }

    /// Writes the history to a file, unless there were no violations and no early revocations.
    pub(crate) fn save_history(&self, history: &History, options: &RunOptions) -> Result<()> {
        if self.is_clean() && self.explained_by_revocations == 0 {
            return Ok(());
        }
        let path = options.histories.join(format!("{}-{}.jsonl", self.store, self.seed));
        std::fs::create_dir_all(&options.histories)?;
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let lines: Vec<_> = history.events().iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        file.write_all((lines.join("\n") + "\n").as_bytes())?;
        println!("the history was written to {}", path.display());
        Ok(())
    }

    pub(crate) fn print(&self, options: &RunOptions) {
        for (disruption, targets) in &self.faults_by_disruption {
            let targets: Vec<_> =
                targets.iter().map(|(target, count)| format!("{target:?} {count}")).collect();
            println!("{:<18} {}", format!("{disruption:?}"), targets.join(", "));
        }
        println!(
            "{}: {} faults, {} elections in {:.0} s; {} overlaps (longest {} ms), {} stale writes accepted, {} refused, \
             {} actions outside the window of their term, {} stuck, {} leaks",
            self.store,
            self.faults,
            self.elections,
            self.seconds,
            self.overlaps,
            self.max_overlap_ms.map_or_else(|| "-".to_owned(), |overlap| overlap.to_string()),
            self.stale_writes_accepted,
            self.writes_refused,
            self.work_outside_window,
            self.stuck,
            self.leaks
        );
        if let Some(counts) = &self.failovers {
            println!(
                "{} failovers with {:?} replication; {} of {} acknowledged commits lost; {} tokens repeated or out of order",
                counts.failovers,
                counts.replication,
                counts.lost_commits,
                counts.acknowledged_commits,
                self.stale_tokens
            );
        }
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
