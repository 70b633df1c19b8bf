//! `tenure run`: campaigns, runs the program, resigns, and campaigns again if wanted.

mod program;
mod reports;
mod service_manager;
mod shutdown;

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tenure::{Config, Elector, Error, Leadership, LeadershipHandle, OnOverrun, Settings};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout},
};

use crate::{
    args::{self, Restart},
    end_session::SessionToEnd,
    exit,
    guard_protocol::ProgramExit,
    messages, nesting, processes, progress,
    signals::{self, ReceivedSignal},
    store::Store,
    waiting::{self, Limit},
};
use program::{Program, check_grace_period};
use reports::Reports;
use service_manager::{Phase, ServiceManager};
use shutdown::Shutdown;

/// A program that succeeds within this time does not reset the delay before the next campaign.
const MIN_WORK: Duration = Duration::from_secs(1);
/// How long `--try` waits for an answer of the store. Longer than a request, which fails with the reason after 5 s.
const DEFAULT_TRY_LIMIT: Limit = Limit::of(Duration::from_secs(6));
/// How long a candidate that is not elected waits to learn who leads.
const LEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the start of a program waits until its session is known to the guard.
const PIN_TIMEOUT: Duration = Duration::from_secs(1);

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
    NotElected { reason: String, store_failed: bool },
    Interrupted(ReceivedSignal),
}

/// Runs the program while this node is the leader. Returns the exit code.
pub(crate) async fn run(options: &args::Run) -> Result<u8> {
    let store = Store::new(options.store.url.as_deref())?;
    let config = config(options, &store)?;
    nesting::refuse(&store, &options.store.election)?;
    let service_manager = ServiceManager::from_environment()?;
    // First of all, so that a termination signal always ends in a clean shutdown.
    let mut signals = signals::subscribe().context("cannot handle signals")?;
    processes::adopt_orphans().context("cannot supervise the program's processes")?;
    // Those that died before, whose signal nobody received.
    processes::reap_orphans();
    let elector = store.connect(config).await?;
    if store.is_default {
        messages::try_inform(&format!(
            "no --store is given: one leader among the processes that use {}",
            store.name
        ));
    }
    let id = elector.candidate_id().to_string();
    let mut shutdown = Shutdown::new(elector.shutdown_timeout(), &service_manager);
    let run = async {
        let exit_code = tokio::select! {
            exit_code = run_terms(options, &*elector, &store, &id, &mut signals, &mut shutdown, &service_manager) => exit_code,
            never = waiting::advise_in_outages(&*elector, &store), if !options.try_once => match never {},
        };
        service_manager.stopping(shutdown.left());
        let outcome = tokio::select! {
            outcome = elector.close_within(shutdown.left()) => outcome,
            _ = signals::termination(&mut signals) => elector.close_within(Duration::ZERO).await,
        };
        (exit_code, outcome)
    };
    let (exit_code, outcome) = tokio::select! {
        ended = run => ended,
        never = service_manager.report(&*elector, &store, &options.store.election, !options.try_once) => match never {},
    };
    if !outcome.confirmed {
        let expires_in =
            humantime::format_duration(Duration::from_secs(outcome.expires_in.as_secs().saturating_add(1)));
        messages::try_print(&format!(
            "the store has not confirmed that the entry was removed: another node leads within {expires_in}"
        ));
    }
    exit_code
}

/// Campaigns and runs the program, until a signal or `--restart` ends that. Returns the exit code.
async fn run_terms(
    options: &args::Run,
    elector: &dyn Elector,
    store: &Store,
    id: &str,
    signals: &mut UnboundedReceiver<ReceivedSignal>,
    shutdown: &mut Shutdown<'_>,
    service_manager: &ServiceManager,
) -> Result<u8> {
    let interrupted = |shutdown: &mut Shutdown<'_>, signal: ReceivedSignal| {
        shutdown.begin();
        exit::from_signal(signal.number)
    };
    let mut delays = backoff(options);
    let mut reports = Reports::default();
    loop {
        service_manager.set_phase(Phase::Campaigning);
        let leadership = match campaign(options, elector, store, id, signals).await? {
            CampaignEnd::Elected(leadership) => leadership,
            CampaignEnd::NotElected { reason, store_failed } => {
                if store_failed || !options.quiet {
                    messages::print_last(&format!("not elected: {reason}"));
                }
                return Ok(exit::NOT_ELECTED);
            }
            CampaignEnd::Interrupted(signal) => return Ok(interrupted(shutdown, signal)),
        };
        while let Ok(signal) = signals.try_recv() {
            if signal.is_termination() {
                return Ok(interrupted(shutdown, signal));
            }
        }
        service_manager
            .set_phase(Phase::Leader { since: SystemTime::now(), token: leadership.fencing_token() });
        reports.begin_term();
        if !options.quiet && reports.may_print() {
            let (token, number) = (leadership.fencing_token(), reports.number());
            messages::try_inform(&format!("leads {} with token {token}{number}", options.store.election));
        }
        let began = Instant::now();
        let term_end = run_program(options, store, &leadership, signals, shutdown).await;
        tokio::select! {
            resigned = leadership.resign() => match resigned {
                // After a loss there is nothing to resign.
                Ok(()) | Err(Error::Lost(_)) => {}
                Err(error) => drop(messages::try_print(&format!("{:#}", anyhow::Error::from(error)))),
            },
            _ = signals::termination(signals) => shutdown.begin(),
            () = shutdown.timed_out() => {}
        }
        let (code, failed) = match term_end? {
            TermEnd::ProgramExit(ProgramExit::Exited(code)) => {
                (u8::try_from(code).unwrap_or(u8::MAX), code != 0)
            }
            TermEnd::ProgramExit(ProgramExit::Signaled(signal)) => (exit::from_signal(signal), true),
            TermEnd::LeadershipLost(reason) => {
                let lost = format!("leadership of {} was lost: {reason}", options.store.election);
                match options.restart {
                    Restart::Never => messages::print_last(&lost),
                    Restart::OnFailure | Restart::Always => drop(messages::try_print(&lost)),
                }
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
        // A program that exits at once, over and over, is slowed down even if it succeeds.
        let has_worked = !failed && began.elapsed() > MIN_WORK;
        if has_worked || began.elapsed() > options.max_backoff {
            delays = backoff(options);
        }
        let delay = delays.next().unwrap_or(options.max_backoff);
        if !options.quiet && reports.may_print() {
            let delay = humantime::format_duration(Duration::from_millis(
                u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            ));
            messages::try_inform(&format!(
                "no longer leads {} (exit code {code}){}; campaigns again in {delay}",
                options.store.election,
                reports.number()
            ));
        }
        service_manager.set_phase(Phase::Pausing { delay });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            signal = signals::termination(signals) => return Ok(interrupted(shutdown, signal)),
        }
    }
}

