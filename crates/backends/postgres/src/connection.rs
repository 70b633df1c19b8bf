//! The connections for requests: made when they are needed, and replaced when they do not answer.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use futures::{StreamExt as _, TryStreamExt as _, future};
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_postgres::{
    AsyncMessage, Client, Error, Row,
    error::{DbError, Severity},
    types::{IsNull, ToSql, Type, to_sql_checked},
};
use tracing::{debug, info, warn};

use crate::{
    config::PostgresConfig,
    connect::{Messages, Server, connect, later_primary, of_another_cluster},
    error::{classify, is_of_a_standby},
    schema::Statements,
};

/// How many connections to a server there are at most, with those that were given up because a request was not answered. A server works on
/// such a request for as long as it waits for a synchronous standby, whether or not the client waits: without a bound there would be
/// more and more of them. Each is kept until its answers come, or the server is started again or replaced; a dead one is noticed by TCP.
const MAX_CONNECTIONS: usize = 4;
/// How many swaps are in flight on a connection. Each may wait for a fenced transaction, with a read behind it.
const CONCURRENT_SWAPS: usize = 4;
/// The pause after a failed attempt to connect: doubled each time, up to the limit.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How often the other hosts are looked at while there is a connection: one of them may have been promoted, although this one lives.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A parameter of a statement, and its type.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Sends statements to the primary, over one connection at a time.
pub(crate) struct Requests {
    pub(crate) config: Arc<PostgresConfig>,
    pub(crate) statements: Arc<Statements>,
    /// Locked while a connection is made.
    slot: tokio::sync::Mutex<Slot>,
    known: Arc<Mutex<Known>>,
}

/// What the connections of an elector have learnt.
#[derive(Default)]
struct Known {
    /// The cluster, and the latest timeline that was seen of it.
    seen: Option<(i64, i32)>,
    /// The primaries that were reported last, when there were several.
    split: Option<String>,
    looked: Option<Instant>,
    /// Looks at the other hosts.
    looks: JoinSet<()>,
}

#[derive(Default)]
struct Slot {
    current: Option<Arc<Connection>>,
    /// When the server was started to which the connections are.
    started: String,
    /// What drives the connections.
    drivers: JoinSet<()>,
    /// Since when it is tried to connect. Callers may end each attempt before every host has answered.
    tried: Option<Instant>,
    failed: Option<Failed>,
}

/// An attempt to connect that has failed.
struct Failed {
    error: BackendError,
    pause: Duration,
    retry_at: Instant,
}

struct Connection {
    client: Client,
    address: SocketAddr,
    timeline: i32,
    swaps: Arc<Semaphore>,
    /// When the requests were sent that are not answered yet. Answers come in order.
    unanswered: Mutex<VecDeque<Instant>>,
}

struct Request<'a> {
    what: &'a str,
    statement: &'a str,
    parameters: &'a [Parameter<'a>],
    /// Counts a swap.
    permit: Option<OwnedSemaphorePermit>,
    /// The key of which everybody is notified.
    changes: Option<&'a str>,
}

/// What a request has failed with.
pub(crate) enum Failure {
    /// The server's answer.
    Refused(Error),
    Other(BackendError),
}

impl Requests {
    pub(crate) fn new(config: PostgresConfig) -> Self {
        Self {
            statements: Arc::new(Statements::new(&config.schema)),
            config: Arc::new(config),
            slot: tokio::sync::Mutex::default(),
            known: Arc::default(),
        }
    }

    /// The same over a connection of their own, which does not wait for answers on this one.
    pub(crate) fn apart(&self) -> Self {
        Self {
            statements: Arc::clone(&self.statements),
            config: Arc::clone(&self.config),
            slot: tokio::sync::Mutex::default(),
            known: Arc::clone(&self.known),
        }
    }

    /// A connection of its own, to no other cluster and no earlier primary than requests have been sent to.
    pub(crate) async fn connect(&self) -> Result<Server, BackendError> {
        let (seen, deadline) = (lock(&self.known).seen, Instant::now() + self.config.connect_timeout);
        connect(&self.config, &self.statements, seen, deadline).await
    }

