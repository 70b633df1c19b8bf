//! One connection of a session, and the workarounds for the client library.
//!
//! Written against zookeeper-client 0.11.2. Each point says why it exists and when it can be removed.
//!
//! - **The library's reconnecting is not used.** The delay between its attempts doubles without a bound, so that
//!   a session is not resumed in time after an outage of a few seconds
//!   (`IterableEndpoints::timeout`). Requests made meanwhile pile up and are carried out later, even
//!   when nobody waits for them any more. A reconnect can silently come back with another session
//!   (hazard Z3: `handle_connect_response` takes any session's id, and `Client::session_id` keeps the first).
//!   Persistent watches are not renewed (hazard Z11: `resend_watches` never increments `index`).
//!   Therefore a [`Connection`] is one TCP connection: when it breaks, its task is aborted, and
//!   [`ResumableSession`](super::resumable_session::ResumableSession) resumes the session with a new one. Can be removed
//!   when the backoff can be configured and a change of the session is reported.
//! - **A resumed session sends zero as the last transaction it has seen**: `SessionInfo::last_zxid` cannot be read or
//!   set, so ZooKeeper's own check for servers that lag ("Refusing session request") never applies. A write that is
//!   refused replaces it ([`Connection::barrier`]). Can be removed when the number can be carried over.
//! - **We spawn its task**, through `asyncs::task::enter` ([`ClientTaskSpawner`]), so that it can be aborted and its end
//!   is noticed: after a panic in it the state stays `SyncConnected` forever, and `StateWatcher::changed` never returns
//!   (hazard Z13). Can be removed when the client reports that its task has ended.
//! - **Panics are caught**: `OneshotWatcher::changed` unwraps when that task has ended (hazard Z13).
//! - **State changes are hints only.** They coalesce (hazard Z13), so *any* change means that the
//!   connection broke.
//! - **A request is carried out even if its future is dropped** (hazard Z10): the caller looks for its effect, and
//!   nothing here undoes it. Requests of one session are carried out in order. The servers refuse those of a connection
//!   that was given up once the session has moved (`SessionMovedException`).
//! - **Lengths are trusted**: `Session::handle_recv_buf` buffers until a frame is complete, and a list's
//!   `Vec::with_capacity` takes its count from the answer. Neither can be bounded from here. The first lasts at most as
//!   long as connecting may take ([`connect_timeout`]), or as [`max_server_silence`] while a request is unanswered. The library
//!   itself counts the bytes of an endless frame as activity.
//! - Not used: `lock()` (hazard Z12), persistent watches (Z11), the multi transaction for
//!   entering (Z14), chroots (their paths are unwrapped: a foreign path panics).

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tenure_core::{Secret, TlsPem};
use tokio::{task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Client, Error, EventType, SessionInfo, SessionState, StateWatcher, WatchedEvent};

use super::{
    client_task::{ClientTask, ClientTaskSpawner},
    connect_options::{ConnectOptions, with_credentials},
    lock,
    servers::Target,
    unanswered::Unanswered,
    watch::WatchSet,
};

/// One TCP connection of a session.
pub(crate) struct Connection {
    client: Arc<Mutex<Option<Client>>>,
    pub(crate) session: SessionInfo,
    /// The session's timeout as the server granted it on this connection.
    pub(crate) granted_ttl: Duration,
    pub(crate) target: Target,
    /// The certificates that were used to connect; `None` without TLS.
    pub(crate) pem: Option<Arc<TlsPem>>,
    /// The first password that was used to log in; `None` without a login.
    pub(crate) password: Option<Secret>,
    attempt_timeout: Duration,
    state: Mutex<StateWatcher>,
    client_task: AbortHandle,
    unanswered: Unanswered,
    /// Whether a request has succeeded. A barrier never does.
    has_succeeded: AtomicBool,
    pub(crate) watches: WatchSet,
    /// Cancelled when the client's task has ended.
    client_ended: CancellationToken,
    /// Cancelled when the connection must not be used any more.
    lost: CancellationToken,
}

