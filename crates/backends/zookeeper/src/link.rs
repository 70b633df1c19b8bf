//! A session that stays connected: when a connection breaks, another takes its place.
//!
//! A session is bound to no server. Its id and password resume it anywhere, for as long as
//! the ensemble keeps it.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use zookeeper_client::{Error, SessionInfo};

use crate::{
    connection::Connection,
    error::{failed, gone, unknown},
    servers::Servers,
    terms::Terms,
};

/// Before all servers are tried again. Short, since sessions run out; each try is bounded by itself.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(100));
/// How long a server is waited for, at first, before another is asked as well.
const MOMENT: Duration = Duration::from_millis(200);

/// A session and the connection it has now. Dropping it ends the session in the background.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    terms: Arc<Terms>,
    servers: Arc<Servers>,
    /// The TTL that was asked for, and is asked for again.
    ttl: Duration,
    session: SessionInfo,
    /// The timeout that the session was granted.
    granted: Duration,
    state: watch::Sender<State>,
    closing: CancellationToken,
    /// Whether no entry can hang on the session, so that nobody minds how long the store keeps it.
    is_bare: AtomicBool,
    /// How long a server is waited for before another is asked as well. Where all are far away, the session
    /// would go from one to the other for ever: it grows with each connection that breaks soon, or is robbed of it.
    patience: Mutex<Duration>,
}

impl Shared {
    fn patience(&self) -> MutexGuard<'_, Duration> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As far away as they were the servers are mostly still.
    fn be_less_patient(&self) {
        let mut patience = self.patience();
        *patience = (*patience / 2).max(MOMENT);
    }

    fn be_more_patient(&self) {
        let mut patience = self.patience();
        *patience = (*patience * 2).min(self.ttl / 5).max(MOMENT);
    }
}

#[derive(Clone, Debug)]
enum State {
    Up(Arc<Connection>),
    /// With the last failure to connect.
    Down(Option<BackendError>),
    /// The session has ended, or nothing can be done with it.
    Over(BackendError),
}

impl Link {
    /// A new session of about `ttl`.
    ///
    /// # Errors
    /// When no server could be connected to, each being tried once.
    pub(crate) async fn open(
        terms: Arc<Terms>,
        servers: Arc<Servers>,
        ttl: Duration,
    ) -> Result<Self, BackendError> {
        let mut last = unknown("no ZooKeeper server is known");
        for server in servers.in_order() {
            match Connection::open(&terms, &server, ttl, None).await {
                Ok(connection) => return Ok(Self::keep(terms, servers, ttl, connection)),
                Err(error) => {
                    servers.failed(&server);
                    let refused = failed(&format!("connecting to {server}{}", terms.hint(&error)), &error);
                    last = terms.not_let_in(refused);
                    if last.is_permanent() {
                        break;
                    }
                    debug!(server, %error, "no ZooKeeper session there");
                }
            }
        }
        Err(last)
    }

    fn keep(terms: Arc<Terms>, servers: Arc<Servers>, ttl: Duration, first: Connection) -> Self {
        let first = Arc::new(first);
        let shared = Arc::new(Shared {
            terms,
            servers,
            ttl,
            session: first.session().clone(),
            granted: first.granted(),
            state: watch::Sender::new(State::Up(Arc::clone(&first))),
            closing: CancellationToken::new(),
            is_bare: AtomicBool::new(false),
            patience: Mutex::new(MOMENT),
        });
        tokio::spawn(keep_connected(Arc::clone(&shared), first));
        Self { shared }
    }

    pub(crate) fn session(&self) -> i64 {
        self.shared.session.id().0
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.shared.terms
    }

    /// No entry will hang on the session: a server that does not end it soon may keep it for as long as it has granted.
    pub(crate) fn stays_bare(&self) {
        self.shared.is_bare.store(true, Relaxed);
    }

    /// Whether the session is being ended.
    pub(crate) fn is_closing(&self) -> bool {
        self.shared.closing.is_cancelled()
    }

