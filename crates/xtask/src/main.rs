//! The project's chores. `cargo xtask --help` lists them.

mod apt;
mod catalog;
mod check;
mod demo;
mod docker;
mod images;
mod metadata;
mod servers;
mod shell;
mod sim;
mod suite;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs all tests, with real servers; first installs what is missing for that
    Test(suite::Options),
    /// Makes the images of the test servers that are missing
    Images,
    /// Formatting, lints, docs, each feature alone, and the dependencies' rules
    Check,
    /// Runs the billing demo over several seeds and fails on any violation
    Demo(demo::Options),
    /// Runs the engine over simulated clusters, and looks for two leaders
    Sim(sim::Options),
    /// Breaks each of the engine's rules in turn, and looks whether the simulation notices
    Mutants(sim::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Test(options) => suite::test(&options),
        Chore::Images => images::ensure_with_tools(),
        Chore::Check => check::run_all(),
        Chore::Demo(options) => demo::run_seeds(&options),
        Chore::Sim(options) => sim::simulate(&options),
        Chore::Mutants(options) => sim::mutants(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
