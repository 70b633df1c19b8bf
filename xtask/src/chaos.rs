//! `cargo xtask chaos` and `cargo xtask trials`: real clusters under real faults.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    breakable, images, servers,
    shell::{run, run_for_json, say},
};

/// What to run; the rest is passed on to `tenure-chaos`.
#[derive(Args)]
pub(crate) struct Options {
    /// etcd or zookeeper
    #[arg(long)]
    store: String,
    /// How many faults
    #[arg(long, default_value_t = 60)]
    faults: u64,
    /// What is broken, and when, is drawn from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Says each fault as it begins
    #[arg(long)]
    verbose: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// Breaks a real cluster and its candidates, and checks the history.
///
/// # Errors
/// When a promise was broken.
pub(crate) fn chaos(options: &Options) -> Result<()> {
    let mut chaos = Command::new(prepare()?);
    chaos.args(["run", "--store", &options.store]);
    chaos.args([format!("--faults={}", options.faults), format!("--seed={}", options.seed)]);
    chaos.args(options.verbose.then_some("--verbose")).args(options.json.then_some("--json"));
    let outcome = run(&mut chaos);
    servers::remove_leftovers();
    outcome
}

/// Which trials to run.
#[derive(Args)]
pub(crate) struct TrialOptions {
    /// etcd or zookeeper; both in turn unless one is named
    #[arg(long)]
    store: Option<String>,
    /// The full number of trials, as the figures in the docs come from
    #[arg(long)]
    full: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// A known killer: of which store, and how often it is tried, in short and in full.
struct Killer {
    name: &'static str,
    stores: &'static [&'static str],
    short: usize,
    full: usize,
}

const BOTH: &[&str] = &["etcd", "zookeeper"];

const KILLERS: [Killer; 5] = [
    Killer { name: "stalled-disk", stores: &["etcd"], short: 5, full: 50 },
    Killer { name: "cut-off-follower", stores: &["zookeeper"], short: 5, full: 50 },
    Killer { name: "dropped-path", stores: BOTH, short: 25, full: 500 },
    Killer { name: "stopped-process", stores: BOTH, short: 10, full: 100 },
    Killer { name: "frozen-member", stores: BOTH, short: 24, full: 240 },
];

/// Runs every known killer, whole and with the rule broken that it is about.
///
/// # Errors
/// When a promise was broken, or a broken rule was not noticed.
pub(crate) fn trials(options: &TrialOptions) -> Result<()> {
    if let Some(store) = &options.store {
        ensure!(BOTH.contains(&store.as_str()), "there is no store {store:?}: it is etcd or zookeeper");
    }
    let program = prepare()?;
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for killer in &KILLERS {
        let stores =
            killer.stores.iter().filter(|&&store| options.store.as_deref().is_none_or(|only| only == store));
        for (store, mutant) in stores.flat_map(|store| [(store, false), (store, true)]) {
            let trials = if options.full && !mutant { killer.full } else { killer.short };
            let mut trial = Command::new(&program);
            trial.args([
                "trial",
                "--json",
                "--store",
                store,
                "--trial",
                killer.name,
                "--trials",
                &trials.to_string(),
            ]);
            trial.args(mutant.then_some("--mutant"));
            let (found, kept) = run_for_json(&mut trial)?;
            all.extend(found);
            if !kept {
                failed.push(format!(
                    "{} on {store}{}",
                    killer.name,
                    if mutant { ", its rule broken" } else { "" }
                ));
            }
        }
    }
    servers::remove_leftovers();
    if options.json {
        println!("{}", json!({ "trials": all, "failed": failed }));
    }
    if !failed.is_empty() {
        bail!("not as it should be: {}", failed.join("; "));
    }
    say("every known killer was survived, and every broken rule was noticed");
    Ok(())
}

/// Docker, the images and the program; rules can be broken in it, and none is unless a trial says so.
fn prepare() -> Result<PathBuf> {
    images::ensure_with_tools()?;
    servers::remove_leftovers();
    breakable::build("tenure-chaos")
}
