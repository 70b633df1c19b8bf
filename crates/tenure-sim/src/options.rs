//! What to run.

use clap::{Parser, ValueEnum};

/// Runs tenure's engine over simulated clusters and looks for two leaders.
#[derive(Clone, Debug, Parser)]
#[command(name = "tenure-sim")]
pub(crate) struct Options {
    /// How many runs, each with another seed
    #[arg(long, default_value_t = 200)]
    pub(crate) seeds: u64,
    /// The first seed; a failing one is run again with `--first-seed N --seeds 1`
    #[arg(long, default_value_t = 0)]
    pub(crate) first_seed: u64,
    /// Which store's recipes; both in turn unless one is named
    #[arg(long, value_enum)]
    pub(crate) store: Option<Store>,
    /// How much simulated time a run has before everything is mended, in seconds
    #[arg(long, default_value_t = 300)]
    pub(crate) simulated_seconds: u64,
    /// How many seeds run at a time, each on a thread of its own; as many as there are processors unless given
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Breaks each rule in turn, and looks whether that is noticed
    #[arg(long)]
    pub(crate) mutants: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose recipes are simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    Etcd,
    Zookeeper,
}

impl Options {
    pub(crate) fn store_of(&self, seed: u64) -> Store {
        let in_turn = if seed.is_multiple_of(2) { Store::Etcd } else { Store::Zookeeper };
        self.store.unwrap_or(in_turn)
    }
}