impl Connection {
    /// Connects to `target`, with a new session of about `ttl` or to resume `session`.
    ///
    /// # Errors
    /// [`Error::SessionExpired`] when this server says that `session` has ended;
    /// [`Error::RuntimeInconsistent`] when the server replaced it with another session.
    pub(crate) async fn open(
        options: &ConnectOptions,
        target: impl Into<Target>,
        ttl: Duration,
        session: Option<&SessionInfo>,
    ) -> Result<Self, Error> {
        let target = &target.into();
        for passwords in options.password_attempts().await {
            match Self::open_with(options, target, ttl, session, &passwords).await {
                Err(Error::AuthFailed) => {}
                outcome => {
                    if outcome.is_ok() {
                        options.login_succeeded(&passwords);
                    }
                    return outcome;
                }
            }
        }
        Err(Error::AuthFailed)
    }

    async fn open_with(
        options: &ConnectOptions,
        target: &Target,
        ttl: Duration,
        session: Option<&SessionInfo>,
        passwords: &[Secret],
    ) -> Result<Self, Error> {
        let mut connector = Client::connector()
            .with_session_timeout(ttl)
            .with_connection_timeout(max_server_silence(ttl))
            .with_fail_eagerly();
        if let Some(login) = &options.login {
            connector = with_credentials(connector, login, passwords);
        }
        if let Some(session) = session {
            connector = connector.with_session(session.clone());
        }
        let spawner = ClientTaskSpawner::default();
        let pem = options.current_pem().await;
        let connecting = async {
            let mut connecting = pin!(options.connect(connector, &target.address, pem.as_deref()));
            poll_fn(|context| {
                let _scope = asyncs::task::enter(&spawner);
                connecting.as_mut().poll(context)
            })
            .await
        };
        let connected =
            timeout(connect_timeout(options, ttl), AssertUnwindSafe(connecting).catch_unwind()).await;
        let client_task = spawner.take();
        let client = match connected {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(library_panicked()),
            Err(_) => return Err(Error::Timeout),
        };
        let ClientTask { handle, ended, release } = client_task.ok_or_else(library_panicked)?;
        let lost = CancellationToken::new();
        let connection = Self {
            session: client.session().clone(),
            granted_ttl: client.session_timeout(),
            target: target.clone(),
            pem,
            password: passwords.first().cloned(),
            attempt_timeout: options.attempt_timeout,
            state: Mutex::new(client.state_watcher()),
            client: Arc::clone(&spawner.client),
            client_task: handle,
            unanswered: Unanswered::new(),
            has_succeeded: AtomicBool::new(false),
            watches: WatchSet::new(ended.clone(), lost.clone()),
            client_ended: ended,
            lost,
        };
        *lock(&connection.client) = Some(client);
        let _ = release.send(());
        match session {
            // This session was not requested (hazard Z3).
            Some(session) if session.id() != connection.session.id() => {
                connection.close_session().await;
                Err(Error::RuntimeInconsistent)
            }
            _ => Ok(connection),
        }
    }

    /// Whether every answer so far came over this TCP connection and from this session. A client that
    /// has reconnected by itself may have another session.
    pub(crate) fn is_unbroken(&self) -> bool {
        if lock(&self.state).changed().now_or_never().is_some() || self.client_ended.is_cancelled() {
            self.lost.cancel();
        }
        !self.lost.is_cancelled()
    }

    /// Gives the connection up. The session may continue on another one.
    pub(crate) fn give_up(&self) {
        self.lost.cancel();
        self.client_task.abort();
    }

    /// Waits until the connection must not be used any more.
    pub(crate) async fn broken(&self) {
        let mut state = lock(&self.state).clone();
        tokio::select! {
            () = self.lost.cancelled() => {}
            () = self.client_ended.cancelled() => {}
            _ = state.changed() => {}
        }
        self.lost.cancel();
    }

    /// Ends the session in the store. Returns whether the server confirmed that.
    ///
    /// Only `Closed` is a confirmation: the client enters it once the request to close was answered. `Expired` is none: it is
    /// also entered when the connection breaks, the client reconnects by itself, and this one server does not know the session;
    /// or when it cannot reconnect in time.
    pub(crate) async fn close_session(&self) -> bool {
        let state = lock(&self.state).clone();
        // The client ends its session once nothing references it: pending requests drop their references.
        self.lost.cancel();
        drop(lock(&self.client).take());
        let ended = timeout(self.attempt_timeout, self.client_ended.cancelled()).await;
        ended.is_ok() && state.peek_state() == SessionState::Closed
    }

