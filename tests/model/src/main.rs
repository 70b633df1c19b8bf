//! A model of deadlines and handovers, explored in every order of its steps, which a simulation could miss.
//!
//! Time is counted in ticks. The state has only remaining times, so that the number of states is finite although runs and terms are not
//! bounded.

mod etcd;
mod protocol;
mod rules;
mod state;
mod verdict;
mod zookeeper;

use std::process::ExitCode;

use clap::Parser;

use rules::Store;

/// Explores every state of the protocol, with all rules or with each rule disabled in turn
#[derive(Parser)]
pub(crate) struct Options {
    /// The store; both in turn unless one is named
    #[arg(long, value_enum)]
    pub(crate) store: Option<Store>,
    /// Disables each rule in turn, and checks that a property fails
    #[arg(long)]
    pub(crate) mutants: bool,
    /// Prints the steps that lead to each violation
    #[arg(long)]
    pub(crate) paths: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let verdict = verdict::check(&options);
    verdict.print(&options);
    if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