    /// Whether the session can still be used, as far as is known.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.closing.is_cancelled() || matches!(*self.shared.state.borrow(), State::Over(_))
    }

    /// The connection, waiting for one while there is none.
    ///
    /// # Errors
    /// [`SessionGone`](BackendErrorKind::SessionGone) when the session has ended.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        let mut state = self.shared.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Up(connection) if connection.is_unbroken() => return Ok(Arc::clone(connection)),
                State::Over(error) => return Err(error.clone()),
                _ => {}
            }
            if state.changed().await.is_err() {
                return Err(unknown("the task that keeps the ZooKeeper session has ended"));
            }
        }
    }

    /// The connection, if there is one just now.
    ///
    /// # Errors
    /// As for [`connection`](Self::connection), and when there is none.
    pub(crate) fn connection_now(&self) -> Result<Arc<Connection>, BackendError> {
        match &*self.shared.state.borrow() {
            State::Up(connection) if connection.is_unbroken() => Ok(Arc::clone(connection)),
            State::Over(error) | State::Down(Some(error)) => Err(error.clone()),
            State::Up(_) | State::Down(None) => Err(unknown("the connection to ZooKeeper is broken")),
        }
    }

    /// Begins to end the session in the store.
    pub(crate) fn begin_close(&self) {
        self.shared.closing.cancel();
    }

    /// Ends the session in the store, and returns once it has ended there or has run out.
    pub(crate) async fn close(&self) {
        self.begin_close();
        let mut state = self.shared.state.subscribe();
        let _ = state.wait_for(|state| matches!(state, State::Over(_))).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.begin_close();
    }
}

/// Says that the session is over, also when the task that keeps it ends before its time.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            let lasts = !matches!(state, State::Over(_));
            if lasts {
                *state = State::Over(unknown("the task that keeps the ZooKeeper session has ended"));
            }
            lasts
        });
    }
}

async fn keep_connected(shared: Arc<Shared>, first: Arc<Connection>) {
    let _ends = Ends(&shared);
    let mut connection = first;
    let mut connected = Instant::now();
    loop {
        let closing = tokio::select! {
            biased;
            () = shared.closing.cancelled() => true,
            () = connection.broken() => false,
            () = shared.terms.distrusts(connection.pem()) => {
                info!(
                    session = %shared.session.id(), server = connection.server(),
                    "an authority is trusted no more: the ZooKeeper session goes on over a connection that others vouch for"
                );
                false
            }
            () = shared.terms.rotated(connection.password()) => {
                info!(
                    session = %shared.session.id(), server = connection.server(),
                    "the password file has changed: the ZooKeeper session goes on over a connection that proves the new password"
                );
                false
            }
        };
        if closing {
            break;
        }
        debug!(session = %shared.session.id(), server = connection.server(), "ZooKeeper connection broken");
        shared.servers.failed(connection.server());
        match connected.elapsed() < shared.granted / 3 {
            true => shared.be_more_patient(),
            false => shared.be_less_patient(),
        }
        shared.state.send_replace(State::Down(None));
        connection.give_up();
        let resumed = tokio::select! {
            biased;
            () = shared.closing.cancelled() => break,
            resumed = resume(&shared) => resumed,
        };
        match resumed {
            Ok(resumed) => {
                connection = Arc::new(resumed);
                connected = Instant::now();
                shared.state.send_replace(State::Up(Arc::clone(&connection)));
            }
            Err(over) => {
                shared.state.send_replace(State::Over(over));
                return;
            }
        }
    }
    end(&shared).await;
    shared.state.send_replace(State::Over(gone("the ZooKeeper session was closed")));
}

/// Tries until the session has another connection.
///
/// A frozen server answers nothing, and refuses nothing: it is not waited for alone. The others are asked
/// meanwhile, and again, for as long as it is silent. But a server that takes the session over takes it from
/// the one that has it: once one has answered, no other is asked before that has come to an end.
///
/// # Errors
/// When the session has ended or cannot go on as it was, or our credentials are refused.
async fn resume(shared: &Shared) -> Result<Connection, BackendError> {
    let taken_over = AtomicUsize::new(0);
    let taken_over = &taken_over;
    let mut asked = FuturesUnordered::new();
    let mut silent: BTreeMap<String, Instant> = BTreeMap::new();
    let mut next: VecDeque<String> = shared.servers.in_order().into();
    let mut denials = Denials::default();
    loop {
        next.retain(|server| !silent.contains_key(server));
        let alone = taken_over.load(Relaxed) > 0;
        // Since the last was asked, which the next one would rob of the session.
        let waited = silent.values().map(Instant::elapsed).min();
        let left = waited.map_or(Duration::ZERO, |waited| shared.patience().saturating_sub(waited));
        if let Some(server) = if alone || !left.is_zero() { None } else { next.pop_front() } {
            silent.insert(server.clone(), Instant::now());
            asked.push(async move {
                let outcome = resume_at(shared, &server, taken_over).await;
                (server, outcome)
            });
        }
        let wait = match next.is_empty() || alone {
            true => PAUSE.0 + PAUSE.1.mul_f64(fastrand::f64()),
            false if left.is_zero() => *shared.patience(),
            false => left,
        };
        let (server, outcome) = tokio::select! {
            biased;
            Some(answered) = asked.next() => answered,
            () = tokio::time::sleep(wait) => {
                if next.is_empty() && !alone {
                    next = shared.servers.in_order().into();
                    if !silent.is_empty() {
                        shared.be_more_patient();
                    }
                }
                continue;
            }
        };
        silent.remove(&server);
        let error = match outcome {
            Ok(connection) => {
                debug!(session = %shared.session.id(), server, "ZooKeeper session resumed");
                let slow = silent.iter().filter(|(_, since)| since.elapsed() > MOMENT);
                slow.for_each(|(server, _)| shared.servers.failed(server));
                return Ok(connection);
            }
            Err(Refusal::Over(error)) => return Err(error),
            Err(Refusal::NotReached(error)) => {
                // It had answered, and another was asked beside it: too soon, most likely.
                if matches!(error, Error::ConnectionLoss) && !silent.is_empty() {
                    shared.be_more_patient();
                }
                error
            }
            Err(Refusal::NotHere(error)) => {
                denials.contradict();
                // Another that was asked too soon has taken the session over, most likely; and is robbed of it next.
                shared.be_more_patient();
                error
            }
        };
        shared.servers.failed(&server);
        let is_believed = denials.is_believed(&error, shared.granted / 2);
        let hint = shared.terms.hint(&error);
        let error =
            shared.terms.not_let_in(failed(&format!("resuming the session at {server}{hint}"), &error));
        if is_believed || error.kind() == BackendErrorKind::Unauthorized {
            return Err(error);
        }
        debug!(session = %shared.session.id(), %error, "ZooKeeper session not resumed there");
        shared.state.send_replace(State::Down(Some(unknown(error.to_string()))));
    }
}

