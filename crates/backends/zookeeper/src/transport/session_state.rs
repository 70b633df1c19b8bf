//! What a resumable session's handle, its task and its failover share.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use tenure_core::spi::BackendError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zookeeper_client::SessionInfo;

use super::{
    connect_options::ConnectOptions, connection::Connection, error::unavailable, lock,
    reconnect_delay::ReconnectDelay, servers::Servers, silence_limit::SilenceLimit,
};

/// The initial and least [hedge delay](SessionState::hedge_delay).
pub(crate) const MIN_HEDGE_DELAY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) options: Arc<ConnectOptions>,
    pub(crate) servers: Arc<Servers>,
    /// The TTL that was requested when the session was created, and is requested again when it is resumed.
    pub(crate) requested_ttl: Duration,
    pub(crate) session: SessionInfo,
    /// The timeout that the session was granted.
    pub(crate) granted_ttl: Duration,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) closing: CancellationToken,
    /// Whether no entry depends on the session, so that it does not matter how long the store keeps it.
    pub(crate) without_entries: AtomicBool,
    /// Why the session must not be used, although the store keeps it; see [`refuse`](Self::refuse).
    pub(crate) refused: OnceLock<BackendError>,
    /// Whether the servers have confirmed that the session has ended.
    pub(crate) ended: AtomicBool,
    /// How long to wait for a server before another one is tried as well.
    ///
    /// If all servers are far away, a short delay would move the session from one to the other forever. The delay grows
    /// with each connection that breaks soon, and with each that loses the session to another server.
    hedge_delay: Mutex<Duration>,
    /// For how long the server may be silent.
    pub(crate) silence_limit: SilenceLimit,
    /// How long to wait before all servers are tried again.
    pub(crate) reconnect_delay: ReconnectDelay,
}

/// Whether a session has a connection.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Connected(Arc<Connection>),
    /// With the last failure to connect.
    Disconnected(Option<BackendError>),
    /// The session has ended or cannot be used any more.
    Over(BackendError),
}

impl SessionState {
    /// The state of a session that `first` has just created.
    pub(crate) fn new(
        options: Arc<ConnectOptions>,
        servers: Arc<Servers>,
        requested_ttl: Duration,
        first: &Arc<Connection>,
    ) -> Self {
        Self {
            options,
            servers,
            requested_ttl,
            session: first.session.clone(),
            granted_ttl: first.granted_ttl,
            phase: watch::Sender::new(Phase::Connected(Arc::clone(first))),
            closing: CancellationToken::new(),
            without_entries: AtomicBool::new(false),
            refused: OnceLock::new(),
            ended: AtomicBool::new(false),
            hedge_delay: Mutex::new(MIN_HEDGE_DELAY),
            silence_limit: SilenceLimit::new(first.granted_ttl),
            reconnect_delay: ReconnectDelay::default(),
        }
    }

    /// Makes every further use of the session fail with `error`, and interrupts the requests in progress. Only closing it
    /// remains possible.
    pub(crate) fn refuse(&self, error: BackendError) {
        let _ = self.refused.set(error);
        let phase = self.phase.borrow().clone();
        if let Phase::Connected(connection) = phase {
            connection.give_up();
        }
    }

    /// The current connection. Waits for one if there is none.
    ///
    /// # Errors
    /// [`SessionGone`](tenure_core::spi::BackendErrorKind::SessionGone) when the session has ended or was
    /// [refused](Self::refuse).
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        let mut phase = self.phase.subscribe();
        loop {
            if let Some(error) = self.refused.get() {
                return Err(error.clone());
            }
            match &*phase.borrow_and_update() {
                Phase::Connected(connection) if connection.is_unbroken() => {
                    return Ok(Arc::clone(connection));
                }
                Phase::Over(error) => return Err(error.clone()),
                _ => {}
            }
            if phase.changed().await.is_err() {
                return Err(task_ended());
            }
        }
    }

    pub(crate) fn hedge_delay(&self) -> Duration {
        *self.lock_hedge_delay()
    }

    /// Called after a connection that lasted. The delay shrinks step by step: the servers are mostly as far away as
    /// before.
    pub(crate) fn decrease_hedge_delay(&self) {
        let mut delay = self.lock_hedge_delay();
        *delay = (*delay / 2).max(MIN_HEDGE_DELAY);
    }

    pub(crate) fn increase_hedge_delay(&self) {
        let mut delay = self.lock_hedge_delay();
        *delay = (*delay * 2).min(self.requested_ttl / 5).max(MIN_HEDGE_DELAY);
    }

    fn lock_hedge_delay(&self) -> MutexGuard<'_, Duration> {
        lock(&self.hedge_delay)
    }
}

/// Marks the session as over when dropped, also if its task panics or is aborted.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a SessionState);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.phase.send_if_modified(|phase| {
            let was_running = !matches!(phase, Phase::Over(_));
            if was_running {
                *phase = Phase::Over(task_ended());
            }
            was_running
        });
    }
}

/// The error after a session's task has ended unexpectedly.
pub(crate) fn task_ended() -> BackendError {
    unavailable("the task of the ZooKeeper session has ended unexpectedly")
}
