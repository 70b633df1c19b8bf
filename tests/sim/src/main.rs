//! Tenure's engine over simulated clusters: whoever finds two leaders here has found a bug.
//!
//! One seed is one run, on one thread and in simulated time: the same seed does the same again. A run has
//! several hosts, each with a clock of its own rate and a line of its own, that stand in several
//! elections of one cluster, which works as etcd's or ZooKeeper's do, and has members that stop, freeze, lag, are cut off and
//! lie. While the hosts campaign, lead, resign, crash and sleep, everything that can go wrong on the way is made to.

mod broken;
mod candidate;
mod cluster;
mod etcd;
mod history;
mod host;
mod line;
mod mutants;
mod options;
mod report;
mod run;
mod seeds;
mod wire;
mod zookeeper;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> anyhow::Result<ExitCode> {
    let options = options::Options::parse();
    let clean = if options.mutants {
        let verdict = mutants::run_all(&options, &all_mutants()?);
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
fn all_mutants() -> anyhow::Result<Vec<broken::Mutant>> {
    Ok(broken::Mutant::all())
}

#[cfg(not(tenure_mutants))]
fn all_mutants() -> anyhow::Result<Vec<broken::Mutant>> {
    anyhow::bail!("built without --cfg tenure_mutants: `cargo xtask mutants` builds with it")
}
