//! Resumes a session over a new connection, at whichever server answers first.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;
use zookeeper_client::Error;

use super::{
    connection::Connection,
    error::{backend_error, session_gone, unavailable},
    servers::Target,
    session_state::{MIN_HEDGE_DELAY, Phase, SessionState},
};

/// Tries servers until the session has another connection.
///
/// A frozen server neither answers nor refuses, so the others are tried repeatedly for as long as it is
/// silent. But a server that resumes the session takes it away from the server that has it: once one has
/// answered, no other is tried until that attempt has completed.
///
/// # Errors
/// When the session has ended or cannot continue as it was, or the credentials are refused.
pub(crate) async fn resume(state: &SessionState) -> Result<Connection, BackendError> {
    let answered = AtomicUsize::new(0);
    let answered = &answered;
    let mut attempts = FuturesUnordered::new();
    let mut pending: HashMap<Target, Instant> = HashMap::new();
    let mut next: VecDeque<Target> = state.servers.in_order().await.into();
    // When all servers are tried again.
    let mut next_round = Instant::now() + state.reconnect_delay.current();
    let mut expiry = ExpiryReports::default();
    loop {
        let has_answer = answered.load(Relaxed) > 0;
        if next.is_empty() && !has_answer && Instant::now() >= next_round {
            next = state.servers.in_order().await.into();
            let _ = state.reconnect_delay.next();
            next_round = Instant::now() + state.reconnect_delay.current();
            if !pending.is_empty() {
                state.increase_hedge_delay();
            }
        }
        next.retain(|target| !pending.contains_key(target));
        // After the last attempt began: the next one would take the session away from it.
        let start_at = match pending.values().max() {
            None => Instant::now(),
            Some(last) => *last + state.hedge_delay(),
        };
        if !has_answer
            && start_at <= Instant::now()
            && let Some(target) = next.pop_front()
        {
            pending.insert(target.clone(), Instant::now());
            attempts.push(async move {
                let outcome = resume_at(state, &target, answered).await;
                (target, outcome)
            });
            continue;
        }
        let wake_at = match (has_answer, next.is_empty()) {
            // That ends after a while, without completing the attempt.
            (true, _) => Instant::now() + MIN_HEDGE_DELAY,
            (false, true) => next_round,
            (false, false) => start_at,
        };
        let (target, outcome) = tokio::select! {
            biased;
            Some(completed) = attempts.next() => completed,
            () = sleep_until(wake_at) => continue,
        };
        pending.remove(&target);
        let error = match outcome {
            Ok(connection) => {
                debug!(session = %state.session.id(), server = %target, "ZooKeeper session resumed");
                let slow = pending.iter().filter(|(_, since)| since.elapsed() > MIN_HEDGE_DELAY);
                slow.for_each(|(target, _)| state.servers.record_failure(target));
                return Ok(connection);
            }
            Err(ResumeError::Over(error)) => return Err(error),
            Err(ResumeError::Connect(error)) => {
                // It had answered, and another server was tried beside it: most likely too soon.
                if matches!(error, Error::ConnectionLoss) && !pending.is_empty() {
                    state.increase_hedge_delay();
                }
                error
            }
            Err(ResumeError::Barrier(error)) => {
                expiry.contradict();
                // Most likely another server that was tried too soon has taken the session over, and loses it next.
                state.increase_hedge_delay();
                error
            }
        };
        state.servers.record_failure(&target);
        let is_expired = expiry.is_confirmed_by(&error, state.granted_ttl / 2);
        let hint = state.options.failure_hint(&error);
        let error = backend_error(&format!("resuming the session at {target}{hint}"), &error);
        let error = state.options.login_error(error);
        if is_expired {
            state.ended.store(true, Relaxed);
        }
        if is_expired || matches!(error.kind(), BackendErrorKind::Unauthorized | BackendErrorKind::Forbidden)
        {
            return Err(error);
        }
        debug!(session = %state.session.id(), %error, "cannot resume the ZooKeeper session at this server");
        state.phase.send_replace(Phase::Disconnected(Some(unavailable(error.to_string()))));
    }
}

/// Since when servers have reported that the session has expired, without contradiction.
#[derive(Debug, Default)]
struct ExpiryReports {
    since: Option<Instant>,
}

impl ExpiryReports {
    /// Records that a server knows the session.
    fn contradict(&mut self) {
        self.since = None;
    }

    /// Whether `error` reports that the session has expired, and servers have reported that for `least`.
    ///
    /// A leader that was frozen and deposed does not know sessions that were opened since, for up to a tick; `least` is
    /// at least a tick.
    fn is_confirmed_by(&mut self, error: &Error, least: Duration) -> bool {
        if !matches!(error, Error::SessionExpired) {
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() >= least
    }
}

/// Why a session was not resumed at a server.
enum ResumeError {
    /// The server was not reached, or refused.
    Connect(Error),
    /// The server knows the session, but the barrier after that failed.
    Barrier(Error),
    /// The session cannot be resumed at any server.
    Over(BackendError),
}

/// Resumes the session at one server. `answered` counts the servers that have answered and are not up to date yet.
async fn resume_at(
    state: &SessionState,
    target: &Target,
    answered: &AtomicUsize,
) -> Result<Connection, ResumeError> {
    let connection =
        Connection::open(&state.options, target, state.requested_ttl, Some(&state.session)).await;
    let connection = connection.map_err(|error| match error {
        Error::RuntimeInconsistent => {
            ResumeError::Over(session_gone(format!("{target} replaced our session with another one")))
        }
        error => ResumeError::Connect(error),
    })?;
    // A server with other bounds has changed the session's timeout everywhere; deadlines depend on the old one.
    if connection.granted_ttl < state.granted_ttl {
        let [now, before] = [connection.granted_ttl, state.granted_ttl].map(humantime::format_duration);
        return Err(ResumeError::Over(session_gone(format!(
            "{target} has reduced the session's timeout from {before} to {now}: give all servers the same \
             minSessionTimeout, maxSessionTimeout and tickTime"
        ))));
    }
    // The server may lag behind what this session has seen at another one.
    let up_to_date = {
        let mut barrier = pin!(connection.barrier(&state.options.barrier_path));
        let exclusive = CountGuard::new(answered);
        match timeout(state.requested_ttl / 5, barrier.as_mut()).await {
            Ok(up_to_date) => up_to_date,
            Err(_) => {
                drop(exclusive);
                barrier.await
            }
        }
    };
    up_to_date.map_err(ResumeError::Barrier)?;
    Ok(connection)
}

/// Adds one to a counter for as long as this lives.
struct CountGuard<'a>(&'a AtomicUsize);

impl<'a> CountGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
