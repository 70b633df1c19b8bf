//! Runs tenure's engine over simulated clusters and checks that two candidates never lead at once.
//!
//! One seed is one run, on one thread and in simulated time. The same seed repeats the same run. A run has several hosts, each with a
//! clock rate and a network link of its own. They campaign in several elections of one cluster, which works as etcd's or
//! ZooKeeper's does. Its members stop, freeze, lag, are cut off, and answer although they no longer lead. Meanwhile the hosts campaign,
//! lead, resign, crash and are suspended. In other runs the recipe of `tenure-cas` runs over a store that can compare and swap.

mod candidate;
mod cas;
mod cluster;
mod etcd;
mod history;
mod host;
mod link;
mod mutant;
mod mutant_runs;
mod options;
mod recipe;
mod report;
mod reports;
mod run;
mod seeds;
mod wire;
mod zookeeper;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> anyhow::Result<ExitCode> {
    let options = options::Options::parse();
    let clean = if options.mutants {
        let mut mutants = all_mutants()?;
        mutants.retain(|mutant| options.store.is_none_or(|store| mutant.stores().contains(&store)));
        let verdict = mutant_runs::run_all(&options, &mutants);
        verdict.print(&options);
        verdict.is_clean()
    } else {
        let report = report::run_all(&options);
        report.print(&options);
        report.is_clean()
    };
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(tenure_mutants)]
fn all_mutants() -> anyhow::Result<Vec<mutant::Mutant>> {
    Ok(mutant::Mutant::all())
}

#[cfg(not(tenure_mutants))]
fn all_mutants() -> anyhow::Result<Vec<mutant::Mutant>> {
    anyhow::bail!("built without --cfg tenure_mutants: `cargo xtask mutants` builds with it")
}