    /// Runs a statement, which is a transaction of its own. Requests of several callers are in flight at the same time.
    ///
    /// Returns when the server is ready for the next statement, and so has committed: the rows alone come earlier.
    pub(crate) async fn query(
        &self,
        what: &str,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, BackendError> {
        let connection = self.connection().await?;
        let request = Request { what, statement, parameters, permit: None, changes: None };
        self.send(&connection, request).await.map_err(|failure| match failure {
            Failure::Refused(error) => classify(what, &error),
            Failure::Other(error) => error,
        })
    }

    /// As [`query`](Self::query), for a swap, with the server's error. If it `changes` an election's record, everybody is notified.
    pub(crate) async fn swap(
        &self,
        what: &str,
        statement: &str,
        parameters: &[Parameter<'_>],
        changes: Option<&str>,
    ) -> Result<Vec<Row>, Failure> {
        let connection = self.connection().await.map_err(Failure::Other)?;
        let permit = timeout(self.config.attempt_timeout, Arc::clone(&connection.swaps).acquire_owned());
        let Ok(Ok(permit)) = permit.await else {
            let text =
                format!("{what}: {CONCURRENT_SWAPS} earlier ones are not answered yet; it is tried again");
            return Err(Failure::Other(BackendError::new(BackendErrorKind::Unavailable, text)));
        };
        self.send(&connection, Request { what, statement, parameters, permit: Some(permit), changes }).await
    }

    /// The request goes on when the caller drops it, and keeps the permit until its answer has come: the server works on it.
    async fn send(
        &self,
        connection: &Arc<Connection>,
        Request { what, statement, parameters, permit, changes }: Request<'_>,
    ) -> Result<Vec<Row>, Failure> {
        let unavailable = |text| Failure::Other(BackendError::new(BackendErrorKind::Unavailable, text));
        let parameters = encode(parameters).map_err(|error| {
            Failure::Other(BackendError::new(BackendErrorKind::Invalid, format!("{what}: {error}")))
        })?;
        let (sender, statement) = (Arc::clone(connection), statement.to_owned());
        let notification = changes.map(|key| (Arc::clone(&self.statements), key.to_owned()));
        lock(&connection.unanswered).push_back(Instant::now());
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let request = async {
                let rows = async {
                    sender.client.query_typed_raw(&statement, parameters).await?.try_collect().await
                };
                let rows: Result<Vec<Row>, Error> = rows.await;
                lock(&sender.unanswered).pop_front();
                drop(permit);
                // The caller may be gone.
                let _ = answer.send(rows);
            };
            // A statement of its own: a swap does not fail because a queue of notifications is full, and does not hold the lock for
            // which all notifications of the cluster wait. Sent behind the swap without waiting for its answer, and so carried out after it.
            let notify = async {
                let Some((statements, key)) = &notification else { return };
                let parameters: [Parameter<'_>; 1] = [(key, Type::TEXT)];
                if let Err(error) = sender.client.query_typed(&statements.notify, &parameters).await {
                    debug!(%error, "a notification is lost; the record is polled");
                }
            };
            // Polled in this order.
            future::join(request, notify).await;
        });
        match timeout(self.config.attempt_timeout, answered).await {
            Ok(Ok(Ok(rows))) => Ok(rows),
            Ok(Ok(Err(error))) => {
                if error.is_closed() || is_of_a_standby(&error) {
                    self.give_up(connection).await;
                }
                Err(Failure::Refused(error))
            }
            Ok(Err(ended)) => Err(unavailable(format!("{what}: {ended}"))),
            Err(_) => {
                self.give_up(connection).await;
                Err(unavailable(format!(
                    "{what}: PostgreSQL did not answer within {:?}",
                    self.config.attempt_timeout
                )))
            }
        }
    }

    /// The current connection, or a new one.
    async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        let mut slot = self.slot.lock().await;
        if let Some(current) = slot.current.as_ref().filter(|current| self.is_usable(current)) {
            self.look_elsewhere(current.address);
            return Ok(Arc::clone(current));
        }
        slot.current = None;
        // All who have waited for the attempt fail with it.
        if let Some(failed) = slot.failed.as_ref().filter(|failed| Instant::now() < failed.retry_at) {
            return Err(failed.error.clone());
        }
        let opened = self.open(&mut slot).await;
        slot.tried = None;
        match opened {
            Ok(connection) => {
                slot.failed = None;
                Ok(Arc::clone(slot.current.insert(connection)))
            }
            Err(error) => {
                let pause =
                    slot.failed.as_ref().map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(MAX_PAUSE));
                let retry_at = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                slot.failed = Some(Failed { error: error.clone(), pause, retry_at });
                Err(error)
            }
        }
    }

    /// Whether nothing was seen that speaks against the connection. Callers may give a request up earlier than its time limit: requests
    /// that are not answered are counted here.
    fn is_usable(&self, connection: &Connection) -> bool {
        let is_overdue = |since: &Instant| since.elapsed() >= self.config.attempt_timeout;
        !connection.client.is_closed()
            && !lock(&connection.unanswered).front().is_some_and(is_overdue)
            && lock(&self.known).seen.is_none_or(|(_, timeline)| timeline <= connection.timeline)
    }

    async fn open(&self, slot: &mut Slot) -> Result<Arc<Connection>, BackendError> {
        let seen = lock(&self.known).seen;
        let deadline = *slot.tried.get_or_insert_with(Instant::now) + self.config.connect_timeout;
        let mut primary = connect(&self.config, &self.statements, seen, deadline).await?;
        primary.create_tables(&self.config, &self.statements).await?;
        let Server { client, messages, host, address, cluster, timeline, started, split, .. } = primary;
        while slot.drivers.try_join_next().is_some() {}
        if slot.started != started {
            // What another server has not answered, or this one before it was started again, holds nothing up here.
            (slot.drivers, slot.started) = (JoinSet::new(), started);
        }
        if slot.drivers.len() >= MAX_CONNECTIONS {
            let text = format!(
                "PostgreSQL has not answered the requests on {MAX_CONNECTIONS} connections, as when it waits for a synchronous \
                 standby; waiting for it"
            );
            return Err(BackendError::new(BackendErrorKind::Unavailable, text));
        }
        {
            let mut known = lock(&self.known);
            match known.seen {
                // The other connection was faster.
                Some((seen, _)) if seen != cluster => return Err(of_another_cluster(&host)),
                Some((_, seen)) if seen >= timeline => {}
                before => {
                    if before.is_some() {
                        info!(host, timeline, "PostgreSQL has failed over");
                    }
                    known.seen = Some((cluster, timeline));
                }
            }
            if let Some(primaries) = split.as_ref().filter(|split| known.split.as_ref() != Some(split)) {
                warn!(
                    primaries,
                    "PostgreSQL has several primaries (split brain), and the latest one is used; stop the others"
                );
            }
            (known.split, known.looked) = (split, Some(Instant::now()));
        }
        slot.drivers.spawn(drive(messages, host));
        let swaps = Arc::new(Semaphore::new(CONCURRENT_SWAPS));
        Ok(Arc::new(Connection { client, address, timeline, swaps, unanswered: Mutex::default() }))
    }

    /// Looks for a later primary once in a while, in the background. Once one is seen, no earlier one is used.
    fn look_elsewhere(&self, in_use: SocketAddr) {
        let mut known = lock(&self.known);
        let Some(seen) = known.seen else { return };
        if known.looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
            return;
        }
        known.looked = Some(Instant::now());
        while known.looks.try_join_next().is_some() {}
        let (config, statements) = (Arc::clone(&self.config), Arc::clone(&self.statements));
        let shared = Arc::downgrade(&self.known);
        known.looks.spawn(async move {
            let Some(later) = later_primary(&config, &statements, in_use, seen).await else { return };
            let Some(known) = shared.upgrade() else { return };
            let seen = &mut lock(&known).seen;
            if seen.is_none_or(|seen| seen.1 < later.timeline) {
                warn!(
                    primaries = format!("{in_use} (timeline {}) and {later}", seen.map_or(0, |seen| seen.1)),
                    "PostgreSQL has several primaries (split brain), and the later one is used from now on; stop the other"
                );
                *seen = Some((later.cluster, later.timeline));
            }
        });
    }

    /// Makes the next request use another connection. What was sent on this one may still be carried out: it is never cancelled, because
    /// a cancelled commit is one that was not replicated.
    async fn give_up(&self, connection: &Arc<Connection>) {
        let mut slot = self.slot.lock().await;
        slot.current.take_if(|current| Arc::ptr_eq(current, connection));
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        let mut slot = self.slot.lock().await;
        slot.current = None;
        // Detached: a last statement, and the message that ends the connection, are under way.
        slot.drivers.detach_all();
        lock(&self.known).looks.abort_all();
    }
}

