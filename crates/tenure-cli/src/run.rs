//! `tenure run`: campaigns, runs the program, resigns, and campaigns again if wanted.

mod program;
mod shutdown;

use std::time::Duration;

use anyhow::{Context as _, Result};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tenure::{CandidateId, Config, Elector, Error, Leadership, OnOverrun};
use tokio::{sync::mpsc::UnboundedReceiver, time::Instant};

use crate::{
    args::{self, Restart},
    exit,
    guard_protocol::ProgramExit,
    messages, processes, progress,
    signals::{self, ReceivedSignal},
    store,
};
use program::{Program, check_grace_period};
use shutdown::Shutdown;

/// How a term ended.
enum TermEnd {
    /// The program ended.
    ProgramExit(ProgramExit),
    /// Leadership was lost, and the program was stopped or killed. The text is the reason.
    LeadershipLost(String),
}

/// How a campaign ended.
enum CampaignEnd {
    Elected(Leadership),
    NotElected,
    Interrupted(ReceivedSignal),
}

/// Runs the program while this node is the leader. Returns the exit code.
pub(crate) async fn run(options: &args::Run) -> Result<u8> {
    let config = config(options)?;
    // First of all, so that a termination signal always ends in a clean shutdown.
    let mut signals = signals::subscribe().context("cannot handle signals")?;
    processes::adopt_orphans().context("cannot supervise the program's processes")?;
    let elector = store::connect(options.store.url.as_deref(), config).await?;
    let id = elector.candidate_id().to_string();
    let mut shutdown = Shutdown::new(elector.shutdown_timeout());
    let exit_code = run_terms(options, &*elector, &id, &mut signals, &mut shutdown).await;
    let outcome = tokio::select! {
        outcome = elector.close_within(shutdown.left()) => outcome,
        _ = termination_signal(&mut signals) => elector.close_within(Duration::ZERO).await,
    };
    if !outcome.confirmed {
        let expires_in =
            humantime::format_duration(Duration::from_secs(outcome.expires_in.as_secs().saturating_add(1)));
        messages::print(&format!(
            "the store has not confirmed that the entry was removed: another node leads within {expires_in}"
        ));
    }
    exit_code
}

/// Campaigns and runs the program, until a signal or `--restart` ends that. Returns the exit code.
async fn run_terms(
    options: &args::Run,
    elector: &dyn Elector,
    id: &str,
    signals: &mut UnboundedReceiver<ReceivedSignal>,
    shutdown: &mut Shutdown,
) -> Result<u8> {
    let interrupted = |shutdown: &mut Shutdown, signal: ReceivedSignal| {
        shutdown.begin();
        exit::from_signal(signal.number)
    };
    let mut delays = backoff(options);
    loop {
        let leadership = match campaign(options, elector, id, signals).await? {
            CampaignEnd::Elected(leadership) => leadership,
            CampaignEnd::NotElected => return Ok(exit::NOT_ELECTED),
            CampaignEnd::Interrupted(signal) => return Ok(interrupted(shutdown, signal)),
        };
        while let Ok(signal) = signals.try_recv() {
            if signal.is_termination() {
                return Ok(interrupted(shutdown, signal));
            }
        }
        let began = Instant::now();
        let term_end = run_program(options, &leadership, signals, shutdown).await;
        tokio::select! {
            resigned = leadership.resign() => match resigned {
                // After a loss there is nothing to resign.
                Ok(()) | Err(Error::Lost(_)) => {}
                Err(error) => messages::print(&format!("{:#}", anyhow::Error::from(error))),
            },
            _ = termination_signal(signals) => shutdown.begin(),
            () = shutdown.timed_out() => {}
        }
        let (code, failed) = match term_end? {
            TermEnd::ProgramExit(ProgramExit::Exited(code)) => {
                (u8::try_from(code).unwrap_or(u8::MAX), code != 0)
            }
            TermEnd::ProgramExit(ProgramExit::Signaled(signal)) => (exit::from_signal(signal), true),
            TermEnd::LeadershipLost(reason) => {
                messages::print(&format!("leadership of {} was lost: {reason}", options.store.election));
                (exit::LEADERSHIP_LOST, true)
            }
        };
        let campaign_again = match options.restart {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        if shutdown.has_begun() || !campaign_again {
            return Ok(code);
        }
        if !failed || began.elapsed() > options.max_backoff {
            delays = backoff(options);
        }
        let delay = delays.next().unwrap_or(options.max_backoff);
        tracing::info!(election = options.store.election, code, delay = %humantime::format_duration(delay),
            "the term has ended; campaigning again");
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            signal = termination_signal(signals) => return Ok(interrupted(shutdown, signal)),
        }
    }
}

