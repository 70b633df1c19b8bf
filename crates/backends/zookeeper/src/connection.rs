//! One connection of a session, and all that has to be worked around in the client library.
//!
//! Written against zookeeper-client 0.11.2. Each point names what it is about, and when it can go.
//!
//! - **Its own reconnecting is not used.** Its waits between tries double without a bound, so that
//!   a session is not resumed in time after an outage of a few seconds
//!   (`IterableEndpoints::timeout`); requests made meanwhile pile up and are carried out later, also
//!   when nobody waits for them any more; a reconnect can come back with another session, unsaid
//!   (hazard Z3: `handle_connect_response` takes any session's id, and `Client::session_id` keeps the first);
//!   persistent watches are not renewed (hazard Z11: `resend_watches` never counts `index` up).
//!   So a [`Connection`] is one TCP connection: when it breaks, its task is aborted, and
//!   [`Link`](crate::link::Link) resumes the session with a new one. Can go when its backoff can be set
//!   and a change of the session is told.
//! - **A resumed session says that it has seen nothing**: `SessionInfo::last_zxid` cannot be read or set, so that
//!   ZooKeeper's own guard against servers that lag ("Refusing session request") never acts. A write that is refused
//!   stands in for it ([`Connection::barrier`]). Can go when the number can be carried over.
//! - **Its task is spawned by us**, through `asyncs::task::enter`, so that it can be aborted, and so that
//!   its end is noticed: after a panic in it the state stays `SyncConnected` for good, and
//!   `StateWatcher::changed` waits for ever (hazard Z13). Can go when the client tells that its task has ended.
//! - **Panics are caught**: `OneshotWatcher::changed` unwraps when that task is gone (hazard Z13).
//! - **State changes are hints only.** They coalesce (hazard Z13), so *any* change means that the
//!   connection broke.
//! - **A dropped future's request still runs** (hazard Z10): the caller looks for what it did, and nothing here
//!   takes it back. Requests of one session are carried out in order; those of a connection that
//!   was given up are refused by the servers once the session has moved (`SessionMovedException`).
//! - **Lengths are believed**: `Session::handle_recv_buf` keeps what comes until a frame is whole, and a list's
//!   `Vec::with_capacity` takes its count from the answer. Neither can be bounded from here; the first lasts as long as
//!   connecting may take ([`patience`]), or an answer. An endless one counts as a sign of life.
//! - Not used at all: `lock()` (hazard Z12), persistent watches (Z11), the multi transaction for
//!   entering (Z14), chroots (their paths are unwrapped: a foreign path panics).

mod watch;

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU32},
    time::Duration,
};

