//! The project's chores. `cargo xtask --help` lists them.

mod apt;
mod bench;
mod breakable;
mod catalog;
mod chaos;
mod check;
mod demo;
mod dependencies;
mod docker;
mod fuzz;
mod handover;
mod images;
mod lints;
mod metadata;
mod races;
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
    /// Measures what elections cost, beside the raw operations that they are made of
    Bench(bench::Options),
    /// Measures how long nobody leads after a program, or its `tenure run`, was killed
    Handover(handover::Options),
    /// Feeds every parser with hostile input, and looks for one that breaks it
    Fuzz(fuzz::Options),
    /// Runs the engine's threads and tasks in every order, or in many, and looks for races
    Races(races::Options),
    /// Runs the engine over simulated clusters, and looks for two leaders
    Sim(sim::Options),
    /// Looks at every state of a model of the protocol, and breaks each rule in turn, there and in the simulation
    Mutants(sim::Options),
    /// Breaks a real cluster and the candidates on it, and looks for two leaders
    Chaos(chaos::Options),
    /// Tries every known killer on real clusters, whole and with the rule broken that it is about
    Trials(chaos::TrialOptions),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Test(options) => suite::test(&options),
        Chore::Images => images::ensure_with_tools(),
        Chore::Check => check::run_all(),
        Chore::Demo(options) => demo::run_seeds(&options),
        Chore::Bench(options) => bench::measure(&options),
        Chore::Handover(options) => handover::measure(&options),
        Chore::Fuzz(options) => fuzz::fuzz(&options),
        Chore::Races(options) => races::check(&options),
        Chore::Sim(options) => sim::simulate(&options),
        Chore::Mutants(options) => sim::mutants(&options),
        Chore::Chaos(options) => chaos::chaos(&options),
        Chore::Trials(options) => chaos::trials(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
