//! The protocol of deadlines and hand-over, with every order of its steps: what a simulation may miss by chance.
//!
//! Time is counted in ticks, and only what is left of each term of time is kept, so that there are
//! finitely many states although nothing bounds how long a run is, or how many terms it has.

mod etcd;
mod protocol;
mod rules;
mod state;
mod verdict;
mod zookeeper;

use std::process::ExitCode;

use clap::Parser;

use rules::Store;

/// Looks at every state of the protocol, whole or with its rules broken in turn
#[derive(Parser)]
pub(crate) struct Options {
    /// Which store's; both in turn unless one is named
    #[arg(long, value_enum)]
    pub(crate) store: Option<Store>,
    /// Breaks each rule in turn, and looks whether a property shows it
    #[arg(long)]
    pub(crate) mutants: bool,
    /// Tells by which steps each broken rule shows
    #[arg(long)]
    pub(crate) paths: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let verdict = verdict::look(&options);
    verdict.print(&options);
    if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