use asyncs::task::{Spawn, Task};
use futures::{FutureExt as _, future::BoxFuture};
use tenure_core::{Secret, TlsPem};
use tokio::{sync::oneshot, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_client::{
    Acl, Acls, Client, CreateMode, Error, EventType, OneshotWatcher, SessionId, SessionInfo, SessionState,
    Stat, StateWatcher, WatchedEvent,
};

use watch::take_back;
pub(crate) use watch::{Event, Watch};

use crate::terms::{Terms, proving};

/// One TCP connection of a session.
pub(crate) struct Connection {
    client: Arc<Mutex<Option<Client>>>,
    session: SessionInfo,
    granted: Duration,
    server: String,
    /// What it has shown and trusted, where it speaks TLS.
    pem: Option<Arc<TlsPem>>,
    /// The password that it has shown, where there is a login.
    password: Option<Secret>,
    attempt_timeout: Duration,
    state: Mutex<StateWatcher>,
    task: AbortHandle,
    /// Watches that are over, and not taken back yet.
    over: Mutex<Vec<BoxFuture<'static, WatchedEvent>>>,
    /// How many look again when they have heard nothing for a while.
    waiting: AtomicU32,
    /// Cancelled when the client's task has ended.
    ended: CancellationToken,
    /// Cancelled when the connection must not be used any more.
    lost: CancellationToken,
}

/// The tasks that the client spawns while it connects: one.
#[derive(Default)]
struct Capture {
    spawned: Mutex<Option<Spawned>>,
    client: Arc<Mutex<Option<Client>>>,
}

/// A task of the client's. It begins once it is released, so that no change of state is missed.
struct Spawned {
    handle: AbortHandle,
    ended: CancellationToken,
    release: oneshot::Sender<()>,
}

impl Spawn for Capture {
    fn spawn(&self, task: Task) {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let (client, future) = (Arc::clone(&self.client), Box::into_pin(task.future));
        let (release, released) = oneshot::channel();
        let handle = tokio::spawn(async move {
            // Dropped in the opposite order: first its end is told, for its watches are cut with it; and while the
            // future lives the client does, for without one it would end the session.
            let _client = client;
            let mut future = future;
            let _guard = guard;
            if released.await.is_ok() {
                (&mut future).await;
            }
        });
        *lock(&self.spawned) = Some(Spawned { handle: handle.abort_handle(), ended, release });
    }
}

impl Connection {
    /// Connects to `server`, with a new session of about `ttl` or with the one given.
    ///
    /// # Errors
    /// [`Error::SessionExpired`] when the session given has ended, by the word of this server;
    /// [`Error::RuntimeInconsistent`] when the server put another in its place.
    pub(crate) async fn open(
        terms: &Terms,
        server: &str,
        ttl: Duration,
        resumed: Option<&SessionInfo>,
    ) -> Result<Self, Error> {
        for proof in terms.proofs().await {
            match Self::open_with(terms, server, ttl, resumed, &proof).await {
                Err(Error::AuthFailed) => {}
                outcome => {
                    if outcome.is_ok() {
                        terms.accepted(&proof);
                    }
                    return outcome;
                }
            }
        }
        Err(Error::AuthFailed)
    }

    async fn open_with(
        terms: &Terms,
        server: &str,
        ttl: Duration,
        resumed: Option<&SessionInfo>,
        proof: &[Secret],
    ) -> Result<Self, Error> {
        let mut connector = Client::connector()
            .with_session_timeout(ttl)
            .with_connection_timeout(silence(ttl))
            .with_fail_eagerly();
        if let Some(login) = &terms.login {
            connector = proving(connector, login, proof);
        }
        if let Some(session) = resumed {
            connector = connector.with_session(session.clone());
        }
        let capture = Capture::default();
        let pem = terms.pem().await;
        let connecting = async {
            let mut connecting = pin!(terms.connect(connector, server, pem.as_deref()));
            poll_fn(|context| {
                let _scope = asyncs::task::enter(&capture);
                connecting.as_mut().poll(context)
            })
            .await
        };
        let connected = timeout(patience(terms, ttl), AssertUnwindSafe(connecting).catch_unwind()).await;
        let spawned = lock(&capture.spawned).take();
        let client = match connected {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(panicked()),
            Err(_) => return Err(Error::Timeout),
        };
        let Spawned { handle, ended, release } = spawned.ok_or_else(panicked)?;
        let connection = Self {
            session: client.session().clone(),
            granted: client.session_timeout(),
            server: server.to_owned(),
            pem,
            password: proof.first().cloned(),
            attempt_timeout: terms.attempt_timeout,
            state: Mutex::new(client.state_watcher()),
            client: Arc::clone(&capture.client),
            task: handle,
            over: Mutex::default(),
            waiting: AtomicU32::new(0),
            ended,
            lost: CancellationToken::new(),
        };
        *lock(&connection.client) = Some(client);
        let _ = release.send(());
        match resumed {
            // Nobody has asked for that one (hazard Z3).
            Some(session) if session.id() != connection.session.id() => {
                connection.end().await;
                Err(Error::RuntimeInconsistent)
            }
            _ => Ok(connection),
        }
    }

    pub(crate) fn session(&self) -> &SessionInfo {
        &self.session
    }

    /// The session's timeout as the server granted it on this connection.
    pub(crate) fn granted(&self) -> Duration {
        self.granted
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// What it has shown and trusted, where it speaks TLS.
    pub(crate) fn pem(&self) -> Option<&TlsPem> {
        self.pem.as_deref()
    }

    /// The password that it has shown, where there is a login.
    pub(crate) fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// Whether every answer so far came over this connection and from this session: a client that
    /// has reconnected by itself may have another one.
    pub(crate) fn is_unbroken(&self) -> bool {
        if lock(&self.state).changed().now_or_never().is_some() || self.ended.is_cancelled() {
            self.lost.cancel();
        }
        !self.lost.is_cancelled()
    }

    /// Takes back the watches that are over.
    pub(crate) fn let_go(&self) {
        let over = std::mem::take(&mut *lock(&self.over));
        take_back(over);
    }

    /// Gives the connection up: it may be half dead.
    pub(crate) fn give_up(&self) {
        self.lost.cancel();
        self.task.abort();
    }

    /// Returns when the connection must not be used any more.
    pub(crate) async fn broken(&self) {
        let mut state = lock(&self.state).clone();
        tokio::select! {
            () = self.lost.cancelled() => {}
            () = self.ended.cancelled() => {}
            _ = state.changed() => {}
        }
        self.lost.cancel();
    }

    /// Whether the client's task has ended, and nothing of it may be asked or polled any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Returns once [`give_up`](Self::give_up) or [`broken`](Self::broken) have given the connection up.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Ends the session in the store, and tells whether that was confirmed.
    pub(crate) async fn end(&self) -> bool {
        let watcher = lock(&self.state).clone();
        // The client ends its session once nobody holds it: whoever waits for an answer lets go.
        self.lost.cancel();
        drop(lock(&self.client).take());
        let ended = timeout(self.attempt_timeout, self.ended.cancelled()).await;
        ended.is_ok() && matches!(watcher.peek_state(), SessionState::Closed | SessionState::Expired)
    }

    /// The answer to one request, bounded in time.
    ///
    /// The request is sent when this is first polled, and requests are carried out in the order in which they were sent.
    pub(crate) async fn ask<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = lock(&self.client).clone().filter(|_| !self.lost.is_cancelled());
        let client = client.ok_or(Error::ConnectionLoss)?;
        let answer = timeout(self.attempt_timeout, AssertUnwindSafe(request(client)).catch_unwind());
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = self.lost.cancelled() => return Err(Error::ConnectionLoss),
        };
        match answer {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                self.lost.cancel();
                Err(panicked())
            }
            Err(_) => {
                self.lost.cancel();
                Err(Error::Timeout)
            }
        }
    }

    /// Makes a znode; with a mode that is sequential, `path` is what its path begins with. Returns
    /// the whole path, and the znode's stat.
    pub(crate) async fn create(
        &self,
        path: &str,
        data: &[u8],
        mode: CreateMode,
        acls: Acls<'static>,
    ) -> Result<(String, Stat), Error> {
        self.ask(|client| async move {
            let (stat, number) = client.create(path, data, &mode.with_acls(acls)).await?;
            let is_numbered = matches!(mode, CreateMode::EphemeralSequential);
            Ok((if is_numbered { format!("{path}{number}") } else { path.to_owned() }, stat))
        })
        .await
    }

    /// Deletes a znode; one that does not exist is deleted already.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), Error> {
        let deleted = self.ask(|client| async move { client.delete(path, None).await }).await;
        unless_missing(deleted).map(|_| ())
    }

    pub(crate) async fn set(&self, path: &str, data: &[u8]) -> Result<Option<Stat>, Error> {
        unless_missing(self.ask(|client| async move { client.set_data(path, data, None).await }).await)
    }

    /// Writes over what has this version; whether it still had.
    pub(crate) async fn set_version(&self, path: &str, data: &[u8], version: i32) -> Result<bool, Error> {
        let written = self.ask(|client| async move { client.set_data(path, data, Some(version)).await });
        match written.await {
            Ok(_) => Ok(true),
            Err(Error::BadVersion | Error::NoNode) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, Stat)>, Error> {
        unless_missing(self.ask(|client| async move { client.get_data(path).await }).await)
    }

    /// Who may do what with a znode.
    pub(crate) async fn acl(&self, path: &str) -> Result<Vec<Acl>, Error> {
        self.ask(|client| async move { client.get_acl(path).await }).await.map(|(acls, _)| acls)
    }

    /// The stat of a znode; [`UNREAD`] of one that we may not read.
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        match self.ask(|client| async move { client.check_stat(path).await }).await {
            // From 3.9 on, to know that something exists takes permission (ZOOKEEPER-2590).
            Err(Error::NoAuth) => Ok(Some(UNREAD)),
            outcome => outcome,
        }
    }

    pub(crate) async fn children(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        unless_missing(self.ask(|client| async move { client.list_children(path).await }).await)
    }

    /// The children, and a watch for one that comes or goes.
    pub(crate) async fn watch_children(&self, path: &str) -> Result<Option<(Vec<String>, Watch<'_>)>, Error> {
        let watched = self.ask(|client| async move { client.list_and_watch_children(path).await }).await;
        Ok(unless_missing(watched)?.map(|(children, watcher)| (children, self.watch(watcher))))
    }

    /// A watch for the creation of what does not exist; `None` when it does.
    pub(crate) async fn watch_creation(&self, path: &str) -> Result<Option<Watch<'_>>, Error> {
        let watched = self.ask(|client| async move { client.check_and_watch_stat(path).await }).await;
        let (stat, watcher) = watched?;
        Ok(stat.is_none().then(|| self.watch(watcher)))
    }

    /// The data, and a watch for its change or the znode's end.
    pub(crate) async fn watch_data(&self, path: &str) -> Result<Option<(Vec<u8>, Stat, Watch<'_>)>, Error> {
        let watched = self
            .ask(|client| async move {
                let (data, stat, watcher) = client.get_and_watch_data(path).await?;
                Ok((data, stat, watcher))
            })
            .await;
        Ok(unless_missing(watched)?.map(|(data, stat, watcher)| (data, stat, self.watch(watcher))))
    }

    /// A watch for the end of a candidate's znode. It is one on its children, of which a
    /// candidate's has none: unlike one on its data it does not fire when the value is changed.
    pub(crate) async fn watch_end(&self, path: &str) -> Result<Option<(Stat, Watch<'_>)>, Error> {
        let watched: Result<_, Error> = self
            .ask(|client| async move {
                let (_, stat, watcher) = client.get_and_watch_children(path).await?;
                Ok((stat, watcher))
            })
            .await;
        if matches!(watched, Err(Error::NoAuth)) {
            return self.watch_end_unread(path).await;
        }
        Ok(unless_missing(watched)?.map(|(stat, watcher)| (stat, self.watch(watcher))))
    }

    /// The same for a znode that we may not read: servers tell nobody of those (ZOOKEEPER-4799), so that all
    /// that comes and goes beside it is watched.
    async fn watch_end_unread(&self, path: &str) -> Result<Option<(Stat, Watch<'_>)>, Error> {
        let Some((parent, name)) = path.rsplit_once('/') else { return Ok(None) };
        let Some((names, watch)) = self.watch_children(parent).await? else { return Ok(None) };
        if !names.iter().any(|other| other == name) {
            return Ok(None);
        }
        Ok(self.stat(path).await?.map(|stat| (stat, watch)))
    }

    /// Returns once the server has carried out what a quorum had decided before.
    ///
    /// By a write that is refused, which takes a quorum all the same. A `sync` does not: a leader that was frozen
    /// and deposed answers it from what it knew before, for as long as half a tick.
    pub(crate) async fn barrier(&self, nowhere: &str) -> Result<(), Error> {
        // Of a version that no znode has: what somebody puts there is not deleted.
        let refused = self.ask(|client| async move { client.delete(nowhere, Some(i32::MAX)).await }).await;
        match refused {
            Ok(()) | Err(Error::NoNode | Error::BadVersion | Error::NotEmpty | Error::NoAuth) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Brings the server up to date with the store's leader, for what is read next.
    pub(crate) async fn sync(&self) -> Result<(), Error> {
        self.ask(|client| async move { client.sync("/").await }).await
    }

    fn watch(&self, watcher: OneshotWatcher) -> Watch<'_> {
        Watch { event: Some(watcher.changed().boxed()), connection: self }
    }

    /// Whether `fired` is the end of the znode at `path`, told of on this connection, unbroken as it is.
    pub(crate) fn tells_the_end(&self, fired: Option<&WatchedEvent>, path: &str) -> bool {
        let ended =
            fired.is_some_and(|event| event.event_type == EventType::NodeDeleted && event.path == path);
        ended && self.is_unbroken()
    }
}

