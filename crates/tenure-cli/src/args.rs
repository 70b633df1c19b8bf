//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use tenure::{FencingToken, StoreUrl};

use crate::{serve::ListenAddress, signals::ForwardableSignal, waiting::Limit};

/// Leader election on the command line: at most one node runs the program.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, about, max_term_width = 100, after_long_help = HELP)]
pub(crate) struct Arguments {
    /// The format of messages and of the log on the standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "TENURE_LOG_FORMAT")]
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
    /// Prints the leader: id, token and value; exits with 1 when there is none
    #[command(after_long_help = HELP)]
    Leader(Query),
    /// Prints all candidates in queue order, the leader first: id, token and value
    #[command(after_long_help = HELP)]
    Candidates(Query),
    /// Prints the leader, now and at every change: id, token and value, or "-" while there is none
    #[command(after_long_help = HELP)]
    Observe(Query),
    /// Prints all elections that have a candidate: leader, token, how many wait, age of the leader's entry, session, value
    #[command(after_long_help = HELP)]
    Elections(Elections),
    /// Shows all elections that have a candidate in the terminal, live; can ask leaders to resign
    #[command(after_long_help = TOP_HELP)]
    Top(Top),
    /// Asks the leader to resign, and waits until it has; exits with 1 when there is no leader
    ///
    /// The request reaches the leader through the store, wherever it runs. The leader stops its work, and the next
    /// candidate in the queue becomes leader. A leader that was elected by another library cannot receive the
    /// request: that is an error.
    #[command(after_long_help = HELP)]
    Resign(Query),
    /// Checks the store, this machine and the settings, and advises what to change
    ///
    /// Asks each member of the store for its version and role, opens a session, and briefly enters the election
    /// "tenure-doctor". Exits with 69 when there is a problem.
    #[command(after_long_help = HELP)]
    Doctor(Doctor),
    /// Serves elections over HTTP to programs in any language, as a sidecar
    ///
    /// Clients campaign, renew and resign by HTTP requests, and are told for how long they may consider themselves
    /// leader. A web page at / shows all elections. The contract is docs/guide/sidecar.md; GET /v1/openapi.json describes the requests. After a
    /// termination signal it campaigns and grants no more, and exits once its clients have resigned or their grants have
    /// ended, with 0.
    #[command(after_long_help = HELP)]
    Serve(Serve),
    /// Prints a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, or writes the pages of all commands
    Man {
        /// Writes all pages to this directory: tenure.1, tenure-run.1 and so on
        #[arg(long, value_name = "DIRECTORY")]
        dir: Option<PathBuf>,
    },
    /// Supervises the program; started by `run`
    #[command(name = "__guard", hide = true)]
    Guard(Guard),
    /// Executes the program; started by the guard
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
    /// Ends the session of a `run` that was killed; takes the guard's place
    #[command(name = "__end-session", hide = true)]
    EndSession,
}

const HELP: &str = "\
Exit codes: 0 success; 1 nobody leads (leader, resign); 2 bad usage; 69 the store refuses or does not answer, or doctor
has found a problem; 70 tenure or its machine fails; 128 plus a signal's number after that signal. run has others, too.

Environment:
  TENURE_STORE        the store's URL (--store)
  TENURE_ELECTION     the election (--election)
  TENURE_LOG          a filter for the log, for example debug
  TENURE_LOG_FORMAT   text or json (--log-format)
  NO_COLOR            no colors

Files: without a URL, the store is /var/lib/tenure for root, else ~/.local/state/tenure.";

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

Variables in place of options: TENURE_STORE, TENURE_ELECTION, TENURE_CANDIDATE_VALUE, TENURE_TTL, TENURE_GRACE_PERIOD,
TENURE_SHUTDOWN_TIMEOUT, TENURE_LOG_FORMAT; TENURE_LOG is a filter for the log.

Under systemd (Type=notify), tenure reports READY=1 once it is a candidate, its STATUS, STOPPING=1, and WATCHDOG=1. The
program gets neither NOTIFY_SOCKET nor the variables of the watchdog. Sockets of the service (LISTEN_FDS) are the program's.

The program gets the stop signal one grace period before the deadline. Before the deadline it is killed, with every
process that it has started, even if the store cannot be reached or tenure itself is killed.

