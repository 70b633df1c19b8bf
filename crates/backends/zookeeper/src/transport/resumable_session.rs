//! A session that stays connected: when its connection breaks, a new one resumes it.
//!
//! A session is not bound to a server. Its id and password resume it at any server for as long as the ensemble keeps it.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tenure_core::spi::BackendError;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info};
use zookeeper_client::{Error, Stat};

use super::{
    connect_options::ConnectOptions,
    connection::Connection,
    error::{backend_error, session_gone, unavailable},
    failover::resume,
    reachability::describe_unreachable,
    reconnect_delay,
    servers::Servers,
    session_state::{EndOnDrop, Phase, SessionState},
    unresponsive::until_unresponsive,
    znode_stat::session_name,
};

/// A session and its current connection. Dropping it ends the session in the background.
#[derive(Debug)]
pub(crate) struct ResumableSession {
    /// Shared with the session's task.
    pub(crate) state: Arc<SessionState>,
}

impl ResumableSession {
    /// Opens a new session of about `ttl`.
    ///
    /// # Errors
    /// When no server accepts it; each is tried once.
    pub(crate) async fn open(
        options: Arc<ConnectOptions>,
        servers: Arc<Servers>,
        ttl: Duration,
    ) -> Result<Self, BackendError> {
        let mut last = unavailable("no ZooKeeper server is known");
        let mut unreachable = None;
        for target in servers.in_order().await {
            match Connection::open(&options, &target, ttl, None).await {
                Ok(connection) => return Ok(Self::spawn(options, servers, ttl, connection)),
                Err(error) => {
                    servers.record_failure(&target);
                    let what = format!("connecting to {target}{}", options.failure_hint(&error));
                    last = options.login_error(backend_error(&what, &error));
                    unreachable = matches!(error, Error::NoHosts | Error::Timeout).then_some((what, target));
                    if last.is_permanent() {
                        break;
                    }
                    debug!(error = %last, "cannot open a ZooKeeper session at this server");
                }
            }
        }
        match unreachable {
            Some((what, target)) => {
                Err(unavailable(format!("{what}: {}", describe_unreachable(&target.address).await)))
            }
            None => Err(last),
        }
    }

    fn spawn(options: Arc<ConnectOptions>, servers: Arc<Servers>, ttl: Duration, first: Connection) -> Self {
        let first = Arc::new(first);
        let state = Arc::new(SessionState::new(options, servers, ttl, &first));
        tokio::spawn(session_task(Arc::clone(&state), first));
        Self { state }
    }

    pub(crate) fn id(&self) -> i64 {
        self.state.session.id().0
    }

    /// Declares that no entry will depend on the session: closing it does not wait until it has certainly ended.
    pub(crate) fn mark_without_entries(&self) {
        self.state.without_entries.store(true, Relaxed);
    }

    /// Whether the session is being closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.state.closing.is_cancelled()
    }

    /// Whether the session has ended, must not be used or is being closed, as far as is known.
    pub(crate) fn is_over(&self) -> bool {
        self.is_closing()
            || self.state.refused.get().is_some()
            || matches!(*self.state.phase.borrow(), Phase::Over(_))
    }

    /// The current connection. Waits for one if there is none.
    ///
    /// # Errors
    /// [`SessionGone`](tenure_core::spi::BackendErrorKind::SessionGone) when the session has ended or was
    /// [refused](SessionState::refuse).
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        self.state.connection().await
    }

    /// The current connection, without waiting.
    ///
    /// # Errors
    /// As for [`connection`](Self::connection), and when there is none.
    pub(crate) fn connection_now(&self) -> Result<Arc<Connection>, BackendError> {
        if let Some(error) = self.state.refused.get() {
            return Err(error.clone());
        }
        match &*self.state.phase.borrow() {
            Phase::Connected(connection) if connection.is_unbroken() => Ok(Arc::clone(connection)),
            Phase::Over(error) | Phase::Disconnected(Some(error)) => Err(error.clone()),
            Phase::Connected(_) | Phase::Disconnected(None) => {
                Err(unavailable("the connection to ZooKeeper is broken"))
            }
        }
    }

    /// Refuses an ephemeral znode of another session (hazards Z2, Z3).
    ///
    /// # Errors
    /// [`SessionGone`](tenure_core::spi::BackendErrorKind::SessionGone) when the znode belongs to another session.
    pub(crate) fn check_owner(&self, stat: &Stat) -> Result<(), BackendError> {
        if stat.ephemeral_owner == self.id() {
            return Ok(());
        }
        let (owner, own) = (session_name(stat.ephemeral_owner), session_name(self.id()));
        Err(session_gone(format!("ZooKeeper has replaced session {own} with {owner}")))
    }

    /// Begins to end the session in the store.
    pub(crate) fn begin_close(&self) {
        self.state.closing.cancel();
    }

    /// Ends the session in the store. Returns once it has ended there, or the attempts to close it have been given up after its
    /// TTL; and whether a server has confirmed its end.
    pub(crate) async fn close(&self) -> bool {
        self.begin_close();
        let mut phase = self.state.phase.subscribe();
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Over(_))).await;
        self.state.ended.load(Relaxed)
    }
}

