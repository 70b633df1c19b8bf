//! The `tenure` command: runs any program on one node only.

mod args;
mod doctor;
mod exec;
mod exit;
mod guard;
mod look;
mod orders;
mod processes;
mod progress;
mod run;
mod signals;
mod store;

use std::{
    io::{Write as _, stderr},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _, error::ContextValue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use args::{Arguments, Command, LogFormat};

fn main() -> ExitCode {
    #[cfg(tenure_mutants)]
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--mutants") {
        return if processes::try_mutants().is_ok_and(|whole| whole) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let arguments = Arguments::try_parse().unwrap_or_else(|error| without_urls(error).exit());
    match arguments.command {
        // These two have one thread, and no runtime: they are what is left when the rest is gone.
        Command::Guard(options) => return guard::guard(&options),
        Command::Exec(options) => return exec::exec(&options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "tenure", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Man => {
            let page = clap_mangen::Man::new(Arguments::command());
            return exit::code(page.render(&mut std::io::stdout()).map_err(Into::into).map(|()| 0));
        }
        _ => {}
    }
    log(arguments.log_format, arguments.verbose);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(carry_out(arguments.command)));
    exit::code(outcome)
}

/// The error with no argument in it that may be a store's URL: one that stands in a wrong place may have a password.
fn without_urls(mut error: clap::Error) -> clap::Error {
    let told: Vec<_> = error
        .context()
        .filter(|(_, value)| value.to_string().contains("://") || value.to_string().contains('@'))
        .map(|(kind, value)| {
            let hidden = match value {
                ContextValue::String(_) => ContextValue::String("***".to_owned()),
                _ => ContextValue::None,
            };
            (kind, hidden)
        })
        .collect();
    for (kind, hidden) in told {
        error.insert(kind, hidden);
    }
    error
}

async fn carry_out(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Run(options) => run::run(&options).await,
        Command::Leader(options) => look::leader(&options).await,
        Command::Candidates(options) => look::candidates(&options).await,
        Command::Observe(options) => look::observe(&options).await,
        Command::Resign(options) => look::resign(&options).await,
        Command::Doctor(options) => doctor::doctor(&options).await,
        Command::Guard(_) | Command::Exec(_) | Command::Completions { .. } | Command::Man => Ok(0),
    }
}

/// Tells people something; whoever does not listen misses it.
pub(crate) fn say(what: &str) {
    let _ = writeln!(stderr(), "tenure: {what}");
}

/// Writes a message like [`say`], but only if that does not block on a pipe that nobody reads. Returns whether it was
/// written.
pub(crate) fn try_say(what: &str) -> bool {
    let stderr = stderr();
    let mut watched = [PollFd::new(&stderr, PollFlags::OUT)];
    let looked = poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let has_room = looked.is_ok() && watched[0].revents().contains(PollFlags::OUT);
    if has_room {
        say(what);
    }
    has_room
}

/// What the library has to say goes to the standard error: the standard output is the program's.
fn log(format: LogFormat, verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = tracing_subscriber::EnvFilter::try_from_env("TENURE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().init(),
    }
}
