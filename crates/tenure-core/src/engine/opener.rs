//! How an elector gets its session: opened when first needed, by one task for all who wait.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{Instrument as _, debug, info_span, warn};

use super::{
    Shared,
    keeper::{self, Keeper},
    leading::LeadersTask,
    retry::{Retry, timed},
    session::Session,
    watchdog::Watched,
    window::{Sent, Window},
};
use crate::{
    Error, InvalidConfig,
    config::check_grace_period,
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, BackendSession, HeartbeatProof},
    sync::{Mutex, MutexGuard, timeout},
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Opener {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// Weak: when the task that opens ends before its time, nobody waits for it.
    Opening(Weak<watch::Sender<Option<Opened>>>),
    Open(Arc<Session>),
}

type Opened = Result<Arc<Session>, OpenError>;

#[derive(Clone, Debug)]
enum OpenError {
    Backend(BackendError),
    Config(InvalidConfig),
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Backend(error) => error.into(),
            OpenError::Config(error) => error.into(),
        }
    }
}

impl Opener {
    /// The session, opened now if there is none; waits for as long as the store cannot be reached.
    ///
    /// # Cancellation safety
    /// An opening that nobody waits for any more is given up after the request under way.
    pub(crate) async fn session(&self, shared: &Arc<Shared>) -> Result<Arc<Session>, Error> {
        let mut opened = {
            let mut state = lock(&self.state);
            let opening = match &*state {
                State::Open(session) if session.ended().is_none() => return Ok(Arc::clone(session)),
                State::Opening(sender) => sender.upgrade().map(|sender| sender.subscribe()),
                _ => None,
            };
            opening.unwrap_or_else(|| {
                let (sender, receiver) = watch::channel(None);
                let sender = Arc::new(sender);
                *state = State::Opening(Arc::downgrade(&sender));
                shared.runtime.spawn(open(Arc::clone(shared), Arc::clone(&self.state), sender));
                receiver
            })
        };
        let outcome = opened.wait_for(Option::is_some).await.map(|opened| opened.clone());
        match outcome {
            Ok(Some(opened)) => Ok(opened?),
            _ if shared.closing.is_cancelled() => Err(Error::Closed),
            _ => Err(Error::TaskEnded("opening a session panicked, or its runtime was shut down")),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long `close` waits for the answer to a session's opening. One that comes later leaves a session that expires by itself.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// Tries until a session is open, the failure is permanent, or nobody waits.
async fn open(shared: Arc<Shared>, state: Arc<Mutex<State>>, sender: Arc<watch::Sender<Option<Opened>>>) {
    let mut retry = Retry::new(shared.config.retry);
    loop {
        // Not interrupted by a drop of the waiters, nor at once by `close`, so that no session is left without an owner.
        let mut opening = Box::pin(open_once(&shared));
        let outcome = tokio::select! {
            biased;
            outcome = &mut opening => Some(outcome),
            () = shared.closing.cancelled() => timeout(LAST_ANSWER, &mut opening).await.ok(),
        };
        drop(opening);
        match outcome {
            None => return,
            Some(Ok(session)) => {
                *lock(&state) = State::Open(Arc::clone(&session));
                sender.send_replace(Some(Ok(session)));
                return;
            }
            Some(Err(OpenError::Backend(error))) if !error.is_permanent() => {
                shared.status.failed(&error);
                warn!(%error, "no session yet; trying again");
            }
            Some(Err(error)) => {
                if let OpenError::Backend(error) = &error {
                    shared.status.failed(error);
                }
                *lock(&state) = State::Idle;
                sender.send_replace(Some(Err(error)));
                return;
            }
        }
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = sender.closed() => {}
            () = retry.pause() => {}
        }
        let mut state = lock(&state);
        if sender.receiver_count() == 0 {
            debug!("nobody waits for a session any more");
            *state = State::Idle;
            return;
        }
    }
}

async fn open_once(shared: &Arc<Shared>) -> Result<Arc<Session>, OpenError> {
    let config = &shared.config;
    let clock = &*shared.clock;
    let sent = Sent::now(clock);
    let spi = timed("opening a session", config.request_timeout, shared.backend.open_session(config.ttl))
        .await
        .map_err(OpenError::Backend)?;
    let sent = if is_disabled(SafetyRule::OpeningFromRequestStart) { Sent::now(clock) } else { sent };
    let ttl = spi.granted_ttl();
    let window = if spi.proof() == HeartbeatProof::Process {
        Window::endless(clock, ttl, config.drift, config.grace_period())
    } else {
        Window::opened(sent, ttl, config.drift, config.grace_period())
    };
    let most = keeper::largest_grace_period(spi.proof(), ttl, config.drift, config.grace_period());
    if let Err(error) = check_grace_period(config.grace_period(), ttl, most) {
        close_unused(shared, &*spi).await;
        return Err(OpenError::Config(error));
    }
    if window.check(clock, window.budget()).is_err() {
        close_unused(shared, &*spi).await;
        return Err(OpenError::Backend(BackendError::new(
            BackendErrorKind::Unavailable,
            "opening a session took nearly as long as the session lives",
        )));
    }
    let session = Session::new(spi, Arc::clone(shared), window);
    let watched: Weak<dyn Watched> = Arc::downgrade(&session) as Weak<dyn Watched>;
    shared.watchdog.watch(watched);
    shared.status.session_opened(session.spi.id());
    debug!(session = session.spi.id(), ttl = %humantime::format_duration(ttl), "session opened");
    let span = info_span!("session", session = session.spi.id());
    if is_disabled(SafetyRule::GuardBeforeSpawn) {
        let (leaders, keeper) = (Arc::clone(&session), Arc::clone(&session));
        shared.runtime.spawn(async move { LeadersTask::new(&leaders).run().await });
        shared.runtime.spawn(async move { Keeper::new(&keeper, sent).run().await });
        return Ok(session);
    }
    // Both are made before either is spawned: a task that is dropped before its first poll ends the session.
    let (leaders, keeper) = (LeadersTask::new(&session), Keeper::new(&session, sent));
    shared.runtime.spawn(leaders.run().instrument(span.clone()));
    shared.runtime.spawn(keeper.run().instrument(span));
    Ok(session)
}

async fn close_unused(shared: &Shared, spi: &dyn BackendSession) {
    if let Err(error) = timed("closing a session", shared.config.request_timeout, spi.close()).await {
        warn!(%error, "an unused session was not closed; it expires by itself");
    }
}
