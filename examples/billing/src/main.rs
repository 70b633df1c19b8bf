//! The main example of tenure: billing servers elect a leader, and only the leader charges.
//!
//! `billing serve` is the service, and `billing provider` the payment provider that it uses. `billing demo` runs both
//! as processes of their own, kills and stops the leaders, and then checks the provider's ledger: every renewal must
//! be charged exactly once.

mod calendar;
mod charging;
mod clock;
mod db;
mod demo;
mod election;
mod parent_exit;
mod payment_api;
mod payment_provider;
mod serve;
mod signals;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Billing servers that elect a leader, which charges: the main example of tenure
#[derive(Debug, Parser)]
#[command(name = "billing", version, about)]
struct Cli {
    /// The format of the log on the standard error; RUST_LOG filters it
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
    /// Run a billing server: charges the renewals that fall due while it leads, and waits otherwise
    Serve(serve::Args),
    /// Run the simulated payment provider
    Provider(payment_provider::Args),
    /// Run a provider and several servers, kill and stop the leaders, and check the provider's ledger
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The demo prints its progress, and its child processes log to files.
    let level = if matches!(cli.command, Command::Demo(_)) { "error" } else { "info" };
    init_logging(cli.log_format, level);
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
        Command::Provider(args) => payment_provider::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(args).await,
    }
}

fn init_logging(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
