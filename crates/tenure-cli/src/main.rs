//! The `tenure` command: runs any program on one node only.

mod args;
mod doctor;
mod exec;
mod exit;
mod guard;
mod guard_protocol;
mod messages;
mod output;
mod processes;
mod progress;
mod query;
mod resign;
mod run;
mod signals;
mod store;

use std::{io::stderr, process::ExitCode};

use clap::{CommandFactory as _, Parser as _, error::ContextValue};

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
        // These two run on one thread and without a runtime, so that nothing else can delay them.
        Command::Guard(options) => return guard::guard(&options),
        Command::Exec(options) => return exec::exec(&options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "tenure", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Man => {
            let page = clap_mangen::Man::new(Arguments::command());
            return exit::exit_code(page.render(&mut std::io::stdout()).map_err(Into::into).map(|()| 0));
        }
        _ => {}
    }
    init_logging(arguments.log_format, arguments.verbose);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(execute(arguments.command)));
    exit::exit_code(outcome)
}

/// Removes every argument that may be a store's URL from the error: a URL in the wrong place may contain a password.
fn without_urls(mut error: clap::Error) -> clap::Error {
    let redacted: Vec<_> = error
        .context()
        .filter(|(_, value)| value.to_string().contains("://") || value.to_string().contains('@'))
        .map(|(kind, value)| {
            let replacement = match value {
                ContextValue::String(_) => ContextValue::String("***".to_owned()),
                _ => ContextValue::None,
            };
            (kind, replacement)
        })
        .collect();
    for (kind, replacement) in redacted {
        error.insert(kind, replacement);
    }
    error
}

async fn execute(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Run(options) => run::run(&options).await,
        Command::Leader(options) => query::leader(&options).await,
        Command::Candidates(options) => query::candidates(&options).await,
        Command::Observe(options) => query::observe(&options).await,
        Command::Resign(options) => resign::resign(&options).await,
        Command::Doctor(options) => doctor::doctor(&options).await,
        Command::Guard(_) | Command::Exec(_) | Command::Completions { .. } | Command::Man => Ok(0),
    }
}

/// Logs to the standard error: the standard output belongs to the program.
fn init_logging(format: LogFormat, verbose: u8) {
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
