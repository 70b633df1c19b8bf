//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(about = "Candidates on a real cluster under real faults")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) role: Role,
}

#[derive(Subcommand)]
pub(crate) enum Role {
    /// Starts a cluster and its candidates, breaks what can be broken, and checks the history
    Run(Options),
    /// One known killer, over and over
    Trial(TrialOptions),
    /// One candidate: what the rig starts five times
    #[command(hide = true)]
    Candidate(CandidateOptions),
}

/// Which store is put to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    Etcd,
    Zookeeper,
}

#[derive(Args)]
pub(crate) struct Options {
    /// The store
    #[arg(long)]
    pub(crate) store: StoreKind,
    /// How many faults
    #[arg(long, default_value_t = 60)]
    pub(crate) faults: u64,
    /// What is broken, and when, is drawn from this; servers and processes add chance of their own
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The TTL of the candidates' sessions
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// Where the history is written when a promise was broken
    #[arg(long, default_value = "target/chaos")]
    pub(crate) histories: PathBuf,
    /// Says each fault as it begins and ends
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Prints one object of JSON as the last line
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
    /// The one election to stand in, with terms that nothing but a loss ends
    #[arg(long)]
    pub(crate) hold: Option<String>,
    /// Breaks the rule that every check compares the clock
    #[arg(long)]
    pub(crate) mutant: bool,
}

/// A fault that makes two leaders of what others trust, or costs them their leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrialKind {
    /// The store's leader, to which the leading candidate speaks, cannot write to its disk any more (hazard E14)
    StalledDisk,
    /// The follower to which the leading candidate speaks is cut off from its peers (hazard Z18)
    CutOffFollower,
    /// The leading candidate's packets are dropped both ways (hazards G2, Z1)
    DroppedPath,
    /// The leading candidate's process is stopped for longer than its TTL (hazards G1, G25)
    StoppedProcess,
    /// One server of three is frozen, then killed: leadership is to be kept (hazards E3, E16)
    FrozenMember,
}

#[derive(Args)]
pub(crate) struct TrialOptions {
    /// The store
    #[arg(long)]
    pub(crate) store: StoreKind,
    /// Which fault
    #[arg(long)]
    pub(crate) trial: TrialKind,
    /// How often at least
    #[arg(long, default_value_t = 10)]
    pub(crate) trials: usize,
    /// Breaks the rule that this fault is about, and expects that it shows
    #[arg(long)]
    pub(crate) mutant: bool,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    pub(crate) json: bool,
}