/// A parameter as it is sent.
#[derive(Debug)]
struct Encoded(BytesMut);

impl ToSql for Encoded {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Send + Sync>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// Copies parameters, none of which is null, for a request that outlives its caller.
fn encode(parameters: &[Parameter<'_>]) -> Result<Vec<(Encoded, Type)>, Box<dyn StdError + Send + Sync>> {
    let encode = |(parameter, kind): &Parameter<'_>| {
        let mut bytes = BytesMut::new();
        parameter.to_sql_checked(kind, &mut bytes)?;
        Ok((Encoded(bytes), kind.clone()))
    };
    parameters.iter().map(encode).collect()
}

/// Drives a connection until it ends: when it fails, or when it was given up and all its requests have been answered.
async fn drive(mut messages: Messages, host: String) {
    while let Some(message) = messages.next().await {
        match message {
            // The answer that follows it, of success, is not passed on: the connection ends first.
            Ok(AsyncMessage::Notice(notice)) if is_unreplicated(&notice) => {
                warn!(
                    host,
                    "somebody has cancelled a commit that waited for a synchronous standby: its outcome is unknown"
                );
                return;
            }
            Ok(message) => debug!(host, ?message, "PostgreSQL says"),
            Err(error) => {
                debug!(host, %error, "the connection has ended");
                return;
            }
        }
    }
}

/// Whether this is the warning of a commit that succeeded on the primary only: `the transaction has already committed locally, but might
/// not have been replicated`. Its text is translated; the name of the function is not.
fn is_unreplicated(notice: &DbError) -> bool {
    notice.parsed_severity() == Some(Severity::Warning) && notice.routine() == Some("SyncRepWaitForLSN")
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("config", &self.config).finish_non_exhaustive()
    }
}
