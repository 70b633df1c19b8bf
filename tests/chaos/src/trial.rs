//! Known killers, one at a time, over and over, whole and with the rule broken that each is about.

mod dropped_path;
mod duel;
mod frozen_member;
mod silent_member;
mod stopped_process;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::ValueEnum as _;
use serde::Serialize;
use tenure_core::failpoints::SafetyRule;
use tenure_testkit::history::check;

use crate::{
    mutant,
    options::{StoreKind, TrialKind, TrialOptions},
    rig::record::Record,
};

/// What came of a trial.
#[derive(Debug, Default, Serialize)]
struct Report {
    store: String,
    trial: String,
    /// The rule that was broken, when one was.
    mutant: Option<String>,
    trials: usize,
    overlaps: u64,
    max_overlap_ms: Option<f64>,
    /// Leaderships that should have been kept, and were not.
    lost: usize,
    /// The time without a leader: from the last check that said yes to the next leader.
    gap_p50_ms: Option<f64>,
    gap_max_ms: Option<f64>,
    seconds: f64,
}

/// What the rounds of a trial leave behind.
#[derive(Debug, Default)]
struct Outcome {
    trials: usize,
    lost: usize,
    /// In nanoseconds.
    gaps: Vec<u64>,
    record: Record,
}

/// Runs one trial, and judges: whole, nothing may happen; with its rule broken, something has to.
pub(crate) fn run(options: &TrialOptions) -> Result<ExitCode> {
    let rule = options.mutant.then(|| rule_of(options.trial));
    if let Some(rule) = rule {
        mutant::choose(rule)?;
    }
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(attempt(options))?;
    let report = judge(options, rule, outcome, began);
    let shows = report.overlaps > 0 || report.lost > 0;
    report.print(options, shows);
    Ok(if shows == options.mutant { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rule without which this trial ends badly.
fn rule_of(trial: TrialKind) -> SafetyRule {
    match trial {
        TrialKind::StalledDisk => SafetyRule::ConfirmHeartbeats,
        TrialKind::CutOffFollower => SafetyRule::HeartbeatByWrite,
        TrialKind::DroppedPath | TrialKind::StoppedProcess => SafetyRule::CheckClock,
        TrialKind::FrozenMember => SafetyRule::FailOver,
    }
}

async fn attempt(options: &TrialOptions) -> Result<Outcome> {
    match (options.trial, options.store) {
        (TrialKind::StalledDisk, StoreKind::Etcd) | (TrialKind::CutOffFollower, StoreKind::Zookeeper) => {
            silent_member::run(options).await
        }
        (TrialKind::StalledDisk, _) => {
            bail!("stalled-disk is about etcd: ZooKeeper's leader needs no disk to lead on")
        }
        (TrialKind::CutOffFollower, _) => {
            bail!("cut-off-follower is about ZooKeeper: etcd's followers keep no session")
        }
        (TrialKind::DroppedPath, _) => dropped_path::run(options).await,
        (TrialKind::StoppedProcess, _) => stopped_process::run(options).await,
        (TrialKind::FrozenMember, _) => frozen_member::run(options).await,
    }
}

/// So much is told in words.
const MOST_DETAILS: usize = 20;

fn judge(options: &TrialOptions, rule: Option<SafetyRule>, mut outcome: Outcome, began: Instant) -> Report {
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let verdict = check(&outcome.record.events());
    for detail in verdict.details.iter().take(MOST_DETAILS) {
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
        lost: outcome.lost,
        gap_p50_ms: outcome.gaps.get(outcome.gaps.len() / 2).copied().map(millis),
        gap_max_ms: outcome.gaps.last().copied().map(millis),
        seconds: began.elapsed().as_secs_f64(),
    }
}

impl Report {
    fn print(&self, options: &TrialOptions, shows: bool) {
        let whole = match &self.mutant {
            None => "whole".to_owned(),
            Some(rule) => format!("{rule} broken"),
        };
        let said = match (shows, options.mutant) {
            (false, false) => "kept",
            (true, false) => "BROKEN",
            (true, true) => "noticed",
            (false, true) => "NOT NOTICED",
        };
        let millis =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
        println!(
            "{said:<12} {} {} ({whole}): {} trials, {} overlaps (longest {}), {} lost, nobody led for {} (median), {:.0} s",
            self.store,
            self.trial,
            self.trials,
            self.overlaps,
            millis(self.max_overlap_ms),
            self.lost,
            millis(self.gap_p50_ms),
            self.seconds
        );
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