impl Drop for ResumableSession {
    fn drop(&mut self) {
        self.begin_close();
    }
}

/// Keeps the session connected until it is closed or over.
async fn session_task(state: Arc<SessionState>, first: Arc<Connection>) {
    let _end_on_drop = EndOnDrop(&state);
    let mut connection = first;
    let mut connected_at = Instant::now();
    loop {
        let is_closing = tokio::select! {
            biased;
            () = state.closing.cancelled() => true,
            () = connection.broken() => false,
            () = until_unresponsive(&state, &connection) => false,
            () = state.options.authority_removed(connection.pem.as_deref()) => {
                info!(
                    session = %state.session.id(), server = connection.target.server,
                    "a certificate authority was removed: the ZooKeeper session continues over a new connection"
                );
                false
            }
            () = state.options.password_changed(connection.password.as_ref()) => {
                info!(
                    session = %state.session.id(), server = connection.target.server,
                    "the password file has changed: the ZooKeeper session continues over a connection with the new password"
                );
                false
            }
        };
        let lasted = connected_at.elapsed();
        if lasted >= reconnect_delay::MAX_DELAY || connection.has_succeeded() {
            state.reconnect_delay.reset();
        }
        if is_closing {
            break;
        }
        debug!(session = %state.session.id(), server = connection.target.server, "ZooKeeper connection broken");
        state.servers.record_failure(&connection.target);
        match lasted < state.granted_ttl / 3 {
            true => state.increase_hedge_delay(),
            false => state.decrease_hedge_delay(),
        }
        state.phase.send_replace(Phase::Disconnected(None));
        connection.give_up();
        let resuming = async {
            if lasted < reconnect_delay::MAX_DELAY {
                sleep(state.reconnect_delay.next()).await;
            }
            resume(&state).await
        };
        let resumed = tokio::select! {
            biased;
            () = state.closing.cancelled() => break,
            resumed = resuming => resumed,
        };
        match resumed {
            Ok(resumed) => {
                connection = Arc::new(resumed);
                connected_at = Instant::now();
                state.phase.send_replace(Phase::Connected(Arc::clone(&connection)));
            }
            Err(error) => {
                state.phase.send_replace(Phase::Over(error));
                return;
            }
        }
    }
    close(&state).await;
    state.phase.send_replace(Phase::Over(session_gone("the ZooKeeper session was closed")));
}

