//! Models of deadlines and handovers, explored in every order of its steps, which a simulation could miss.
//!
//! Time is counted in ticks. The states have only remaining times, so that the number of states is finite although runs and terms are not
//! bounded.

mod cas;
mod etcd;
mod explorable;
mod protocol;
mod rules;
mod state;
mod verdict;
mod walk;
mod zookeeper;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Explores every state of each model, with all rules or with each rule disabled in turn
#[derive(Parser)]
pub(crate) struct Options {
    /// The store; all in turn unless one is named
    #[arg(long, value_enum)]
    pub(crate) store: Option<Modelled>,
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

/// A recipe that is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Modelled {
    Etcd,
    Zookeeper,
    /// Any store that can compare and swap
    Cas,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let verdict = verdict::check(&options);
    verdict.print(&options);
    if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