Exit codes: the program's own; 128 plus the signal's number if a signal ended it; 126 or 127 if it cannot be run; 69 if
the store refuses; 75 if not elected (--try, --timeout); 76 if leadership was lost; 2 for bad usage.";

const TOP_HELP: &str = "\
Keys:
  up, down, k, j          select an election; page up, page down, home and end, too
  enter, f                follow the selected election: its candidates and its changes of leader
  escape, backspace       back to all elections
  r                       ask the leader to resign, after a question (y or n); it stops its work before the next one leads
  q                       quit

The \">\" at the start of a row marks the selected election. SINCE is how long top has seen this leader, or none; \">3m12s\"
means at least that long, because the term began before top was started or during an outage. No store records when a
term began.
Changes between two readings, about a second apart, are seen as one; the leader of an election that is followed is watched.

Exit codes: 0 quit; 2 bad usage, for example no terminal; 69 the store refuses, or does not answer at the start; 70 tenure
or its machine fails; 128 plus a signal's number after that signal.

Environment: TENURE_STORE (--store), TENURE_LOG, TENURE_LOG_FORMAT, NO_COLOR.";

/// The store and the election.
#[derive(Args, Clone, Debug)]
pub(crate) struct Store {
    /// The store: etcd://HOSTS/PREFIX, zookeeper://HOSTS/ROOT, postgres://USER@HOSTS/DATABASE, consul://HOSTS/PREFIX,
    /// kubernetes:///NAMESPACE, nats://HOSTS/BUCKET, s3://BUCKET/PREFIX, mysql://USER@HOSTS/DATABASE or local:/DIRECTORY. The default elects
    /// one leader among the processes that use the directory: /var/lib/tenure for root, else ~/.local/state/tenure. Do not
    /// put passwords here, but into the environment or a file (?password_file=)
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
    /// This candidate's id; by default made of the host, the process and a random number, on Kubernetes of the pod
    #[arg(long = "candidate", visible_alias = "id", value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The value of this candidate, which others can read, for example its address
    #[arg(
        long = "candidate-value",
        visible_alias = "value",
        value_name = "TEXT",
        env = "TENURE_CANDIDATE_VALUE"
    )]
    pub(crate) value: Option<String>,
    /// The TTL: after this time without a heartbeat, the store gives leadership to another node. 10s by default
    #[arg(long, value_name = "TIME", env = "TENURE_TTL", value_parser = StoreUrl::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// How long before the deadline the program gets the stop signal; a tenth of the TTL by default, at most a third
    #[arg(long, value_name = "TIME", env = "TENURE_GRACE_PERIOD", value_parser = StoreUrl::parse_duration)]
    pub(crate) grace_period: Option<Duration>,
    /// The signal that asks the program to stop
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) stop_signal: ForwardableSignal,
    /// When to campaign again after the program has ended or leadership was lost
    #[arg(long, value_enum, default_value_t = Restart::Never)]
    pub(crate) restart: Restart,
    /// The first delay before campaigning again; it doubles while the program fails
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = StoreUrl::parse_duration)]
    pub(crate) backoff: Duration,
    /// The longest delay before campaigning again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = StoreUrl::parse_duration)]
    pub(crate) max_backoff: Duration,
    /// Exits with 75 if not elected within this time; "none", the default, waits for ever
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub(crate) timeout: Option<Limit>,
    /// Does not wait: exits with 75 if there is another leader, if a request to the store fails, or if the store does not
    /// answer within 6s (or --timeout, unless that is 0)
    #[arg(long = "try")]
    pub(crate) try_once: bool,
    /// How long the shutdown may take after a termination signal; 5s by default. The signal is passed on to the
    /// program, which is killed after four fifths of this time
    #[arg(long, value_name = "TIME", env = "TENURE_SHUTDOWN_TIMEOUT", value_parser = StoreUrl::parse_duration)]
    pub(crate) shutdown_timeout: Option<Duration>,
    /// What tenure does if the program is still alive at the deadline
    #[arg(long, value_enum, default_value_t = OnOverrun::Log)]
    pub(crate) on_overrun: OnOverrun,
    /// Prints nothing while waiting, or when another node leads; failures of the store are printed, and the default store
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
    /// Prints when each line was printed (`observe`); always with --json and on a terminal
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Exits with 69 if the store has not answered within this time, 10s by default; "none" waits for ever. `resign` waits
    /// for the leader without a limit if this is not given
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub(crate) timeout: Option<Limit>,
}

