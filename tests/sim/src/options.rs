//! The command line.

use clap::{Parser, ValueEnum};

use crate::mutant::Mutant;

/// Runs tenure's engine over simulated clusters and checks that two candidates never lead at once.
#[derive(Clone, Debug, Parser)]
#[command(name = "tenure-sim")]
pub(crate) struct Options {
    /// The number of runs, each with another seed
    #[arg(long, default_value_t = 200)]
    pub(crate) seeds: u64,
    /// The first seed; a failing one is run again with `--first-seed N --seeds 1`
    #[arg(long, default_value_t = 0)]
    pub(crate) first_seed: u64,
    /// The store whose recipe is simulated; all in turn unless one is named
    #[arg(long, value_enum)]
    pub(crate) store: Option<Store>,
    /// The real backend and its client, over a simulated network, in place of the simulated recipes
    #[arg(long, value_enum, conflicts_with = "store")]
    pub(crate) client: Option<Client>,
    /// How much simulated time a run has before all faults end, in seconds; 300 unless given, with a real client 60
    #[arg(long)]
    simulated_seconds: Option<u64>,
    /// The number of threads, each of which runs one seed at a time; by default the number of processors
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Disables each safety rule in turn, and checks that this is noticed
    #[arg(long)]
    pub(crate) mutants: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

/// The store whose recipe is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    Etcd,
    Zookeeper,
    /// A store that can compare and swap, with the real recipe
    Cas,
}

/// The store whose real client is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Client {
    Etcd,
}

impl Options {
    pub(crate) fn simulated_seconds(&self) -> u64 {
        let usual = if self.client.is_some() { 60 } else { 300 };
        self.simulated_seconds.unwrap_or(usual)
    }

    /// The option that selects what this seed simulates.
    pub(crate) fn what(&self, seed: u64) -> String {
        match self.client {
            Some(client) => format!("--client {client:?}").to_lowercase(),
            None => format!("--store {:?}", self.store_of(seed, None)).to_lowercase(),
        }
    }

    /// The store of a seed: the one that was named, or each in turn. A rule of one store's recipe is disabled over that store only.
    pub(crate) fn store_of(&self, seed: u64, mutant: Option<Mutant>) -> Store {
        let stores = match mutant {
            None => Store::value_variants(),
            Some(mutant) => mutant.stores(),
        };
        self.store.unwrap_or(stores[(seed % stores.len() as u64) as usize])
    }
}
