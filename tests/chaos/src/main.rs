//! Real clusters under real faults: three servers, five candidates as processes of their own, and a checker over
//! what they saw. `cargo xtask chaos` runs it.

mod candidate;
mod line;
mod mutant;
mod options;
mod process;
mod rig;
mod sampler;
mod trial;

use std::process::ExitCode;

use clap::Parser;

use options::{Arguments, Role};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().role {
        Role::Run(options) => rig::run(&options),
        Role::Trial(options) => trial::run(&options),
        Role::Candidate(options) => candidate::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tenure-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}
