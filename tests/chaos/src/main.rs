//! Fault injection on real clusters: a few servers, five candidates in processes of their own, and a check of the history
//! that they report. `cargo xtask chaos` and `cargo xtask trials` run it.
//!
//! [`run`] injects random faults, [`trial`] repeats one known fault, and [`candidate`] is the process that `run` and some
//! trials start.

mod candidate;
mod cas;
mod cluster;
mod history;
mod kubernetes;
mod message;
mod options;
mod postgres;
mod process;
mod run;
mod safety_rule;
mod sampler;
mod trial;

use std::process::ExitCode;

use clap::Parser;

use options::{Arguments, Command};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Trial(options) => trial::run(&options),
        Command::Candidate(options) => candidate::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tenure-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}