/// What is known of a znode that we may not read: that it is there.
pub(crate) const UNREAD: Stat = Stat {
    // Before any other: whoever may stand before us is waited for.
    czxid: 0,
    mzxid: 0,
    pzxid: 0,
    ctime: -1,
    mtime: -1,
    version: 0,
    cversion: 0,
    aversion: 0,
    ephemeral_owner: -1,
    data_length: 0,
    num_children: 0,
};

/// Whether nothing else is known of a znode than that it is there.
pub(crate) fn is_unread(stat: &Stat) -> bool {
    stat.ephemeral_owner == UNREAD.ephemeral_owner
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
            .field("server", &self.server)
            .field("lost", &self.lost.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// A session's name in ZooKeeper's own words.
pub(crate) fn name_of(session: i64) -> String {
    if session == UNREAD.ephemeral_owner {
        return "unknown".to_owned();
    }
    SessionId(session).to_string()
}

/// After how much silence of the server the client counts its connection as broken: the most that it takes. It
/// asks for a sign of life after three eighths of that, which is less often than heartbeats are sent; and a
/// heartbeat without an answer gives its connection up much sooner.
fn silence(ttl: Duration) -> Duration {
    ttl * 3 / 5
}

/// How long connecting may take: so short that there is time for another server.
fn patience(terms: &Terms, ttl: Duration) -> Duration {
    const LEAST: Duration = Duration::from_millis(500);
    terms.attempt_timeout.min(LEAST.max(ttl / 5))
}

fn panicked() -> Error {
    Error::UnexpectedError("the client library panicked".to_owned())
}

fn unless_missing<T>(outcome: Result<T, Error>) -> Result<Option<T>, Error> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
