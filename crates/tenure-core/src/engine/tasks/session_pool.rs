//! Opens a session when a campaign needs one. One task opens it for all campaigns that wait.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{Instrument as _, debug, info_span, warn};

use super::{active_terms::ActiveTermsTask, session::Session, session_task::SessionTask};
use crate::{
    Error, InvalidConfig,
    config::check_grace_period,
    engine::{
        elector_context::ElectorContext,
        enforcement::watchdog::Watched,
        rules::{
            heartbeat,
            window::{SentAt, Window},
        },
        runtime::retry::{Retry, with_timeout},
    },
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, BackendSession, HeartbeatProof},
    sync::{Mutex, MutexGuard, timeout},
};

/// Holds the session that all elections of an elector share. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionPool {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// Weak: when the task that opens the session is aborted, no campaign waits for it.
    Opening(Weak<watch::Sender<Option<OpenResult>>>),
    Open(Arc<Session>),
}

type OpenResult = Result<Arc<Session>, OpenError>;

/// Why a session cannot be opened, or not be used.
#[derive(Clone, Debug)]
pub(crate) enum OpenError {
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

impl SessionPool {
    /// The session. Opens one if there is none, and waits for as long as the store cannot be reached.
    ///
    /// # Cancellation safety
    /// When no caller waits any more, opening stops after the request in flight.
    pub(crate) async fn session(&self, shared: &Arc<ElectorContext>) -> Result<Arc<Session>, Error> {
        let mut receiver = {
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
        let outcome = receiver.wait_for(Option::is_some).await.map(|result| result.clone());
        match outcome {
            Ok(Some(result)) => Ok(result?),
            _ if shared.closing.is_cancelled() => Err(Error::Closed),
            _ => Err(Error::TaskEnded("opening a session panicked, or its runtime was shut down")),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long `close` waits for the response to the opening of a session. A session that is opened by a later
/// response expires by itself.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(500);

/// Retries until a session is open, the failure is permanent, or no caller waits.
async fn open(
    shared: Arc<ElectorContext>,
    state: Arc<Mutex<State>>,
    sender: Arc<watch::Sender<Option<OpenResult>>>,
) {
    let mut retry = Retry::new(shared.config.retry);
    loop {
        // Interrupted neither when all callers are gone, nor at once by `close`: each would leave a session
        // without an owner.
        let mut opening = Box::pin(open_once(&shared));
        let outcome = tokio::select! {
            biased;
            outcome = &mut opening => Some(outcome),
            () = shared.closing.cancelled() => timeout(CLOSING_TIMEOUT, &mut opening).await.ok(),
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
            debug!("no campaign waits for a session any more");
            *state = State::Idle;
            return;
        }
    }
}

/// A session of the backend that suits the settings.
pub(crate) struct OpenedSession {
    pub(crate) backend_session: Box<dyn BackendSession>,
    sent: SentAt,
    window: Window,
}

/// Opens a session of the backend, and closes it again if it does not suit the settings.
pub(crate) async fn open_backend_session(shared: &ElectorContext) -> Result<OpenedSession, OpenError> {
    let config = &shared.config;
    let clock = &*shared.clock;
    let sent = SentAt::now(clock);
    let backend_session =
        with_timeout("opening a session", config.request_timeout, shared.backend.open_session(config.ttl))
            .await
            .map_err(OpenError::Backend)?;
    let sent = if is_disabled(SafetyRule::OpeningFromRequestStart) { SentAt::now(clock) } else { sent };
    let ttl = backend_session.granted_ttl();
    let window = if backend_session.proof() == HeartbeatProof::Process {
        Window::endless(clock, ttl, config.drift, config.grace_period())
    } else {
        Window::opened(sent, ttl, config.drift, config.grace_period()).on_clock_jump(config.on_clock_jump)
    };
    let max =
        heartbeat::largest_grace_period(backend_session.proof(), ttl, config.drift, config.grace_period());
    if let Err(error) = check_grace_period(config.grace_period(), ttl, max) {
        close_unused(shared, &*backend_session).await;
        return Err(OpenError::Config(error));
    }
    if window.check(clock, window.grace_period()).is_err() {
        close_unused(shared, &*backend_session).await;
        return Err(OpenError::Backend(BackendError::new(
            BackendErrorKind::Unavailable,
            "opening a session took nearly as long as the session lives",
        )));
    }
    Ok(OpenedSession { backend_session, sent, window })
}

async fn open_once(shared: &Arc<ElectorContext>) -> Result<Arc<Session>, OpenError> {
    let OpenedSession { backend_session, sent, window } = open_backend_session(shared).await?;
    let ttl = backend_session.granted_ttl();
    let session = Session::new(backend_session, Arc::clone(shared), window);
    let watched: Weak<dyn Watched> = Arc::downgrade(&session) as Weak<dyn Watched>;
    shared.watchdog.watch(watched);
    shared.status.session_opened(session.backend_session.id());
    debug!(session = session.backend_session.id(), ttl = %humantime::format_duration(ttl), "session opened");
    let span = info_span!("session", session = session.backend_session.id());
    if is_disabled(SafetyRule::GuardBeforeSpawn) {
        let (terms_session, task_session) = (Arc::clone(&session), Arc::clone(&session));
        shared.runtime.spawn(async move { ActiveTermsTask::new(&terms_session).run().await });
        shared.runtime.spawn(async move { SessionTask::new(&task_session, sent).run().await });
        return Ok(session);
    }
    // Both are created before either is spawned: a task that is dropped before its first poll ends the session.
    let (active_terms, session_task) = (ActiveTermsTask::new(&session), SessionTask::new(&session, sent));
    shared.runtime.spawn(active_terms.run().instrument(span.clone()));
    shared.runtime.spawn(session_task.run().instrument(span));
    Ok(session)
}

/// Closes a session of which no task knows.
pub(crate) async fn close_unused(shared: &ElectorContext, backend_session: &dyn BackendSession) {
    if let Err(error) =
        with_timeout("closing a session", shared.config.request_timeout, backend_session.close()).await
    {
        warn!(%error, "an unused session was not closed; it expires by itself");
    }
}
