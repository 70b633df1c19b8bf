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
    progress, say,
    signals::{self, Received},
    store,
};
use program::{Program, check_grace_period};

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

/// What came of it all.
struct Outcome {
    code: u8,
}

/// The end that a signal has asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shutdown {
    /// When the first such signal came.
    since: Option<Instant>,
    timeout: Duration,
}

impl Shutdown {
    /// A signal asks for an end.
    pub(super) fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// When the program is killed, so that there is time left to release leadership in the store.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        Some(self.since? + self.timeout * 4 / 5)
    }

    /// Returns when the end has taken too long.
    async fn over(&self) {
        match self.since {
            Some(since) => tokio::time::sleep_until(since + self.timeout).await,
            None => std::future::pending().await,
        }
    }
}

/// Runs the program on this node only; its exit code.
pub(crate) async fn run(options: &args::Run) -> Result<u8> {
    let config = config(options)?;
    // Before anything else: whoever is told to end leaves nothing behind.
    let mut signals = signals::listen().context("cannot listen to signals")?;
    crate::processes::adopt_orphans().context("cannot look after what the program starts")?;
    let elector = store::connect(options.store.url.as_deref(), config).await?;
    let id = elector.candidate().to_string();
    let mut shutdown = Shutdown { since: None, timeout: elector.shutdown_timeout() };
    let outcome = terms(options, &*elector, &id, &mut signals, &mut shutdown).await;
    tokio::select! {
        // Says itself what is left.
        () = elector.close() => {}
        _ = end(&mut signals) => say("interrupted: what is left in the store goes with its session, within the TTL"),
        () = shutdown.over() => {
            say("the store has not confirmed the end in time: what is left goes with its session, within the TTL");
        }
    }
    outcome.map(|outcome| outcome.code)
}

async fn terms(
    options: &args::Run,
    elector: &dyn Elector,
    id: &str,
    signals: &mut UnboundedReceiver<Received>,
    shutdown: &mut Shutdown,
) -> Result<Outcome> {
    let interrupted = |shutdown: &mut Shutdown, signal: Received| {
        shutdown.begin();
        Outcome { code: exit::by_signal(signal.number) }
    };
    let mut waits = backoff(options);
    loop {
        let leadership = match campaign(options, elector, id, signals).await? {
            Campaign::Won(leadership) => leadership,
            Campaign::NotElected => return Ok(Outcome { code: exit::NOT_ELECTED }),
            Campaign::Interrupted(signal) => return Ok(interrupted(shutdown, signal)),
        };
        while let Ok(signal) = signals.try_recv() {
            if signal.ends() {
                return Ok(interrupted(shutdown, signal));
            }
        }
        let began = Instant::now();
        let term = lead(options, &leadership, signals, shutdown).await;
        tokio::select! {
            resigned = leadership.resign() => match resigned {
                // Lost already: nothing of ours is left.
                Ok(()) | Err(Error::Lost(_)) => {}
                Err(error) => say(&error.to_string()),
            },
            _ = end(signals) => shutdown.begin(),
            () = shutdown.over() => {}
        }
        let (code, failed) = match term? {
            Term::Ended(Ended::Exited(code)) => (u8::try_from(code).unwrap_or(u8::MAX), code != 0),
            Term::Ended(Ended::Signaled(signal)) => (exit::by_signal(signal), true),
            Term::Lost(reason) => {
                say(&format!("leadership of {} was lost: {reason}", options.store.election));
                (exit::LOST, true)
            }
        };
        let again = match options.restart {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        if shutdown.has_begun() || !again {
            return Ok(Outcome { code });
        }
        if !failed || began.elapsed() > options.max_backoff {
            waits = backoff(options);
        }
        let wait = waits.next().unwrap_or(options.max_backoff);
        tracing::info!(election = options.store.election, code, wait = %humantime::format_duration(wait),
            "the term is over; campaigning again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            signal = end(signals) => return Ok(interrupted(shutdown, signal)),
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
    signals: &mut UnboundedReceiver<Received>,
    shutdown: &mut Shutdown,
) -> Result<Term> {
    let mut program = match Program::start(options, leadership) {
        Err(error) => match leadership.loss() {
            Some(reason) => return Ok(Term::Lost(reason.to_string())),
            None => return Err(error),
        },
        Ok(program) => program,
    };
    let outcome = leadership.run(program.mind(leadership, signals, shutdown)).await;
    // Dropped at the deadline, or at once where the store says that somebody else may lead.
    program.rest().await?;
    let lost = match &outcome {
        Err(lost) => Some(lost.reason),
        Ok(_) => leadership.loss(),
    };
    if let Some(reason) = lost {
        return Ok(Term::Lost(reason.to_string()));
    }
    match outcome.ok().transpose()? {
        Some(end) if !end.out_of_time => Ok(Term::Ended(end.how)),
        _ => Ok(Term::Lost("its deadline was too near".to_owned())),
    }
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
    if let Some(budget) = options.grace_period {
        config = config.with_grace_period(budget);
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
