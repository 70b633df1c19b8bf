//! The `tenure` command: runs any program on one node only.

mod args;
mod doctor;
mod elections;
mod end_session;
mod exec;
mod exit;
mod guard;
mod guard_protocol;
mod limits;
mod listing;
mod messages;
mod nesting;
mod output;
mod processes;
mod progress;
mod query;
mod resign;
mod run;
mod serve;
mod signals;
mod store;
mod text;
mod top;
mod waiting;

use std::process::ExitCode;

use anyhow::Context as _;

use clap::{CommandFactory as _, FromArgMatches as _, builder::Resettable, error::ContextValue};

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
    let matches = without_empty_variables(Arguments::command()).try_get_matches();
    let arguments = match matches.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => return usage(without_urls(error)),
    };
    messages::set_format(arguments.log_format);
    match arguments.command {
        // These two run on one thread and without a runtime, so that nothing else can delay them.
        Command::Guard(options) => return guard::guard(&options),
        Command::Exec(options) => return exec::exec(&options),
        Command::Completions { shell } => {
            // Into memory, because it panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tenure", &mut script);
            return exit::exit_code(output::print_bytes(&script));
        }
        Command::Man { dir: Some(dir) } => {
            let written = std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(Arguments::command(), &dir))
                .with_context(|| format!("cannot write to {}", dir.display()));
            return exit::exit_code(written.map(|()| 0));
        }
        Command::Man { dir: None } => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Arguments::command()).render(&mut page);
            return exit::exit_code(rendered.map_err(Into::into).and_then(|()| output::print_bytes(&page)));
        }
        _ => {}
    }
    init_logging(arguments.verbose, &arguments.command);
    // The runtime has no threads of its own, which a limit on processes could refuse.
    let outcome = limits::check().and_then(|()| {
        // These have handlers of their own.
        let has_handlers = matches!(arguments.command, Command::Run(_) | Command::Serve(_) | Command::Top(_));
        if std::process::id() == 1 && !has_handlers {
            signals::end_at_termination().context("cannot handle signals")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(execute(arguments.command))
    });
    exit::exit_code(outcome)
}

/// Prints help, the version or what is wrong with the arguments. The format of the log is not parsed then.
fn usage(error: clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .take_while(|argument| argument != "--")
        .collect();
    let separate = arguments.windows(2).find(|pair| pair[0] == "--log-format").map(|pair| pair[1].clone());
    let option =
        arguments.iter().find_map(|argument| argument.strip_prefix("--log-format=")).map(str::to_owned);
    let format = separate.or(option).or_else(|| std::env::var("TENURE_LOG_FORMAT").ok());
    if !error.use_stderr() || format.as_deref() != Some("json") {
        error.exit();
    }
    messages::set_format(LogFormat::Json);
    messages::print(error.to_string().trim_end());
    exit::BAD_USAGE.into()
}

/// Makes an empty variable count as unset. Not `TENURE_STORE`: a script whose store is unset by mistake must not use the
/// default store.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let mut command = command.mut_args(|argument| {
        let variable = argument.get_env().filter(|name| *name != "TENURE_STORE");
        match variable.and_then(std::env::var_os).is_some_and(|value| value.is_empty()) {
            true => argument.env(Resettable::Reset),
            false => argument,
        }
    });
    for subcommand in command.get_subcommands_mut() {
        *subcommand = without_empty_variables(std::mem::take(subcommand));
    }
    command
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
        Command::Elections(options) => listing::elections(&options).await,
        Command::Top(options) => top::top(&options).await,
        Command::Resign(options) => resign::resign(&options).await,
        Command::Doctor(options) => doctor::doctor(&options).await,
        Command::EndSession => end_session::end_session().await,
        Command::Serve(options) => serve::serve(&options).await,
        Command::Guard(_) | Command::Exec(_) | Command::Completions { .. } | Command::Man { .. } => Ok(0),
    }
}

/// Logs to the standard error: the standard output belongs to the program.
fn init_logging(verbose: u8, command: &Command) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TENURE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_filter(verbose, command)));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| messages::LogWriter)
        .log_internal_errors(false);
    match messages::is_json() {
        false => lines.with_target(false).with_ansi(messages::has_colors()).init(),
        true => lines.json().init(),
    }
}

/// What is logged by default. The commands say themselves what goes on, in the terms of the command line.
fn default_filter(verbose: u8, command: &Command) -> String {
    let level = match verbose {
        // It says itself what came of it, in one line. On ZooKeeper the recipe says that nothing was found to end.
        0 if matches!(command, Command::EndSession) => {
            return "error,tenure_zookeeper::election::earlier_session=warn".to_owned();
        }
        0 => "warn",
        1 => return "info".to_owned(),
        2 => return "debug".to_owned(),
        _ => return "trace".to_owned(),
    };
    // Outages, of the store or of a member: queries and `doctor` report them, and a try ends at the first failure.
    let outages = match command {
        Command::Run(options) if !options.try_once => "info",
        Command::Serve(_) => "info",
        _ => "off",
    };
    if matches!(command, Command::Serve(_)) && verbose == 0 {
        // One line for each leadership that begins or ends.
        return format!(
            "{level},tenure_core::status={outages},tenure_etcd::transport::members::outage={outages},\
             tenure_core::engine::tasks::term=info,zookeeper_client=error,kube_client::client=off,async_nats=off"
        );
    }
    // `run` says that it leads, and why no more.
    // The clients of ZooKeeper, Kubernetes and NATS report each request or connection that fails. The outage is logged once.
    format!(
        "{level},tenure_core::status={outages},tenure_etcd::transport::members::outage={outages},\
         tenure_core::engine::tasks::term=error,zookeeper_client=error,kube_client::client=off,async_nats=off"
    )
}