async fn campaign(
    options: &args::Run,
    elector: &dyn Elector,
    store: &Store,
    id: &str,
    signals: &mut UnboundedReceiver<ReceivedSignal>,
) -> Result<CampaignEnd> {
    let election = &options.store.election;
    // One failed request is enough: tries that wait for the store would all run their programs, one after the other, when
    // it answers again.
    let failure = async {
        if !options.try_once {
            return std::future::pending().await;
        }
        // Without any time, no store could answer.
        let limit = options.timeout.filter(|limit| !limit.is_zero());
        waiting::failure(elector, limit.unwrap_or(DEFAULT_TRY_LIMIT)).await
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
        std::future::pending::<Infallible>().await
    };
    // A try has its own.
    let limit = options.timeout.filter(|_| !options.try_once).unwrap_or(Limit::NONE);
    tokio::select! {
        biased;
        signal = signals::termination(signals) => Ok(CampaignEnd::Interrupted(signal)),
        elected = campaign => match elected? {
            Some(leadership) => Ok(CampaignEnd::Elected(leadership)),
            None => {
                let reason = leader_of(elector, election).await;
                Ok(CampaignEnd::NotElected { reason, store_failed: false })
            }
        },
        error = failure => {
            Ok(CampaignEnd::NotElected { reason: waiting::outage(&store.name, error.as_deref()), store_failed: true })
        }
        () = limit.elapsed() => {
            let error = waiting::last_error(elector)
                .map(|error| format!("; {}", waiting::outage(&store.name, Some(&error))));
            let store_failed = error.is_some();
            let reason = format!("not within {limit}{}", error.unwrap_or_default());
            Ok(CampaignEnd::NotElected { reason, store_failed })
        }
        never = progress => match never {},
    }
}

/// Says who leads, as far as the store answers soon.
async fn leader_of(elector: &dyn Elector, election: &str) -> String {
    let leader = timeout(LEADER_TIMEOUT, elector.leader(election)).await;
    match leader.ok().and_then(Result::ok).flatten() {
        Some(leader) => format!("{} leads {election}", leader.id.escape_debug()),
        None => format!("another candidate leads {election} or is about to"),
    }
}

/// Runs the program for one term: until it ends, or until leadership is lost.
async fn run_program(
    options: &args::Run,
    store: &Store,
    leadership: &Leadership,
    signals: &mut UnboundedReceiver<ReceivedSignal>,
    shutdown: &mut Shutdown<'_>,
) -> Result<TermEnd> {
    let session = pin_session(options, store, leadership).await;
    let mut program = match Program::start(options, store, leadership, session.as_ref()) {
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

/// The session of this leadership, for the guard; `None` where the session ends with this process. Without it the program runs
/// all the same.
async fn pin_session(
    options: &args::Run,
    store: &Store,
    leadership: &LeadershipHandle,
) -> Option<SessionToEnd> {
    let reason = match timeout(PIN_TIMEOUT, leadership.session_record()).await {
        Ok(Ok(record)) => return record.map(|record| SessionToEnd::new(options, store, record)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {}", humantime::format_duration(PIN_TIMEOUT)),
    };
    say_session_not_pinned(&reason);
    None
}

/// Says once why a `tenure run` that is killed does not hand over at once.
fn say_session_not_pinned(reason: &str) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    if !IS_SAID.swap(true, Ordering::SeqCst) {
        messages::try_print(&format!(
            "should tenure be killed, another node leads after the TTL only: the session cannot be identified: {reason}"
        ));
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

fn config(options: &args::Run, store: &Store) -> Result<Config> {
    let mut settings = Settings::new(store.url(), &options.store.election);
    settings.candidate.clone_from(&options.id);
    settings.value.clone_from(&options.value);
    settings.ttl = options.ttl;
    settings.grace_period = options.grace_period;
    settings.shutdown_timeout = options.shutdown_timeout;
    let mut config = settings.config()?;
    if options.on_overrun == args::OnOverrun::Abort {
        config = config.with_on_overrun(OnOverrun::Abort);
    }
    config.validate()?;
    check_grace_period(config.grace_period())?;
    Ok(config)
}