/// Ends the session in the store, reconnecting where needed, for as long as the session was granted. For a session without
/// entries, gives up after one attempt's timeout.
///
/// A new connection extends the session. The engine closes it for longer than this, and counts from the end of that until when
/// the servers may keep it: nothing may extend it later.
async fn close(state: &SessionState) {
    let time_limit = match state.without_entries.load(Relaxed) {
        true => state.options.attempt_timeout,
        false => state.granted_ttl,
    };
    let give_up_at = Instant::now() + time_limit;
    let mut connection = match state.phase.send_replace(Phase::Disconnected(None)) {
        Phase::Connected(connection) => Some(connection),
        _ => None,
    };
    loop {
        if let Some(connection) = connection.take() {
            // The client may reconnect by itself meanwhile.
            let closed = timeout_at(give_up_at, connection.close_session()).await;
            connection.give_up();
            if closed == Ok(true) {
                state.ended.store(true, Relaxed);
                return;
            }
            let _ = timeout_at(give_up_at, sleep(state.reconnect_delay.next())).await;
        }
        match timeout_at(give_up_at, resume(state)).await {
            Ok(Ok(resumed)) => connection = Some(Arc::new(resumed)),
            Ok(Err(error)) => {
                debug!(session = %state.session.id(), %error, "the ZooKeeper session is over");
                return;
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use futures::future::join;

    use super::*;
    use crate::transport::scripted_server::{Answer, GatedServer, Request, ScriptedServer};

    const TTL: Duration = Duration::from_secs(2);

    /// A session that cannot be closed is resumed, and so extended, for as long as its TTL and no longer.
    #[tokio::test]
    async fn closing_extends_a_session_for_its_ttl_at_most() {
        let last_resumed = Arc::new(Mutex::new(None));
        let resumed = Arc::clone(&last_resumed);
        let server = ScriptedServer::start(move |request| {
            let answer = match request {
                Request::Connect { session } => {
                    if session != 0 {
                        *resumed.lock().unwrap() = Some(Instant::now());
                    }
                    Answer::SessionFor(7, TTL)
                }
                Request::CloseSession => Answer::Disconnect,
                _ => Answer::no_node(),
            };
            Box::pin(async { answer })
        })
        .await;
        let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
        let servers = Arc::new(Servers::new(vec![server.address().to_owned()], false));
        let session = ResumableSession::open(options, servers, TTL).await.unwrap();
        let began = Instant::now();
        assert!(!session.close().await);
        let last = last_resumed.lock().unwrap().expect("it was resumed");
        assert!(last - began < TTL.mul_f64(1.1), "{:?}", last - began);
    }

    /// Hazard Z20: a server that accepts connections and closes them is tried less and less often, whether it closes them at once
    /// or after it has resumed the session.
    #[tokio::test]
    async fn a_server_that_closes_connections_is_tried_less_and_less_often() {
        join(try_closing_server(false), try_closing_server(true)).await;
    }

    async fn try_closing_server(resumes: bool) {
        let attempts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&attempts);
        let server = ScriptedServer::start(move |request| {
            let answer = match request {
                Request::Connect { session: 0 } => Answer::SessionFor(7, TTL),
                Request::Connect { .. } => {
                    counted.fetch_add(1, SeqCst);
                    if resumes { Answer::SessionFor(7, TTL) } else { Answer::Disconnect }
                }
                // The barrier.
                Request::Delete(_) => Answer::no_node(),
                _ => Answer::Disconnect,
            };
            Box::pin(async { answer })
        })
        .await;
        let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
        let servers = Arc::new(Servers::new(vec![server.address().to_owned()], false));
        let session = ResumableSession::open(options, servers, TTL).await.unwrap();
        let began = Instant::now();
        let reading = async {
            loop {
                assert!(session.connection().await.unwrap().stat("/").await.is_err());
            }
        };
        tokio::select! {
            () = until("it was tried often", || attempts.load(SeqCst) >= 15) => {}
            () = reading => {}
        }
        assert!(began.elapsed() > Duration::from_secs(3), "15 attempts in {:?}", began.elapsed());
    }

    /// Hazard G36: a name has two addresses, of which one is silent. Sessions are opened and resumed at the other one.
    #[tokio::test]
    async fn a_silent_address_of_a_name_costs_one_attempt() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = GatedServer::start(TTL).await;
        let addresses = vec![silent.local_addr().unwrap(), server.address().parse().unwrap()];
        let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
        for _ in 0..6 {
            let servers = Arc::new(Servers::with_addresses("zoo:2181", addresses.clone()));
            let session = ResumableSession::open(Arc::clone(&options), servers, TTL).await.unwrap();
            let first = session.connection().await.unwrap();
            first.give_up();
            let second = session.connection().await.unwrap();
            assert_eq!((&*second.target.server, &*second.target.address), ("zoo:2181", server.address()));
        }
    }

    /// Hazard Z22: why no server was reached is said in words.
    #[tokio::test]
    async fn an_unreachable_server_is_explained() {
        let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closing.local_addr().unwrap().to_string();
        let accepting = tokio::spawn(async move { while closing.accept().await.is_ok() {} });
        for (server, expected) in [
            (address.as_str(), "maxClientCnxns"),
            ("127.0.0.1:1", "refused"),
            ("no-such-host.invalid:2181", "cannot be resolved"),
        ] {
            let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
            let servers = Arc::new(Servers::new(vec![server.to_owned()], false));
            let error = ResumableSession::open(options, servers, TTL).await.unwrap_err().to_string();
            assert!(error.contains(server) && error.contains(expected), "{error}");
        }
        accepting.abort();
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let holds = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        timeout_at(Instant::now() + Duration::from_secs(30), holds).await.expect(what);
    }
}
