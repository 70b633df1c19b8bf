//! `cargo xtask sim` and `cargo xtask mutants`: the engine over simulated clusters, whole and broken.

use anyhow::Result;
use clap::Args;

use crate::{
    breakable,
    shell::{command, run},
};

/// What to run; the rest is passed on to `tenure-sim`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many runs, each with another seed
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; a failing one is run again with `--first-seed N --seeds 1`
    #[arg(long)]
    first_seed: Option<u64>,
    /// etcd or zookeeper; both in turn unless one is named
    #[arg(long)]
    store: Option<String>,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// How many seeds find every broken rule, with room to spare.
const MUTANT_SEEDS: u64 = 2_500;

/// Runs seeds with all rules in force.
///
/// # Errors
/// When a promise was broken.
pub(crate) fn simulate(options: &Options) -> Result<()> {
    start(options, options.seeds, &[])
}

/// Breaks each rule in turn, and looks whether any seed shows it.
///
/// # Errors
/// When a mutant survives.
pub(crate) fn mutants(options: &Options) -> Result<()> {
    start(options, options.seeds.or(Some(MUTANT_SEEDS)), &["--mutants"])
}

fn start(options: &Options, seeds: Option<u64>, flags: &[&str]) -> Result<()> {
    let mut sim = command(&breakable::build("tenure-sim")?.to_string_lossy(), flags);
    for (flag, value) in [("seeds", seeds), ("first-seed", options.first_seed)] {
        sim.args(value.map(|value| format!("--{flag}={value}")));
    }
    sim.args(options.store.iter().map(|store| format!("--store={store}")));
    sim.args(options.json.then_some("--json"));
    run(&mut sim)
}
