//! Resumes a session over a new connection, at whichever server answers first.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::{Instant, timeout};
use tracing::debug;
use zookeeper_client::Error;

use super::{
    connection::Connection,
    error::{backend_error, session_gone, unavailable},
    session_state::{MIN_HEDGE_DELAY, Phase, SessionState},
};

/// The delay before all servers are tried again, and the jitter added to it. Short, since sessions expire; each attempt
/// has its own timeout.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const RETRY_JITTER: Duration = Duration::from_millis(100);

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
    let mut pending: BTreeMap<String, Instant> = BTreeMap::new();
    let mut next: VecDeque<String> = state.servers.in_order().into();
    let mut expiry = ExpiryReports::default();
    loop {
        next.retain(|server| !pending.contains_key(server));
        let has_answer = answered.load(Relaxed) > 0;
        // Since the last attempt began: the next one would take the session away from it.
        let waited = pending.values().map(Instant::elapsed).min();
        let left = waited.map_or(Duration::ZERO, |waited| state.hedge_delay().saturating_sub(waited));
        if let Some(server) = if has_answer || !left.is_zero() { None } else { next.pop_front() } {
            pending.insert(server.clone(), Instant::now());
            attempts.push(async move {
                let outcome = resume_at(state, &server, answered).await;
                (server, outcome)
            });
        }
        let wait = match next.is_empty() || has_answer {
            true => RETRY_DELAY + RETRY_JITTER.mul_f64(fastrand::f64()),
            false if left.is_zero() => state.hedge_delay(),
            false => left,
        };
        let (server, outcome) = tokio::select! {
            biased;
            Some(completed) = attempts.next() => completed,
            () = tokio::time::sleep(wait) => {
                if next.is_empty() && !has_answer {
                    next = state.servers.in_order().into();
                    if !pending.is_empty() {
                        state.increase_hedge_delay();
                    }
                }
                continue;
            }
        };
        pending.remove(&server);
        let error = match outcome {
            Ok(connection) => {
                debug!(session = %state.session.id(), server, "ZooKeeper session resumed");
                let slow = pending.iter().filter(|(_, since)| since.elapsed() > MIN_HEDGE_DELAY);
                slow.for_each(|(server, _)| state.servers.record_failure(server));
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
        state.servers.record_failure(&server);
        let is_expired = expiry.is_confirmed_by(&error, state.granted_ttl / 2);
        let hint = state.options.failure_hint(&error);
        let error = backend_error(&format!("resuming the session at {server}{hint}"), &error);
        let error = state.options.login_error(error);
        if is_expired {
            state.mark_ended();
        }
        if is_expired || error.kind() == BackendErrorKind::Unauthorized {
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
    server: &str,
    answered: &AtomicUsize,
) -> Result<Connection, ResumeError> {
    let connection =
        Connection::open(&state.options, server, state.requested_ttl, Some(&state.session)).await;
    let connection = connection.map_err(|error| match error {
        Error::RuntimeInconsistent => {
            ResumeError::Over(session_gone(format!("{server} replaced our session with another one")))
        }
        error => ResumeError::Connect(error),
    })?;
    // A server with other bounds has changed the session's timeout everywhere; deadlines depend on the old one.
    if connection.granted_ttl() < state.granted_ttl {
        let [now, before] = [connection.granted_ttl(), state.granted_ttl].map(humantime::format_duration);
        return Err(ResumeError::Over(session_gone(format!(
            "{server} has reduced the session's timeout from {before} to {now}: give all servers the same \
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
