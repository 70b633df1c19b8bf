//! `cargo xtask chaos` and `cargo xtask trials`: real clusters under real faults.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    failpoint_build, images, servers,
    shell::{run, run_all_for_json, say},
};

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// etcd, zookeeper, postgres, kubernetes, consul or nats; all of them, two at a time, unless one is named
    #[arg(long)]
    store: Option<String>,
    /// synchronous or asynchronous, for PostgreSQL
    #[arg(long, requires = "store")]
    replication: Option<String>,
    /// How many faults
    #[arg(long, default_value_t = 60)]
    faults: u64,
    /// Chooses the faults and their times
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints each fault when it begins
    #[arg(long)]
    verbose: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// Injects faults into a real cluster and its candidates, and checks the history.
///
/// # Errors
/// When two candidates led at once, or another promise was broken.
pub(crate) fn chaos(options: &Options) -> Result<()> {
    let program = prepare()?;
    let run_on = |store: &str, replication: Option<&str>| {
        let mut chaos = Command::new(&program);
        chaos.args(["run", "--store", store]);
        chaos.args([format!("--faults={}", options.faults), format!("--seed={}", options.seed)]);
        chaos.args(replication.into_iter().flat_map(|replication| ["--replication", replication]));
        chaos.args(options.verbose.then_some("--verbose"));
        chaos
    };
    let outcome = match &options.store {
        Some(store) => {
            let mut chaos = run_on(store, options.replication.as_deref());
            run(chaos.args(options.json.then_some("--json")))
        }
        None => run_on_all(run_on, options.json),
    };
    servers::remove_leftovers();
    outcome
}

/// A run mostly waits: several at a time take less time.
fn run_on_all(run_on: impl Fn(&str, Option<&str>) -> Command, json: bool) -> Result<()> {
    let others = [("postgres", Some("asynchronous")), ("consul", None), ("nats", None)];
    let stores = ALL.iter().map(|store| (*store, None)).chain(others);
    let runs = stores.map(|(store, replication)| {
        let mut run = run_on(store, replication);
        run.arg("--json");
        run
    });
    let outcomes = run_all_for_json(runs.collect(), 2)?;
    let failed = outcomes.iter().filter(|(_, passed)| !passed).count();
    if json {
        let reports: Vec<_> = outcomes.into_iter().filter_map(|(report, _)| report).collect();
        println!("{}", json!({ "runs": reports, "failed": failed }));
    }
    ensure!(failed == 0, "{failed} runs failed");
    Ok(())
}

/// Which trials to run.
#[derive(Args)]
pub(crate) struct TrialOptions {
    /// etcd, zookeeper, postgres or kubernetes; all in turn unless one is named
    #[arg(long)]
    store: Option<String>,
    /// The full number of trials, as the figures in the docs come from
    #[arg(long)]
    full: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// A failure scenario, the stores that it concerns, and how often it is repeated in a short and in a full run.
struct Scenario {
    name: &'static str,
    stores: &'static [&'static str],
    short: usize,
    full: usize,
    /// Whether it depends on a rule that can be disabled.
    has_rule: bool,
}

/// The stores of trials.
const ALL: &[&str] = &["etcd", "zookeeper", "postgres", "kubernetes"];
const QUORUM: &[&str] = &["etcd", "zookeeper"];

const SCENARIOS: [Scenario; 7] = [
    Scenario { name: "stalled-disk", stores: &["etcd"], short: 5, full: 50, has_rule: true },
    Scenario { name: "cut-off-follower", stores: &["zookeeper"], short: 5, full: 50, has_rule: true },
    Scenario { name: "dropped-path", stores: ALL, short: 25, full: 500, has_rule: true },
    Scenario { name: "stopped-process", stores: ALL, short: 10, full: 100, has_rule: true },
    Scenario { name: "frozen-member", stores: QUORUM, short: 24, full: 240, has_rule: true },
    Scenario { name: "lost-entry", stores: &["postgres"], short: 10, full: 100, has_rule: true },
    Scenario { name: "split-brain", stores: &["postgres"], short: 3, full: 20, has_rule: false },
];

/// Runs every scenario twice, two runs at a time unless all are full: with all safety rules, and with the rule disabled that it depends on, if there is one.
///
/// # Errors
/// When a promise was broken, or a disabled rule was not noticed.
pub(crate) fn trials(options: &TrialOptions) -> Result<()> {
    if let Some(store) = &options.store {
        ensure!(
            ALL.contains(&store.as_str()),
            "there is no store {store:?}: it is one of {}",
            ALL.join(", ")
        );
    }
    let program = prepare()?;
    let (mut trials, mut names) = (Vec::new(), Vec::new());
    for scenario in &SCENARIOS {
        let stores = scenario
            .stores
            .iter()
            .filter(|&&store| options.store.as_deref().is_none_or(|only| only == store));
        let runs = stores.flat_map(|store| [(store, false), (store, true)]);
        for (store, mutant) in runs.filter(|(_, mutant)| scenario.has_rule || !mutant) {
            let count = if options.full && !mutant { scenario.full } else { scenario.short };
            let mut trial = Command::new(&program);
            trial.args(["trial", "--json", "--store", store, "--trial", scenario.name]);
            trial.arg(format!("--trials={count}")).args(mutant.then_some("--mutant"));
            trials.push(trial);
            let rule = if mutant { ", with its rule disabled" } else { "" };
            names.push(format!("{} on {store}{rule}", scenario.name));
        }
    }
    // The figures of the full runs are measured.
    let outcomes = run_all_for_json(trials, if options.full { 1 } else { 2 })?;
    let failed: Vec<_> =
        outcomes.iter().zip(names).filter(|((_, passed), _)| !passed).map(|(_, name)| name).collect();
    let all: Vec<_> = outcomes.into_iter().filter_map(|(report, _)| report).collect();
    servers::remove_leftovers();
    if options.json {
        println!("{}", json!({ "trials": all, "failed": failed }));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    say("no scenario broke a promise, and every disabled rule was noticed");
    Ok(())
}

/// Makes sure of Docker and the images, and builds the program with its failpoints; a trial enables them.
fn prepare() -> Result<PathBuf> {
    images::ensure_with_tools()?;
    servers::remove_leftovers();
    failpoint_build::build_beside_tests("tenure-chaos")
}
