//! What came of a run.

use std::{collections::BTreeMap, fs::File, io::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use serde::Serialize;
use tenure_containers::ExpiryWatch;
use tenure_testkit::history::{Verdict, check};

use super::{
    plan::{Kind, Planned, Target},
    record::Record,
};
use crate::options::Options;

/// The figures of a run, and all that was wrong.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    store: String,
    seed: u64,
    faults: u64,
    elections: u64,
    overlaps: u64,
    /// Those of them, and of work outside its window, around which an etcd server that did not lead revoked leases.
    explained_by_revocations: u64,
    stale_writes_accepted: u64,
    stale_tokens: u64,
    work_outside_window: u64,
    stuck: u64,
    leaks: u64,
    /// Negative: the shortest time between the end of one term and the beginning of the next.
    max_overlap_ms: Option<f64>,
    writes_refused: u64,
    elected_too_late: u64,
    slowest_leader_ms: u64,
    /// Servers that did not serve again by themselves after all was mended.
    servers_restarted: u64,
    /// ZooKeeper servers that showed what their leader did not, or the other way round.
    servers_differed: u64,
    seconds: f64,
    #[serde(skip)]
    by_kind: BTreeMap<Kind, BTreeMap<Target, u64>>,
    #[serde(skip)]
    wrong: Vec<String>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
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
            servers_restarted: 0,
            servers_differed: 0,
            seconds: 0.0,
            by_kind: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    pub(crate) fn count(&mut self, planned: &Planned) {
        self.faults += 1;
        *self.by_kind.entry(planned.kind).or_default().entry(planned.target).or_default() += 1;
    }

    /// L1: so long after all was mended somebody led.
    pub(crate) fn led_after(&mut self, took: Duration) {
        self.slowest_leader_ms = self.slowest_leader_ms.max(took.as_millis().try_into().unwrap_or(u64::MAX));
    }

    /// L1, L2: somebody waits in vain.
    pub(crate) fn stuck(&mut self, what: String) {
        self.stuck += 1;
        self.wrong(format!("L2: {what}"));
    }

    /// L2: `count` things are left that nobody needs.
    pub(crate) fn leaked(&mut self, what: String, count: usize) {
        self.leaks += count as u64;
        self.wrong(format!("L2: {what}"));
    }

    /// A server had to be started again.
    pub(crate) fn restarted(&mut self, what: &str) {
        println!("after {} faults: {what}", self.faults);
        self.servers_restarted += 1;
    }

    /// A server had to have its data anew.
    pub(crate) fn differed(&mut self, what: &str) {
        println!("after {} faults: {what}", self.faults);
        self.servers_differed += 1;
    }

    /// The run could not go on.
    pub(crate) fn broke_off(&mut self, error: &anyhow::Error) {
        self.wrong(format!("the run broke off: {error:#}"));
    }

    fn wrong(&mut self, what: String) {
        println!("WRONG  after {} faults: {what}", self.faults);
        self.wrong.push(what);
    }

    /// Checks the history. What the store's own expiries explain is told and counted, and is no fault of the
    /// candidates'.
    pub(crate) fn judge(&mut self, record: &Record, expiries: Option<&ExpiryWatch>, took: Duration) {
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
        } = check(&record.events());
        (self.elections, self.overlaps, self.stale_tokens) = (elections, overlaps, stale_tokens);
        self.max_overlap_ms = max_overlap.map(|nanos| (nanos as f64 / 1e3).round() / 1e3);
        (self.stale_writes_accepted, self.writes_refused) = (stale_writes_accepted, writes_refused);
        self.work_outside_window = work_outside_window;
        self.elected_too_late = record.missed();
        self.seconds = took.as_secs_f64();
        for detail in details {
            let explained = || expiries.is_some_and(|expiries| expiries.explains(detail.at));
            if detail.promise != "S2" && explained() {
                println!("{detail}: just before, an etcd server that did not lead had revoked leases");
                self.explained_by_revocations += 1;
            } else {
                self.wrong(detail.to_string());
            }
        }
        for refusal in record.refused() {
            self.wrong(refusal);
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.elections > 0
    }

    /// Writes the history of a run in which something was wrong.
    pub(crate) fn keep_history(&self, record: &Record, options: &Options) -> Result<()> {
        if self.is_clean() && self.explained_by_revocations == 0 {
            return Ok(());
        }
        let path = options.histories.join(format!("{}-{}.jsonl", self.store, self.seed));
        std::fs::create_dir_all(&options.histories)?;
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let lines: Vec<_> = record.events().iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        file.write_all((lines.join("\n") + "\n").as_bytes())?;
        println!("the history is in {}", path.display());
        Ok(())
    }

    pub(crate) fn print(&self, options: &Options) {
        for (kind, targets) in &self.by_kind {
            let targets: Vec<_> =
                targets.iter().map(|(target, count)| format!("{target:?} {count}")).collect();
            println!("{:<16} {}", format!("{kind:?}"), targets.join(", "));
        }
        println!(
            "{}: {} faults, {} elections in {:.0} s; {} overlaps (longest {} ms), {} stale writes accepted, {} refused, \
             {} works outside their window, {} stuck, {} leaks",
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
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
