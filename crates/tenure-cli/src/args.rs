//! The command line.

use std::{ffi::OsString, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::signals::ForwardableSignal;

/// Leader election on the command line: at most one node runs the program.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, about, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The format of log messages on the standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Logs more: -v info, -vv debug, -vvv trace. TENURE_LOG overrides it with a filter
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Plain text
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Campaigns, and runs a program while this node is the leader
    #[command(after_long_help = RUN_HELP)]
    Run(Run),
    /// Prints the leader; exits with 1 when there is none
    Leader(Query),
    /// Prints all candidates in queue order, the leader first
    Candidates(Query),
    /// Prints the leader, now and at every change
    Observe(Query),
    /// Asks the leader to resign, and waits until it has; exits with 1 when there is no leader
    ///
    /// The request reaches the leader through the store, wherever it runs. The leader stops its work, and the next
    /// candidate in the queue becomes leader. A leader that was elected by another library cannot receive the
    /// request: that is an error.
    Resign(Query),
    /// Checks the store, this machine and the settings, and advises what to change
    ///
    /// Asks each member of the store for its version and role, opens a session, and briefly enters the election
    /// "tenure-doctor". Exits with 69 when there is a problem.
    Doctor(Doctor),
    /// Prints a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page
    Man,
    /// Supervises the program; started by `run`
    #[command(name = "__guard", hide = true)]
    Guard(Guard),
    /// Executes the program; started by the guard
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
}

const RUN_HELP: &str = "\
Environment of the program:
  TENURE_ELECTION               the election that this node leads
  TENURE_FENCING_TOKEN          the fencing token: send it with every write, so that the receiver can refuse lower ones
  TENURE_CANDIDATE              this candidate's id
  TENURE_DEADLINE_BOOTTIME_NS   the deadline of the leadership when the program was started, in nanoseconds of
                                CLOCK_BOOTTIME; it moves on while the store answers. Not set where the kernel keeps
                                the leadership (local:)
  TENURE_GRACE_PERIOD_MS        how long before the deadline the program gets the stop signal
Other variables are passed on, except those that contain the store's password: the variable that password_env names,
and TENURE_STORE if its URL contains the password.

The program gets the stop signal one grace period before the deadline. Before the deadline it is killed, with every
process that it has started, even if the store cannot be reached or tenure itself is killed.

Exit codes: the program's own; 128 plus the signal's number if a signal ended it; 126 or 127 if it cannot be run; 69 if
the store refuses; 75 if not elected (--try, --timeout); 76 if leadership was lost; 2 for bad usage.";

/// The store and the election.
#[derive(Args, Clone, Debug)]
pub(crate) struct Store {
    /// The store: etcd://HOSTS/PREFIX, zookeeper://HOSTS/ROOT or local:/DIRECTORY. The default is a local:
    /// directory in this user's home, for one process of this machine. Do not put passwords here, but into the
    /// environment or a file (?password_file=)
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// The election
    #[arg(long, value_name = "NAME", env = "TENURE_ELECTION")]
    pub(crate) election: String,
}

/// The options of `tenure run`.
#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) store: Store,
    /// This candidate's id; by default made of the host, the process and a random number
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// The value of this candidate, which others can read, for example its address
    #[arg(long, value_name = "TEXT")]
    pub(crate) value: Option<String>,
    /// The TTL: after this time without a heartbeat, the store gives leadership to another node. 10s by default
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// How long before the deadline the program gets the stop signal; a tenth of the TTL by default, at most a third
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) grace_period: Option<Duration>,
    /// The signal that asks the program to stop
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) stop_signal: ForwardableSignal,
    /// When to campaign again after the program has ended or leadership was lost
    #[arg(long, value_enum, default_value_t = Restart::Never)]
    pub(crate) restart: Restart,
    /// The first delay before campaigning again; it doubles while the program fails
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub(crate) backoff: Duration,
    /// The longest delay before campaigning again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) max_backoff: Duration,
    /// Exits with 75 if not elected within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Does not wait: exits with 75 if there is another leader
    #[arg(long = "try")]
    pub(crate) try_once: bool,
    /// How long the shutdown may take after a termination signal; 5s by default. The signal is passed on to the
    /// program, which is killed after four fifths of this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) shutdown_timeout: Option<Duration>,
    /// What tenure does if the program is still alive at the deadline
    #[arg(long, value_enum, default_value_t = OnOverrun::Log)]
    pub(crate) on_overrun: OnOverrun,
    /// Prints nothing while waiting
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    /// Exits when the program ends, or with 76 if leadership was lost
    Never,
    /// Campaigns again if the program failed or leadership was lost
    OnFailure,
    /// Always campaigns again
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOverrun {
    /// Logs an error
    Log,
    /// Logs an error and aborts
    Abort,
}

/// The options of `leader`, `candidates`, `observe` and `resign`.
#[derive(Args, Debug)]
pub(crate) struct Query {
    #[command(flatten)]
    pub(crate) store: Store,
    /// Prints one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
    /// Fails if there is no answer within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// The options of `tenure doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// The store, as for the other commands
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// The TTL that will be used; 10s by default
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// Prints one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of the guard. Everything else comes over its standard input, which is a socket.
#[derive(Args, Debug)]
pub(crate) struct Guard {
    #[arg(long)]
    pub(crate) stop_signal: ForwardableSignal,
    /// The process group that the program joins; by default the program gets its own
    #[arg(long)]
    pub(crate) group: Option<i32>,
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<OsString>,
}

/// The arguments of the process that executes the program.
#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// The guard's process id; the guard may be gone already
    #[arg(long)]
    pub(crate) parent: i32,
    /// The instant from which the program must not be started any more; nanoseconds of CLOCK_BOOTTIME
    #[arg(long)]
    pub(crate) not_after: u64,
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<OsString>,
}