    /// Sends one request and waits for its answer, for [`attempt_timeout`](ConnectOptions::attempt_timeout) at most.
    ///
    /// A late answer does not break the connection (hazard Z21); whether to give it up is decided by
    /// [`until_unresponsive`](super::unresponsive::until_unresponsive).
    ///
    /// The request is sent when this is first polled. Requests are carried out in the order in which they were sent.
    pub(crate) async fn request<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        timeout(self.attempt_timeout, self.send(request)).await.unwrap_or(Err(Error::Timeout))
    }

    /// Like [`request`](Self::request), for as long as the client library waits.
    async fn send<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = lock(&self.client).clone().filter(|_| !self.lost.is_cancelled());
        let client = client.ok_or(Error::ConnectionLoss)?;
        let pending = self.unanswered.sent();
        tokio::select! {
            biased;
            answer = AssertUnwindSafe(request(client)).catch_unwind() => match answer {
                Ok(outcome) => {
                    pending.answered();
                    self.has_succeeded.fetch_or(outcome.is_ok(), Relaxed);
                    outcome
                }
                Err(_) => {
                    self.lost.cancel();
                    Err(library_panicked())
                }
            },
            () = self.lost.cancelled() => Err(Error::ConnectionLoss),
        }
    }

    /// Whether a request has succeeded, other than a [`barrier`](Self::barrier), which is refused.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.has_succeeded.load(Relaxed)
    }

    /// Waits until no request has been answered for `limit`, although some were sent.
    pub(crate) async fn unanswered_for(&self, limit: Duration) {
        self.unanswered.for_longer_than(limit).await;
    }

    /// Waits until the requests that were sent before this call have been answered.
    pub(crate) async fn answered(&self, path: &str) {
        let _ = self.send(|client| async move { client.check_stat(path).await }).await;
        if self.lost.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether `event` reports the deletion of the znode at `path`, and the connection is unbroken.
    pub(crate) fn is_deletion(&self, event: Option<&WatchedEvent>, path: &str) -> bool {
        let deleted =
            event.is_some_and(|event| event.event_type == EventType::NodeDeleted && event.path == path);
        deleted && self.is_unbroken()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("session", &self.session.id())
            .field("server", &self.target)
            .field("lost", &self.lost.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// After how long without an answer the client treats its connection as broken: the largest value that it accepts.
///
/// The client pings after three eighths of this, which is less often than heartbeats are sent. A connection is given up
/// sooner if another server answers; see [`unresponsive`](super::unresponsive).
pub(crate) fn max_server_silence(ttl: Duration) -> Duration {
    ttl * 3 / 5
}

/// How long connecting to a server may take: short enough that another server can be tried.
fn connect_timeout(options: &ConnectOptions, ttl: Duration) -> Duration {
    const MIN: Duration = Duration::from_millis(500);
    options.attempt_timeout.min(MIN.max(ttl / 5))
}

fn library_panicked() -> Error {
    Error::UnexpectedError("the client library panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::scripted_server::{Answer, Request, ScriptedServer};

    const SESSION: i64 = 7;

    async fn is_close_confirmed(script: impl Fn(Request) -> Answer + Send + Sync + 'static) -> bool {
        let server = ScriptedServer::start(move |request| {
            let answer = script(request);
            Box::pin(async { answer })
        })
        .await;
        let options = ConnectOptions::for_tests(Duration::from_secs(2));
        let ttl = Duration::from_secs(10);
        let connection = Connection::open(&options, server.address(), ttl, None).await.unwrap();
        connection.close_session().await
    }

    /// Hazard Z3: the end of a session is confirmed by the answer to the request to close it, and by nothing else. A server to
    /// which the client reconnects by itself may not know the session yet.
    #[tokio::test]
    async fn only_an_answer_confirms_the_end_of_a_session() {
        let answers = |request| match request {
            Request::Connect { .. } => Answer::Session(SESSION),
            _ => Answer::ok(&[]),
        };
        assert!(is_close_confirmed(answers).await);
        let does_not_know_it = |request| match request {
            Request::Connect { session: 0 } => Answer::Session(SESSION),
            Request::Connect { .. } => Answer::Session(0),
            _ => Answer::Disconnect,
        };
        assert!(!is_close_confirmed(does_not_know_it).await);
    }
}
