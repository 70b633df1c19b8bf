//! The project's own commands. `cargo xtask --help` lists them.

mod apt;
mod bench;
mod catalog;
mod chaos;
mod check;
mod demo;
mod dependencies;
mod docker;
mod failpoint_build;
mod fuzz;
mod handover;
mod images;
mod lints;
mod metadata;
mod package;
mod races;
mod restart;
mod servers;
mod shell;
mod sim;
mod suite;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Builds, tests and measures tenure")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs all tests against real servers; first installs the programs that are missing
    Test(suite::Options),
    /// Builds the missing images of the test servers
    Images,
    /// Checks formatting, lints, docs, manifests, and the rules for dependencies
    Check,
    /// Checks each feature without the others, and builds every package from what would be published
    Publishable,
    /// Makes a Debian package and a container image of the command
    Package(package::Options),
    /// Runs the billing demo over several seeds and fails on any violation
    Demo(demo::Options),
    /// Writes what the command prints under real faults into docs/guide/troubleshooting.md; `test` compares both
    Transcripts,
    /// Measures elections, next to the raw store operations that they consist of
    Bench(bench::Options),
    /// Measures how long an election has no leader after a program, or its `tenure run`, is killed
    Handover(handover::Options),
    /// Measures how long an election has no leader after a leader is killed and restarted at once
    Restart(restart::Options),
    /// Fuzzes every parser
    Fuzz(fuzz::Options),
    /// Checks the engine for races: its threads and tasks in every order (loom) or in many (shuttle)
    Races(races::Options),
    /// Simulates clusters and fails when two candidates lead at once
    Sim(sim::Options),
    /// Explores every state of the protocols' models; disables each safety rule in turn and fails when that goes unnoticed
    Mutants(sim::Options),
    /// Injects faults into a real cluster and its candidates, and fails when two lead at once
    Chaos(chaos::Options),
    /// Runs each known failure scenario on real clusters, with all safety rules and with the one it needs disabled
    Trials(chaos::TrialOptions),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test(options) => suite::test(&options),
        Task::Images => images::ensure_with_tools(),
        Task::Check => check::run_all(),
        Task::Publishable => check::publishable(),
        Task::Package(options) => package::package(&options),
        Task::Demo(options) => demo::run_seeds(&options),
        Task::Transcripts => suite::write_transcripts(),
        Task::Bench(options) => bench::measure(&options),
        Task::Handover(options) => handover::measure(&options),
        Task::Restart(options) => restart::measure(&options),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Races(options) => races::check(&options),
        Task::Sim(options) => sim::simulate(&options),
        Task::Mutants(options) => sim::mutants(&options),
        Task::Chaos(options) => chaos::chaos(&options),
        Task::Trials(options) => chaos::trials(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
