//! The options of `billing demo`.

use std::path::PathBuf;

use clap::ValueEnum;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The election's store: local:/directory, etcd://host:2379/prefix?ttl=3s, zookeeper://host:2181/root?ttl=4s,
    /// postgres://user@host/database?ttl=3s, kubernetes:///namespace?ttl=3s, or another one of tenure's; by default local: in the
    /// data directory
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// The billing database: postgres://user@host/database, without subscriptions; by default that of a PostgreSQL store
    /// with one host, else SQLite in the data directory
    #[arg(long)]
    pub(crate) database: Option<String>,
    /// The number of servers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub(crate) servers: u32,
    /// How many subscriptions fall due; a tenth more are added that do not
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) subscriptions: u32,
    /// How many leaders are killed (kill -9)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) kills: u32,
    /// How many leaders are stopped (SIGSTOP) for longer than the TTL, and continued
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) pauses: u32,
    /// The random seed of prices, latencies, and the times and kinds of the faults
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The directory of billing.db, provider.db, report.html and the logs; by default a new one under /tmp
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    pub(crate) json: bool,
    /// Disable a layer of protection, to see what the others achieve
    #[arg(long, value_enum)]
    pub(crate) without: Vec<Layer>,
}

/// A layer of protection at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// The provider ignores fencing tokens
    Tokens,
    /// The provider ignores idempotency keys
    Idempotency,
}