/// For how long servers have said, and none has said otherwise, that the session has ended.
#[derive(Debug, Default)]
struct Denials {
    since: Option<Instant>,
}

impl Denials {
    /// A server knows the session.
    fn contradict(&mut self) {
        self.since = None;
    }

    /// Whether `error` says that the session has ended, and is to be believed: a leader that was frozen and
    /// deposed knows nothing of younger sessions, for a tick at most, than which `repeated` is no shorter.
    fn is_believed(&mut self, error: &Error, repeated: Duration) -> bool {
        if !matches!(error, Error::SessionExpired) {
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() >= repeated
    }
}

/// Why a session is not resumed at a server.
enum Refusal {
    /// It was not reached, or refused.
    NotReached(Error),
    /// It knows the session, and has lost it again.
    NotHere(Error),
    /// Nor anywhere else.
    Over(BackendError),
}

async fn resume_at(shared: &Shared, server: &str, taken_over: &AtomicUsize) -> Result<Connection, Refusal> {
    let connection = Connection::open(&shared.terms, server, shared.ttl, Some(&shared.session)).await;
    let connection = connection.map_err(|error| match error {
        Error::RuntimeInconsistent => {
            Refusal::Over(gone(format!("{server} has put another session in the place of ours")))
        }
        error => Refusal::NotReached(error),
    })?;
    // A server with other bounds has changed the session's timeout for all: deadlines rest on the old one.
    if connection.granted() < shared.granted {
        let [now, before] = [connection.granted(), shared.granted].map(humantime::format_duration);
        return Err(Refusal::Over(gone(format!(
            "{server} has cut the session's timeout from {before} to {now}: all servers need the same \
             minSessionTimeout, maxSessionTimeout and tickTime"
        ))));
    }
    // The server may lag behind what this session has seen at another.
    let settled = {
        let mut barrier = pin!(connection.barrier(&shared.terms.nowhere));
        let alone = Counted::new(taken_over);
        match timeout(shared.ttl / 5, barrier.as_mut()).await {
            Ok(settled) => settled,
            Err(_) => {
                drop(alone);
                barrier.await
            }
        }
    };
    settled.map_err(Refusal::NotHere)?;
    Ok(connection)
}

/// One more, for as long as this lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Ends the session, connecting again where that is needed, until it has run out in any case; a bare one for a moment only.
async fn end(shared: &Shared) {
    let run_out = match shared.is_bare.load(Relaxed) {
        true => shared.terms.attempt_timeout,
        false => shared.granted.max(shared.ttl).mul_f64(1.25),
    };
    let run_out = Instant::now() + run_out;
    let mut connection = match shared.state.send_replace(State::Down(None)) {
        State::Up(connection) => Some(connection),
        _ => None,
    };
    loop {
        if let Some(connection) = connection.take() {
            if connection.end().await {
                return;
            }
            connection.give_up();
        }
        match tokio::time::timeout_at(run_out, resume(shared)).await {
            Ok(Ok(resumed)) => connection = Some(Arc::new(resumed)),
            Ok(Err(error)) => {
                debug!(session = %shared.session.id(), %error, "the ZooKeeper session is over");
                return;
            }
            Err(_) => return,
        }
    }
}