async fn campaign(
    options: &args::Run,
    elector: &dyn Elector,
    id: &str,
    signals: &mut UnboundedReceiver<ReceivedSignal>,
) -> Result<CampaignEnd> {
    let election = &options.store.election;
    let timeout = async {
        match options.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let campaign = async {
        if options.try_once {
            return elector.try_campaign(election).await;
        }
        elector.campaign(election).await.map(Some)
    };
    let progress = async {
        if !options.quiet && !options.try_once {
            progress::report(elector, election, id).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        signal = termination_signal(signals) => Ok(CampaignEnd::Interrupted(signal)),
        elected = campaign => Ok(elected?.map_or(CampaignEnd::NotElected, CampaignEnd::Elected)),
        () = timeout => Ok(CampaignEnd::NotElected),
        () = progress => Ok(CampaignEnd::NotElected),
    }
}

/// Runs the program for one term: until it ends, or until leadership is lost.
async fn run_program(
    options: &args::Run,
    leadership: &Leadership,
    signals: &mut UnboundedReceiver<ReceivedSignal>,
    shutdown: &mut Shutdown,
) -> Result<TermEnd> {
    let mut program = match Program::start(options, leadership) {
        Err(error) => match leadership.loss() {
            Some(reason) => return Ok(TermEnd::LeadershipLost(reason.to_string())),
            None => return Err(error),
        },
        Ok(program) => program,
    };
    let outcome = leadership.run(program.supervise(leadership, signals, shutdown)).await;
    // `Leadership::run` drops its work at the deadline, or at once if the store says that another node may lead. Then
    // the program may still be alive.
    program.kill_and_wait().await?;
    let lost = match &outcome {
        Err(lost) => Some(lost.reason),
        Ok(_) => leadership.loss(),
    };
    if let Some(reason) = lost {
        return Ok(TermEnd::LeadershipLost(reason.to_string()));
    }
    match outcome.ok().transpose()? {
        Some(end) if !end.time_limit_reached => Ok(TermEnd::ProgramExit(end.exit)),
        _ => Ok(TermEnd::LeadershipLost("its deadline was too close".to_owned())),
    }
}

/// Waits for a signal that asks this process to end. Discards others.
async fn termination_signal(signals: &mut UnboundedReceiver<ReceivedSignal>) -> ReceivedSignal {
    loop {
        match signals.recv().await {
            Some(signal) if signal.is_termination() => return signal,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

fn backoff(options: &args::Run) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(options.backoff)
        .with_max_delay(options.max_backoff)
        .without_max_times()
        .with_jitter()
        .build()
}

fn config(options: &args::Run) -> Result<Config> {
    let mut config = Config::new();
    if let Some(id) = &options.id {
        config = config.with_id(CandidateId::new(id).map_err(Error::from)?);
    }
    if let Some(value) = &options.value {
        config = config.with_value(value.as_bytes());
    }
    if let Some(ttl) = options.ttl {
        config = config.with_ttl(ttl);
    }
    if let Some(grace_period) = options.grace_period {
        config = config.with_grace_period(grace_period);
    }
    if let Some(timeout) = options.shutdown_timeout {
        config = config.with_shutdown_timeout(timeout);
    }
    if options.on_overrun == args::OnOverrun::Abort {
        config = config.with_on_overrun(OnOverrun::Abort);
    }
    config.validate()?;
    check_grace_period(config.grace_period())?;
    Ok(config)
}
