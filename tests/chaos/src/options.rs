//! The command line, and the elections that candidates take part in.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tenure_containers::Replication;

/// Elections with short terms, so that there are many of them.
pub(crate) const SHORT_ELECTIONS: [&str; 3] = ["short-1", "short-2", "short-3"];
/// The election with long terms, so that faults happen during them.
pub(crate) const LONG_ELECTION: &str = "long";

/// All elections.
pub(crate) fn elections() -> impl Iterator<Item = &'static str> {
    SHORT_ELECTIONS.into_iter().chain([LONG_ELECTION])
}

#[derive(Parser)]
#[command(about = "Injects faults into a real cluster and its candidates, and checks what they report")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Starts a cluster and its candidates, injects random faults, and checks the history
    Run(RunOptions),
    /// Repeats one known fault
    Trial(TrialOptions),
    /// One candidate; `run` starts five of them
    #[command(hide = true)]
    Candidate(CandidateOptions),
}

impl From<ReplicationKind> for Replication {
    fn from(kind: ReplicationKind) -> Self {
        match kind {
            ReplicationKind::Synchronous => Self::Synchronous,
            ReplicationKind::Asynchronous => Self::Asynchronous,
        }
    }
}

/// The store under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    Etcd,
    Zookeeper,
    Postgres,
    Kubernetes,
    Consul,
    Nats,
}

/// When a PostgreSQL primary acknowledges a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReplicationKind {
    /// Once the replica has it, too
    Synchronous,
    /// At once: a failover loses the latest commits
    Asynchronous,
}

#[derive(Args)]
pub(crate) struct RunOptions {
    /// The store
    #[arg(long)]
    pub(crate) store: StoreKind,
    /// How PostgreSQL replicates
    #[arg(long, default_value = "synchronous")]
    pub(crate) replication: ReplicationKind,
    /// The number of faults
    #[arg(long, default_value_t = 60)]
    pub(crate) faults: u64,
    /// The seed from which faults and their times are drawn; servers and processes are not deterministic
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The TTL of the candidates' sessions
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// The directory to which the history of a failed run is written
    #[arg(long, default_value = "target/chaos")]
    pub(crate) histories: PathBuf,
    /// Prints each fault as it begins
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Prints one JSON object as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CandidateOptions {
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long)]
    pub(crate) id: String,
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// The only election to take part in; its terms last until they are lost
    #[arg(long)]
    pub(crate) hold: Option<String>,
    /// Disables the rule that every check compares the clock
    #[arg(long)]
    pub(crate) mutant: bool,
}

/// A fault that breaks other election libraries: it causes two leaders, or a leadership that is lost without need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrialKind {
    /// The disk of the store's leader, to which the leading candidate is connected, blocks all writes (hazard E14)
    StalledDisk,
    /// The follower to which the leading candidate is connected is isolated from its peers (hazard Z18)
    CutOffFollower,
    /// The leading candidate's packets are dropped in both directions (hazards G2, Z1)
    DroppedPath,
    /// The leading candidate's process is stopped for longer than its TTL (hazards G1, G25)
    StoppedProcess,
    /// One server of three is frozen, then killed; leaderships must be kept (hazards E3, E16)
    FrozenMember,
    /// A PostgreSQL replica is promoted that has not seen the leading candidate (hazard C5)
    LostEntry,
    /// An operator promotes a PostgreSQL replica and leaves the primary running: measures what is left of the promises
    SplitBrain,
}

#[derive(Args)]
pub(crate) struct TrialOptions {
    /// The store
    #[arg(long)]
    pub(crate) store: StoreKind,
    /// The fault
    #[arg(long)]
    pub(crate) trial: TrialKind,
    /// The minimum number of trials
    #[arg(long, default_value_t = 10)]
    pub(crate) trials: usize,
    /// Disables the safety rule that protects from this fault, and expects the trial to fail
    #[arg(long)]
    pub(crate) mutant: bool,
    /// Prints one JSON object as the last line
    #[arg(long)]
    pub(crate) json: bool,
}
