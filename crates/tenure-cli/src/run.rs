//! `tenure run`: campaigns, runs the program, hands over, and perhaps begins again.

mod program;

use std::time::Duration;

use anyhow::{Context as _, Result};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tenure::{CandidateId, Config, Elector, Error, Leadership, OnOverrun};
use tokio::{sync::mpsc::UnboundedReceiver, time::Instant};

use crate::{
    args::{self, Restart},
    exit,
    orders::Ended,
    progress,
    signals::{self, Received},
    store,
};
use program::Program;

/// How a term ended.
enum Term {
    /// With the program.
    Ended(Ended),
    /// Leadership was lost, and the program stopped or was killed.
    Lost(String),
}

/// How a campaign ended.
enum Campaign {
    Won(Leadership),
    NotElected,
    Interrupted(Received),
}

/// Runs the program on this node only; its exit code.
pub(crate) async fn run(options: &args::Run) -> Result<u8> {
    let config = config(options)?;
    let (stop_budget, id) = (config.stop_budget(), config.id().to_string());
    // Before anything else: whoever is told to end leaves nothing behind.
    let mut signals = signals::listen().context("cannot listen to signals")?;
    crate::processes::adopt_orphans().context("cannot adopt what the program leaves behind")?;
    let elector = store::connect(&options.store, config).await?;
    let outcome = terms(options, &*elector, &id, stop_budget, &mut signals).await;
    elector.close().await;
    outcome
}

async fn terms(
    options: &args::Run,
    elector: &dyn Elector,
    id: &str,
    stop_budget: Duration,
    signals: &mut UnboundedReceiver<Received>,
) -> Result<u8> {
    let mut waits = backoff(options);
    loop {
        let leadership = match campaign(options, elector, id, signals).await? {
            Campaign::Won(leadership) => leadership,
            Campaign::NotElected => return Ok(exit::NOT_ELECTED),
            Campaign::Interrupted(signal) => return Ok(exit::by_signal(signal.number)),
        };
        let began = Instant::now();
        let mut told_to_end = false;
        let term = lead(options, &leadership, stop_budget, signals, &mut told_to_end).await;
        // Confirmed, or lost already: in either case nothing of ours is left.
        let _ = leadership.resign().await;
        let (code, failed) = match term? {
            Term::Ended(Ended::Exited(code)) => (u8::try_from(code).unwrap_or(u8::MAX), code != 0),
            Term::Ended(Ended::Signaled(signal)) => (exit::by_signal(signal), true),
            Term::Lost(reason) => {
                eprintln!("tenure: leadership of {} was lost: {reason}", options.store.election);
                (exit::LOST, true)
            }
        };
        let again = match options.restart {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        if told_to_end || !again {
            return Ok(code);
        }
        if !failed || began.elapsed() > options.max_backoff {
            waits = backoff(options);
        }
        let wait = waits.next().unwrap_or(options.max_backoff);
        tracing::info!(election = options.store.election, code, wait = %humantime::format_duration(wait),
            "the term is over; campaigning again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            signal = end(signals) => return Ok(exit::by_signal(signal.number)),
        }
    }
}

async fn campaign(
    options: &args::Run,
    elector: &dyn Elector,
    id: &str,
    signals: &mut UnboundedReceiver<Received>,
) -> Result<Campaign> {
    let election = &options.store.election;
    let limit = async {
        match options.timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let campaign = async {
        if options.tries {
            return elector.try_campaign(election).await;
        }
        elector.campaign(election).await.map(Some)
    };
    let telling = async {
        if !options.quiet && !options.tries {
            progress::tell(elector, election, id).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        signal = end(signals) => Ok(Campaign::Interrupted(signal)),
        won = campaign => Ok(won?.map_or(Campaign::NotElected, Campaign::Won)),
        () = limit => Ok(Campaign::NotElected),
        () = telling => Ok(Campaign::NotElected),
    }
}

/// One term: the program runs until it ends, or until leadership is over.
async fn lead(
    options: &args::Run,
    leadership: &Leadership,
    stop_budget: Duration,
    signals: &mut UnboundedReceiver<Received>,
    told_to_end: &mut bool,
) -> Result<Term> {
    let mut program = Program::start(options, leadership, stop_budget)?;
    let ended = leadership.run(program.mind(leadership, signals, told_to_end)).await;
    // Dropped at the deadline, or at once where the store says that somebody else may lead.
    let dead = program.end().await;
    let lost = match &ended {
        Err(lost) => Some(lost.reason),
        Ok(_) => leadership.loss(),
    };
    if let Some(reason) = lost {
        return Ok(Term::Lost(reason.to_string()));
    }
    let told = ended.ok().transpose()?.flatten();
    Ok(Term::Ended(told.map_or(dead, Ok)?))
}

/// The next signal that wants an end.
async fn end(signals: &mut UnboundedReceiver<Received>) -> Received {
    loop {
        match signals.recv().await {
            Some(signal) if signal.ends() => return signal,
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

fn config(options: &args::Run) -> Result<Config, Error> {
    let mut config = Config::new();
    if let Some(id) = &options.id {
        config = config.with_id(CandidateId::new(id)?);
    }
    if let Some(value) = &options.value {
        config = config.with_value(value.as_bytes());
    }
    if let Some(ttl) = options.ttl {
        config = config.with_ttl(ttl);
    }
    if let Some(budget) = options.stop_budget {
        config = config.with_stop_budget(budget);
    }
    if options.on_overrun == args::OnOverrun::Abort {
        config = config.with_on_overrun(OnOverrun::Abort);
    }
    config.validate()?;
    Ok(config)
}
