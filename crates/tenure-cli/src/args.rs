//! The command line.

use std::{ffi::OsString, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::signals::StopSignal;

/// Leader election on the command line: exactly one node runs the program.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, about, max_term_width = 100)]
pub(crate) struct Arguments {
    /// How messages are written to the standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Says more; twice and thrice even more. TENURE_LOG has a filter of its own
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// An object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Campaigns, and runs a program for as long as this node leads
    #[command(after_long_help = RUN_HELP)]
    Run(Run),
    /// Prints who leads; exits with 1 when nobody does
    Leader(Look),
    /// Prints all candidates in order of succession, the leader first
    Candidates(Look),
    /// Prints who leads, now and at every change
    Observe(Look),
    /// Asks whoever leads to resign, and waits until it has; exits with 1 when nobody leads
    ///
    /// The leader is told, wherever it runs; its work is stopped, and the next in the queue leads. What leads is another
    /// library's candidate, perhaps: that does not listen, and is an error.
    Resign(Look),
    /// Looks whether the store, this machine and the settings are fit for elections, and says what to do
    ///
    /// Each member of the store is asked for its version and its part, a session is opened and the election
    /// "tenure-doctor" entered for a moment. Exits with 69 when there is a problem.
    Doctor(Doctor),
    /// Prints a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page
    Man,
    /// Watches over the program: what `run` starts
    #[command(name = "__guard", hide = true)]
    Guard(Guard),
    /// Becomes the program: what the guard starts
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
}

const RUN_HELP: &str = "\
The program finds in its environment:
  TENURE_ELECTION               the election that this node leads
  TENURE_FENCING_TOKEN          the token to send with every write, so that the other side can refuse lower ones
  TENURE_CANDIDATE              this candidate's id
  TENURE_DEADLINE_BOOTTIME_NS   until when leadership may be assumed, as things stood when the program was started, on
                                CLOCK_BOOTTIME in nanoseconds; it moves on while the store answers. Not set where the
                                kernel keeps the leadership (local:)
  TENURE_GRACE_PERIOD_MS         how long before the deadline the program is told to stop
and whatever tenure has in its own, but for the store's password: the variable of password_env, and TENURE_STORE where
its URL has the password in it.

The program is told to stop a grace period before the deadline, and killed with everything that it started before the
deadline, also when the store is cut off, and when tenure itself is killed.

Exit codes: the program's own; 128 and the signal's number when a signal ended it; 126 or 127 when it cannot be run; 69
when the store refuses; 75 when it is not elected (--try, --timeout); 76 when leadership was lost; 2 for bad usage.";

/// Where elections are held.
#[derive(Args, Clone, Debug)]
pub(crate) struct Store {
    /// The store: etcd://HOSTS/PREFIX, zookeeper://HOSTS/ROOT or local:/DIRECTORY. By default a directory of the
    /// user's on this machine. Passwords belong into the environment, or into a file (?password_file=)
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// Which election
    #[arg(long, value_name = "NAME", env = "TENURE_ELECTION")]
    pub(crate) election: String,
}

/// What `tenure run` is told.
#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) store: Store,
    /// Who this candidate is; host, process and a random number by default
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// What others can read of this candidate: an address, say
    #[arg(long, value_name = "TEXT")]
    pub(crate) value: Option<String>,
    /// After how much silence the store gives leadership to another node; 10s by default
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// How long before the deadline the program is told to stop; a tenth of the TTL by default, at most a third
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) grace_period: Option<Duration>,
    /// The signal that tells the program to stop
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) stop_signal: StopSignal,
    /// Whether to campaign again when the program has ended or leadership was lost
    #[arg(long, value_enum, default_value_t = Restart::Never)]
    pub(crate) restart: Restart,
    /// The shortest wait before campaigning again; it doubles while the program fails
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub(crate) backoff: Duration,
    /// The longest wait before campaigning again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) max_backoff: Duration,
    /// Gives up, with exit code 75, when not elected within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Leads at once or not at all: exit code 75 when somebody else leads
    #[arg(long = "try")]
    pub(crate) tries: bool,
    /// How long an end may take once a signal asks for it; 5s by default. The program, which is passed the signal, is killed
    /// when four fifths of that are over
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) shutdown_timeout: Option<Duration>,
    /// What tenure does should the program not be dead by the deadline
    #[arg(long, value_enum, default_value_t = OnOverrun::Log)]
    pub(crate) on_overrun: OnOverrun,
    /// Says nothing while waiting
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    /// Exits with the program, or with 76 when leadership was lost
    Never,
    /// Campaigns again when the program failed or leadership was lost
    OnFailure,
    /// Campaigns again whatever ended the term
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOverrun {
    /// Logs an error
    Log,
    /// Logs, and aborts
    Abort,
}

/// What the commands that only look are told.
#[derive(Args, Debug)]
pub(crate) struct Look {
    #[command(flatten)]
    pub(crate) store: Store,
    /// Prints an object of JSON a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Gives up when the store does not answer within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// What `tenure doctor` is told.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// The store, as for the other commands
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// The TTL that is meant to be used; 10s by default
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// Prints one object of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the guard is told when it is started; the rest comes over its standard input, a socket.
#[derive(Args, Debug)]
pub(crate) struct Guard {
    #[arg(long)]
    pub(crate) stop_signal: StopSignal,
    /// The process group that the program joins; one of its own by default
    #[arg(long)]
    pub(crate) group: Option<i32>,
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// The guard, which may have gone
    #[arg(long)]
    pub(crate) parent: i32,
    /// From when on the program must not be started any more; nanoseconds of CLOCK_BOOTTIME
    #[arg(long)]
    pub(crate) until: u64,
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<OsString>,
}
