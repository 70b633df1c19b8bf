//! Trials: one known fault, repeated many times, with all safety rules in force or with the one disabled that protects from
//! the fault.

mod context;
mod dropped_path;
mod frozen_member;
mod lost_entry;
mod member_without_quorum;
mod split_brain;
mod stopped_process;
mod two_candidates;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::ValueEnum as _;
use serde::Serialize;
use tenure_cas::rules::CasRule;
use tenure_core::failpoints::SafetyRule;
use tenure_testkit::history::check;

use crate::{
    history::History,
    options::{StoreKind, TrialKind, TrialOptions},
    safety_rule::{self, Rule},
};

/// The result of a trial. The field names are those of the JSON output.
#[derive(Debug, Default, Serialize)]
struct Report {
    store: String,
    trial: String,
    /// The safety rule that was disabled, if any.
    mutant: Option<String>,
    trials: usize,
    /// Violations of any promise.
    overlaps: u64,
    max_overlap_ms: Option<f64>,
    /// Of these, terms whose token is not higher than that of an earlier term.
    stale_tokens: u64,
    /// Writes of an earlier leader that the register accepted after one of a later leader, and that it refused.
    stale_writes_accepted: u64,
    writes_refused: u64,
    /// Leaderships that were lost although they should have been kept.
    lost: usize,
    /// The time without a leader: from the last valid check of the former leader to the next leader.
    gap_p50_ms: Option<f64>,
    gap_max_ms: Option<f64>,
    seconds: f64,
}

/// What the rounds of a trial return.
#[derive(Debug, Default)]
struct Outcome {
    trials: usize,
    lost: usize,
    /// In nanoseconds.
    gaps: Vec<u64>,
    history: History,
}

/// Runs one trial. It passes if there is no violation, or, with the safety rule disabled, if there is one.
pub(crate) fn run(options: &TrialOptions) -> Result<ExitCode> {
    let rule = if options.mutant { Some(rule_of(options.trial)?) } else { None };
    if let Some(rule) = rule {
        safety_rule::disable(rule)?;
    }
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run_trial(options))?;
    let report = evaluate(options, rule, outcome, began);
    let violated = match options.trial {
        // Two leaders are what this measures; the register has to tell them apart.
        TrialKind::SplitBrain => {
            report.stale_writes_accepted > 0 || report.writes_refused == 0 || report.overlaps == 0
        }
        _ => report.overlaps > 0 || report.lost > 0 || report.stale_writes_accepted > 0,
    };
    report.print(options, violated);
    Ok(if violated == options.mutant { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The safety rule that protects from the fault of this trial.
fn rule_of(trial: TrialKind) -> Result<Rule> {
    Ok(match trial {
        TrialKind::StalledDisk => Rule::Safety(SafetyRule::ConfirmHeartbeats),
        TrialKind::CutOffFollower => Rule::Safety(SafetyRule::HeartbeatByWrite),
        TrialKind::DroppedPath => Rule::Safety(SafetyRule::CheckClock),
        TrialKind::StoppedProcess => safety_rule::OF_STOPPED_PROCESS,
        TrialKind::FrozenMember => Rule::Safety(SafetyRule::FailOver),
        TrialKind::LostEntry => Rule::Cas(CasRule::SettleEpoch),
        TrialKind::SplitBrain => bail!("no rule protects from split brain"),
    })
}

async fn run_trial(options: &TrialOptions) -> Result<Outcome> {
    match (options.trial, options.store) {
        (TrialKind::StalledDisk, StoreKind::Etcd) | (TrialKind::CutOffFollower, StoreKind::Zookeeper) => {
            member_without_quorum::run(options).await
        }
        (TrialKind::StalledDisk, _) => {
            bail!(
                "trial stalled-disk needs --store etcd: ZooKeeper's leader keeps leading without its disk, PostgreSQL keeps no sessions"
            )
        }
        (TrialKind::CutOffFollower, _) => {
            bail!("trial cut-off-follower needs --store zookeeper: an etcd follower keeps no sessions")
        }
        (TrialKind::LostEntry, StoreKind::Postgres) => lost_entry::run(options).await,
        (TrialKind::SplitBrain, StoreKind::Postgres) => split_brain::run(options).await,
        (TrialKind::LostEntry | TrialKind::SplitBrain, _) => {
            bail!("this trial needs --store postgres: the other stores elect their leaders themselves")
        }
        (TrialKind::DroppedPath, _) => dropped_path::run(options).await,
        (TrialKind::StoppedProcess, _) => stopped_process::run(options).await,
        (TrialKind::FrozenMember, _) => frozen_member::run(options).await,
    }
}

/// How many violations are printed.
const MAX_PRINTED_VIOLATIONS: usize = 20;

fn evaluate(options: &TrialOptions, rule: Option<Rule>, mut outcome: Outcome, began: Instant) -> Report {
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let verdict = check(&outcome.history.events());
    for detail in verdict.details.iter().take(MAX_PRINTED_VIOLATIONS) {
        println!("{detail}");
    }
    outcome.gaps.sort_unstable();
    let millis = |nanos: u64| nanos as f64 / 1e6;
    Report {
        store: name(options.store.to_possible_value()),
        trial: name(options.trial.to_possible_value()),
        mutant: rule.map(|rule| format!("{rule:?}")),
        trials: outcome.trials,
        overlaps: verdict.overlaps + verdict.stale_tokens + verdict.work_outside_window,
        max_overlap_ms: verdict.max_overlap.map(|nanos| nanos as f64 / 1e6),
        stale_tokens: verdict.stale_tokens,
        stale_writes_accepted: verdict.stale_writes_accepted,
        writes_refused: verdict.writes_refused,
        lost: outcome.lost,
        gap_p50_ms: outcome.gaps.get(outcome.gaps.len() / 2).copied().map(millis),
        gap_max_ms: outcome.gaps.last().copied().map(millis),
        seconds: began.elapsed().as_secs_f64(),
    }
}

impl Report {
    fn print(&self, options: &TrialOptions, violated: bool) {
        let rules = match &self.mutant {
            None => "all rules in force".to_owned(),
            Some(rule) => format!("{rule} disabled"),
        };
        let result = match (violated, options.mutant) {
            (false, false) => "passed",
            (true, false) => "VIOLATED",
            (true, true) => "detected",
            (false, true) => "NOT DETECTED",
        };
        let millis =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
        println!(
            "{result:<12} {} {} ({rules}): {} trials, {} overlaps (longest {}), {} stale writes accepted, {} refused, {} lost, \
             no leader for {} (median), {:.0} s",
            self.store,
            self.trial,
            self.trials,
            self.overlaps,
            millis(self.max_overlap_ms),
            self.stale_writes_accepted,
            self.writes_refused,
            self.lost,
            millis(self.gap_p50_ms),
            self.seconds
        );
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
