//! The showcase of tenure: billing servers that elect the one that charges.
//!
//! `billing serve` is the service, `billing provider` the payment service it talks to, and
//! `billing demo` runs both as real processes, kills and stops whoever leads, and then checks
//! the provider's ledger: every renewal charged once, nobody twice.

mod calendar;
mod charging;
mod clock;
mod db;
mod demo;
mod election;
mod parent;
mod payment;
mod provider;
mod serve;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Billing servers that elect the one that charges: the showcase of tenure.
#[derive(Debug, Parser)]
#[command(name = "billing", version, about)]
struct Cli {
    /// How the logs are written, to stderr; `RUST_LOG` chooses what.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a billing server: charges what falls due while it leads, stands ready otherwise
    Serve(serve::Args),
    /// Run the payment provider, a third party in the play
    Provider(provider::Args),
    /// Run a provider and several servers, kill and stop the leaders, and check the books
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The demo prints its own progress; its children log into files.
    let level = if matches!(cli.command, Command::Demo(_)) { "error" } else { "info" };
    start_log(cli.log_format, level);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("billing: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Provider(args) => provider::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(args).await,
    }
}

fn start_log(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