impl Query {
    /// How long the store may take to answer.
    pub(crate) fn limit(&self) -> Limit {
        self.timeout.unwrap_or(Limit::DEFAULT)
    }
}

/// The options of `tenure elections`.
#[derive(Args, Debug)]
pub(crate) struct Elections {
    /// How the names of the elections begin; all by default
    #[arg(default_value = "", hide_default_value = true, value_parser = prefix)]
    pub(crate) prefix: String,
    /// The store, as for the other commands
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// Prints one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// How many elections are read and printed at most; the output says if there are more
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// Exits with 69 if the store has not answered within this time, 10s by default; "none" waits for ever
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub(crate) timeout: Option<Limit>,
}

/// The options of `tenure top`.
#[derive(Args, Debug)]
pub(crate) struct Top {
    /// How the names of the elections begin; all by default
    #[arg(default_value = "", hide_default_value = true, value_parser = prefix)]
    pub(crate) prefix: String,
    /// The store, as for the other commands
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// Exits with 69 if the store has not answered within this time at the start, 10s by default; "none" waits for ever
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub(crate) timeout: Option<Limit>,
}

/// The beginning of an election's name, possibly empty.
pub(crate) fn prefix(text: &str) -> Result<String, String> {
    match text.bytes().find(|byte| !byte.is_ascii_alphanumeric() && !b"._-".contains(byte)) {
        Some(_) => Err("names of elections have only characters of [A-Za-z0-9._-]".to_owned()),
        None => Ok(text.to_owned()),
    }
}

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit::NONE);
    }
    StoreUrl::parse_duration(text).map(Limit::of)
}

/// The options of `tenure doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// The store, as for the other commands
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// The TTL that will be used; 10s by default
    #[arg(long, value_name = "TIME", env = "TENURE_TTL", value_parser = StoreUrl::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// The election that --fence is about
    #[arg(long, value_name = "NAME", env = "TENURE_ELECTION")]
    pub(crate) election: Option<String>,
    /// The highest fencing token that a resource has stored for the election: checks that the resource accepts the writes of the
    /// leader, or of the next one while nobody leads
    #[arg(long, value_name = "TOKEN", requires = "election")]
    pub(crate) fence: Option<FencingToken>,
    /// Prints one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `tenure serve`.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The store, as for the other commands; etcd, ZooKeeper, PostgreSQL, Consul, Kubernetes, NATS, S3, MariaDB, MySQL or Redis
    #[arg(long = "store", value_name = "URL", env = "TENURE_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// Where to listen: IP:PORT, or unix:/PATH for a socket that this user alone can use. Addresses that other machines
    /// can reach need a --token-file
    #[arg(long, value_name = "ADDRESS", env = "TENURE_LISTEN", default_value = "127.0.0.1:8377")]
    pub(crate) listen: ListenAddress,
    /// A file with the token that requests must have (Authorization: Bearer TOKEN): 16 to 1024 visible characters, not
    /// accessible to everyone. It is read again every 5s
    #[arg(long, value_name = "FILE", env = "TENURE_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The TTL: after this time without a heartbeat, the store gives leadership to another node. 10s by default
    #[arg(long, value_name = "TIME", env = "TENURE_TTL", value_parser = StoreUrl::parse_duration)]
    pub(crate) ttl: Option<Duration>,
}

/// The arguments of the guard. Everything else comes over its standard input, which is a socket.
#[derive(Args, Debug)]
pub(crate) struct Guard {
    #[arg(long)]
    pub(crate) stop_signal: ForwardableSignal,
    /// The process group that the program joins; by default the program gets its own
    #[arg(long)]
    pub(crate) group: Option<i32>,
    /// An environment variable that the program must not get
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) withhold: Vec<String>,
    /// The program gets the service manager's open sockets
    #[arg(long)]
    pub(crate) listen_fds: bool,
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
    /// The program gets the service manager's open sockets
    #[arg(long)]
    pub(crate) listen_fds: bool,
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<OsString>,
}
