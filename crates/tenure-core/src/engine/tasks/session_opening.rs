//! Opens a session: one attempt.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tracing::{Instrument as _, debug, info_span, warn};

use super::{
    events::{CandidateNumber, EventSender, SessionNumber},
    session::Session,
    session_task::SessionTask,
};
use crate::{
    ElectionName, Error, InvalidConfig,
    config::check_grace_period,
    engine::{
        elector_context::ElectorContext,
        enforcement::watchdog::Watched,
        rules::{heartbeat, window::Window},
        runtime::retry::with_timeout,
    },
    failpoints::{SafetyRule, is_disabled},
    spi::{
        BackendError, BackendErrorKind, BackendSession, HeartbeatProof, SessionOptions, SessionScope, Stamp,
    },
    sync::timeout,
    telemetry,
};

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

/// How long `close` waits for the response to the opening of a session. A session that is opened by a later
/// response expires by itself.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(500);

/// The session that is requested.
pub(super) struct SessionRequest {
    pub(super) number: SessionNumber,
    /// The candidate whose session it is, if a session serves one election.
    pub(super) owner: Option<CandidateNumber>,
    /// As in [`session_options`].
    pub(super) election: Option<ElectionName>,
    pub(super) events: EventSender,
}

/// Opens a session, and starts its task; `None` when the elector is closed meanwhile. Not to be dropped once polled: no
/// task would know the session, which would stay until its TTL.
pub(super) async fn open(
    shared: Arc<ElectorContext>,
    request: SessionRequest,
) -> Option<Result<Arc<Session>, OpenError>> {
    if let Some(resume) = &shared.resume {
        tokio::select! {
            biased;
            () = shared.closing.cancelled() => {}
            () = resume.end_earlier_sessions(&*shared.backend, &shared.config) => {}
        }
    }
    if shared.closing.is_cancelled() {
        return None;
    }
    let mut opening = Box::pin(open_now(&shared, request));
    let outcome = tokio::select! {
        biased;
        outcome = &mut opening => Some(outcome),
        () = shared.closing.cancelled() => timeout(CLOSING_TIMEOUT, &mut opening).await.ok(),
    };
    if let Some(Err(OpenError::Backend(error))) = &outcome {
        shared.status.failed(error);
    }
    outcome
}

/// A session of the backend that suits the settings.
pub(crate) struct OpenedSession {
    pub(crate) backend_session: Box<dyn BackendSession>,
    window: Window,
}

/// Opens a session of the backend, and closes it again if it does not suit the settings. `election` as in [`session_options`].
pub(crate) async fn open_backend_session(
    shared: &ElectorContext,
    election: Option<ElectionName>,
) -> Result<OpenedSession, OpenError> {
    let config = &shared.config;
    let clock = &*shared.clock;
    let options = session_options(shared, election);
    let sent = Stamp::now(clock);
    let opening = shared.backend.open_session(&options);
    let backend_session = with_timeout("opening a session", config.request_timeout, opening)
        .await
        .map_err(OpenError::Backend)?;
    let sent = if is_disabled(SafetyRule::OpeningFromRequestStart) { Stamp::now(clock) } else { sent };
    let ttl = backend_session.granted_ttl();
    let window = if backend_session.proof() == HeartbeatProof::Process {
        Window::endless(clock, ttl, config.drift, config.grace_period())
    } else if options.election.is_some() {
        Window::not_open(ttl, config.drift, config.grace_period()).on_clock_jump(config.on_clock_jump)
    } else {
        Window::opened(sent, ttl, config.drift, config.grace_period()).on_clock_jump(config.on_clock_jump)
    };
    let max =
        heartbeat::largest_grace_period(backend_session.proof(), ttl, config.drift, config.grace_period());
    if let Err(error) = check_grace_period(config.grace_period(), ttl, max) {
        close_unused(shared, &*backend_session).await;
        return Err(OpenError::Config(error));
    }
    if window.is_open() && window.check(clock, window.grace_period()).is_err() {
        close_unused(shared, &*backend_session).await;
        return Err(OpenError::Backend(BackendError::new(
            BackendErrorKind::Unavailable,
            "opening a session took nearly as long as the session lives",
        )));
    }
    Ok(OpenedSession { backend_session, window })
}

/// The options for a session. `election` is ignored if a session serves all elections.
pub(crate) fn session_options(shared: &ElectorContext, election: Option<ElectionName>) -> SessionOptions {
    let scope = shared.backend.capabilities().session_scope;
    let options = SessionOptions::new(shared.config.ttl, Arc::clone(&shared.clock), shared.config.drift);
    SessionOptions { election: election.filter(|_| scope == SessionScope::Election), ..options }
}

async fn open_now(shared: &Arc<ElectorContext>, request: SessionRequest) -> Result<Arc<Session>, OpenError> {
    let SessionRequest { number, owner, election, events } = request;
    let OpenedSession { backend_session, window } = open_backend_session(shared, election).await?;
    let ttl = backend_session.granted_ttl();
    if let Some(resume) = &shared.resume {
        resume.save(&*backend_session, shared.config.request_timeout).await;
    }
    let session = Session::new(backend_session, Arc::clone(shared), window, number, owner, events);
    let watched: Weak<dyn Watched> = Arc::downgrade(&session) as Weak<dyn Watched>;
    shared.watchdog.watch(watched);
    // One that serves one election may be opened without a request: what it enters by is answered first.
    if session.owner.is_none() {
        shared.status.answered();
    }
    shared.status.session_opened(session.backend_session.id());
    if session.backend_session.proof() != HeartbeatProof::Process {
        telemetry::session_opened(ttl);
    }
    debug!(session = session.backend_session.id(), ttl = %humantime::format_duration(ttl), "session opened");
    let span = info_span!("session", session = session.backend_session.id());
    if is_disabled(SafetyRule::GuardBeforeSpawn) {
        let unguarded = Arc::clone(&session);
        shared.runtime.spawn(async move { SessionTask::new(&unguarded).run().await });
        return Ok(session);
    }
    // Created before it is spawned: a task that is dropped before its first poll ends the session.
    let session_task = SessionTask::new(&session);
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
