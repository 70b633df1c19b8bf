//! The connections for requests: made when they are needed, and replaced when they do not answer.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::{self, BoxFuture, Shared},
};
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_postgres::{
    AsyncMessage, Client, Error, Row,
    error::{DbError, Severity},
    types::{ToSql, Type},
};
use tracing::{debug, info, warn};

use crate::{
    config::PostgresConfig,
    connect::{Database, Host, Identity, Messages, Server},
    error::{classify, is_conflict, is_of_a_standby},
    schema::Statements,
};

/// The most connections to a server, with those that were given up because a request was not answered. A server works on such a request for
/// as long as it waits for a synchronous standby, whether or not the client waits: without a bound there would be more and more of them. Each
/// is kept until its answers come, or the server is started again or replaced; a dead peer is noticed by TCP's keepalive.
const MAX_CONNECTIONS: usize = 4;
/// How many swaps are in flight on a connection. Each may wait for a fenced transaction, with a read behind it.
const CONCURRENT_SWAPS: usize = 4;
/// The pause after a failed attempt to connect: doubled each time, up to the limit.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(3);
/// How often the other hosts are checked while there is a connection, on average: one of them may have been promoted, although this one lives.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How long what is under way may take when the store is closed.
const LAST: Duration = Duration::from_millis(250);

/// The parameters of a statement, none of which is null, and their types.
pub(crate) type Parameters = Vec<(Box<dyn ToSql + Send + Sync>, Type)>;

/// Text as a parameter.
pub(crate) fn text(value: &str) -> (Box<dyn ToSql + Send + Sync>, Type) {
    (Box::new(value.to_owned()), Type::TEXT)
}

/// Sends statements to the primary, over one connection at a time.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) database: Arc<Database>,
    primary: Arc<KnownPrimary>,
    link: Mutex<Link>,
}

/// The primary, as the connections of an elector know it.
#[derive(Debug)]
struct KnownPrimary {
    /// The latest one that was seen.
    seen: watch::Sender<Option<Identity>>,
    /// The latest timeline on which there were tables.
    tables: AtomicI32,
    /// The primaries that were reported last, when there were several.
    split: Mutex<Option<String>>,
    check: Mutex<PrimaryCheck>,
}

/// When the other hosts are checked for a later primary, and the task that does it.
#[derive(Debug)]
struct PrimaryCheck {
    due: Instant,
    task: JoinSet<()>,
}

type Opening = Shared<BoxFuture<'static, Result<Arc<Connection>, BackendError>>>;

#[derive(Debug, Default)]
struct Link {
    current: Option<Arc<Connection>>,
    /// The attempt to connect, which all callers share. It is a task of its own, because callers may wait for less time than it takes.
    opening: Option<(Opening, AbortHandle)>,
    failed: Option<Failed>,
    /// The server to which the connections are.
    server: Option<Identity>,
    /// What drives the connections.
    drivers: JoinSet<()>,
}

/// An attempt to connect that has failed.
#[derive(Debug)]
struct Failed {
    error: BackendError,
    pause: Duration,
    retry_at: Instant,
    /// The primary at that time.
    seen: Option<Identity>,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    host: Host,
    address: SocketAddr,
    swaps: Arc<Semaphore>,
    /// A request was not answered in time, or another server is the primary. What was sent may still be carried out: it is never cancelled,
    /// because a cancelled commit is one that was not replicated.
    is_given_up: AtomicBool,
}

impl Requests {
    pub(crate) fn new(config: PostgresConfig) -> Self {
        let statements = Statements::new(&config.schema);
        let check = PrimaryCheck { due: Instant::now() + CHECK_INTERVAL, task: JoinSet::new() };
        Self {
            database: Arc::new(Database { config, statements }),
            primary: Arc::new(KnownPrimary {
                seen: watch::Sender::new(None),
                tables: AtomicI32::new(0),
                split: Mutex::default(),
                check: Mutex::new(check),
            }),
            link: Mutex::default(),
        }
    }

    /// The same over a connection of their own, which does not wait for answers on this one.
    pub(crate) fn apart(&self) -> Self {
        let (database, primary) = (Arc::clone(&self.database), Arc::clone(&self.primary));
        Self { database, primary, link: Mutex::default() }
    }

    /// Another connection to the primary.
    pub(crate) async fn connect(&self) -> Result<Server, BackendError> {
        let seen = *self.primary.seen.borrow();
        let server = self.database.connect(seen, None).await?;
        self.primary.learn(&server)?;
        Ok(server)
    }

    /// Waits until another server is the primary, or the same one after a restart.
    pub(crate) async fn reconnected(&self) {
        // The sender is not dropped before this.
        let _ = self.primary.seen.subscribe().changed().await;
    }

    /// Waits until another server than this is the primary.
    pub(crate) async fn superseded(&self, server: Identity) {
        // The sender is not dropped before this.
        let _ = self.primary.seen.subscribe().wait_for(|seen| *seen != Some(server)).await;
    }

    /// Runs a statement, which is a transaction of its own. Requests of several callers are in flight at the same time.
    ///
    /// Returns when the server is ready for the next statement, and so has committed: the rows alone come earlier.
    pub(crate) async fn query(
        self: &Arc<Self>,
        what: &str,
        statement: &str,
        parameters: Parameters,
    ) -> Result<Vec<Row>, BackendError> {
        let connection = self.connection().await?;
        let request = Request { what, statement, parameters, permit: None, notify: None };
        let lost =
            || unavailable(format!("{what}: it has lost against another transaction; it is tried again"));
        self.send(connection, request).await?.ok_or_else(lost)
    }

    /// As [`query`](Self::query), for a swap; `None` if it has lost against another transaction.
    ///
    /// `notify` are the parameters of the notification that is sent behind it.
    pub(crate) async fn swap(
        self: &Arc<Self>,
        what: &str,
        statement: &str,
        parameters: Parameters,
        notify: Option<Parameters>,
    ) -> Result<Option<Vec<Row>>, BackendError> {
        let connection = self.connection().await?;
        let permit =
            timeout(self.database.config.attempt_timeout, Arc::clone(&connection.swaps).acquire_owned());
        let Ok(Ok(permit)) = permit.await else {
            let text =
                format!("{what}: {CONCURRENT_SWAPS} earlier ones are not answered yet; it is tried again");
            return Err(unavailable(text));
        };
        if !self.is_usable(&connection) {
            return Err(unavailable(format!(
                "{what}: the connection has failed meanwhile; it is tried again"
            )));
        }
        self.send(connection, Request { what, statement, parameters, permit: Some(permit), notify }).await
    }

    /// The request goes on when the caller drops it, and keeps the permit until its answer has come: the server works on it.
    async fn send(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        request: Request<'_>,
    ) -> Result<Option<Vec<Row>>, BackendError> {
        let Request { what, statement, parameters, permit, notify } = request;
        let (database, primary) = (Arc::clone(&self.database), Arc::clone(&self.primary));
        let (what, statement) = (what.to_owned(), statement.to_owned());
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let request = async {
                let mut rows = pin!(run(&connection.client, &statement, parameters));
                let limit = database.config.attempt_timeout;
                let answer_in_time = timeout(limit, &mut rows).await;
                let is_late = answer_in_time.is_err();
                let outcome = match answer_in_time {
                    // A newer primary is known, and what this one has done may be lost.
                    Ok(_) if !primary.is(&connection) => Err(unavailable(format!(
                        "{what}: the server was restarted, or another one is the primary by now"
                    ))),
                    Ok(Ok(rows)) => Ok(Some(rows)),
                    Ok(Err(error)) if is_conflict(&error) => Ok(None),
                    Ok(Err(error)) => {
                        if is_of_a_standby(&error) {
                            connection.is_given_up.store(true, Ordering::Relaxed);
                        }
                        Err(classify(&what, &error))
                    }
                    Err(_) => {
                        connection.is_given_up.store(true, Ordering::Relaxed);
                        Err(unavailable(format!("{what}: PostgreSQL did not answer within {limit:?}")))
                    }
                };
                // The caller may be gone.
                let _ = answer.send(outcome);
                if is_late {
                    let _ = rows.await;
                }
                drop(permit);
            };
            // A statement of its own: a swap does not fail because a queue of notifications is full, and does not hold the lock for
            // which all notifications of the cluster wait. Sent behind the swap without waiting for its answer, and so carried out after it.
            let notification = async {
                let Some(parameters) = notify else { return };
                if let Err(error) = run(&connection.client, &database.statements.notify, parameters).await {
                    debug!(%error, "a notification is lost; the record is polled");
                }
            };
            // Polled in this order.
            future::join(request, notification).await;
        });
        answered.await.unwrap_or_else(|_| Err(unavailable("the runtime of the connection has ended")))
    }

    /// Whether there is a connection for requests, and each of them is answered in time.
    pub(crate) fn is_connected(&self) -> bool {
        lock(&self.link).current.as_ref().is_some_and(|current| self.is_usable(current))
    }

    /// Makes a connection in the background if there is none.
    pub(crate) fn begin_to_connect(self: &Arc<Self>) {
        // It goes on without the caller.
        let _ = self.connection().now_or_never();
    }

    /// The current connection, or a new one.
    async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, BackendError> {
        let opening = {
            let mut link = lock(&self.link);
            if let Some(current) = link.current.as_ref().filter(|current| self.is_usable(current)) {
                self.check_other_hosts(current);
                return Ok(Arc::clone(current));
            }
            link.current = None;
            // Until then callers get the error of the last attempt, unless another connection has found a primary since.
            let seen = *self.primary.seen.borrow();
            let is_recent = |failed: &&Failed| Instant::now() < failed.retry_at && failed.seen == seen;
            if let Some(failed) = link.failed.as_ref().filter(is_recent) {
                return Err(failed.error.clone());
            }
            match &link.opening {
                Some((opening, _)) if opening.peek().is_none() => opening.clone(),
                _ => {
                    let requests = Arc::clone(self);
                    let opened = tokio::spawn(async move { requests.open().await });
                    let task = opened.abort_handle();
                    let ended = |error| Err(unavailable(format!("connecting to PostgreSQL: {error}")));
                    let opening = opened.map(move |opened| opened.unwrap_or_else(ended)).boxed().shared();
                    link.opening.insert((opening, task)).0.clone()
                }
            }
        };
        opening.await
    }

    /// Whether it is not closed, not given up, and to the latest primary that was seen.
    fn is_usable(&self, connection: &Connection) -> bool {
        !connection.client.is_closed()
            && !connection.is_given_up.load(Ordering::Relaxed)
            && self.primary.is(connection)
    }

    /// Makes a connection the current one, or notes why there is none.
    async fn open(self: &Arc<Self>) -> Result<Arc<Connection>, BackendError> {
        let opened = self.open_connection().await;
        let mut link = lock(&self.link);
        link.opening = None;
        match &opened {
            Ok(connection) => (link.current, link.failed) = (Some(Arc::clone(connection)), None),
            Err(error) => {
                let pause =
                    link.failed.as_ref().map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(MAX_PAUSE));
                let retry_at = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                let seen = *self.primary.seen.borrow();
                link.failed = Some(Failed { error: error.clone(), pause, retry_at, seen });
            }
        }
        opened
    }

    async fn open_connection(&self) -> Result<Arc<Connection>, BackendError> {
        let seen = *self.primary.seen.borrow();
        let mut server = self.database.connect(seen, None).await?;
        let identity = server.host.identity;
        self.primary.learn(&server)?;
        // Tables that have gone are not made again on the same timeline: elections would begin anew beside a leader.
        if !server.host.has_tables && self.primary.tables.load(Ordering::Relaxed) < identity.timeline {
            server.create_tables(&self.database).await?;
        }
        self.primary.tables.fetch_max(identity.timeline, Ordering::Relaxed);
        let Server { client, messages, host, address, .. } = server;
        let mut link = lock(&self.link);
        while link.drivers.try_join_next().is_some() {}
        if link.server != Some(identity) {
            // Requests to another server, or to this one before it was started again, do not count.
            (link.drivers, link.server) = (JoinSet::new(), Some(identity));
        }
        if link.drivers.len() >= MAX_CONNECTIONS {
            return Err(unavailable(format!(
                "PostgreSQL has not answered the requests on {MAX_CONNECTIONS} connections, as when it waits for a synchronous \
                 standby; waiting for it"
            )));
        }
        link.drivers.spawn(drive(messages, host.name.clone()));
        let swaps = Arc::new(Semaphore::new(CONCURRENT_SWAPS));
        Ok(Arc::new(Connection { client, host, address, swaps, is_given_up: AtomicBool::new(false) }))
    }

    /// Looks for a later primary once in a while, in the background. Once one is seen, no earlier one is used.
    fn check_other_hosts(&self, in_use: &Connection) {
        let mut check = lock(&self.primary.check);
        if Instant::now() < check.due {
            return;
        }
        check.due = Instant::now() + CHECK_INTERVAL.mul_f64(0.5 + fastrand::f64());
        while check.task.try_join_next().is_some() {}
        let (database, primary) = (Arc::clone(&self.database), Arc::downgrade(&self.primary));
        let (host, address) = (in_use.host.clone(), in_use.address);
        check.task.spawn(async move {
            let later = Identity { timeline: host.identity.timeline + 1, ..host.identity };
            let mut server = match database.connect(Some(later), Some(address)).await {
                Ok(server) => server,
                Err(error) => {
                    debug!(%error, "no other host is a later primary");
                    return;
                }
            };
            server.split.get_or_insert_with(|| format!("{host} and {}", server.host));
            if let Some(primary) = primary.upgrade() {
                // Refused if requests have seen a later one meanwhile.
                let _ = primary.learn(&server);
            }
        });
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        let mut drivers = {
            let mut link = lock(&self.link);
            link.current = None;
            if let Some((_, task)) = link.opening.take() {
                task.abort();
            }
            std::mem::take(&mut link.drivers)
        };
        lock(&self.primary.check).task.abort_all();
        // A last notification, and the message that ends the connection, are under way.
        let _ = timeout(LAST, async { while drivers.join_next().await.is_some() {} }).await;
        // A statement that is not answered yet is carried out all the same; its connection ends after the answer.
        drivers.detach_all();
    }
}

struct Request<'a> {
    what: &'a str,
    statement: &'a str,
    parameters: Parameters,
    /// Counts a swap.
    permit: Option<OwnedSemaphorePermit>,
    notify: Option<Parameters>,
}

impl KnownPrimary {
    /// Whether the connection is to the latest primary that was seen.
    fn is(&self, connection: &Connection) -> bool {
        *self.seen.borrow() == Some(connection.host.identity)
    }

    /// Notes which server is the primary.
    ///
    /// # Errors
    /// When another connection has seen a later one, or another cluster.
    fn learn(&self, server: &Server) -> Result<(), BackendError> {
        let (host, found) = (&server.host, server.host.identity);
        let mut refused = None;
        self.seen.send_if_modified(|seen| {
            let before = *seen;
            if let Some(seen) =
                before.filter(|seen| seen.cluster != found.cluster || seen.timeline > found.timeline)
            {
                let text =
                    format!("PostgreSQL at {host}: another connection uses the timeline {}", seen.timeline);
                refused = Some(unavailable(text));
                return false;
            }
            if before.is_some_and(|seen| seen.timeline < found.timeline) {
                info!(host = host.name, timeline = found.timeline, "PostgreSQL has failed over");
            }
            *seen = Some(found);
            before != Some(found)
        });
        if let Some(refused) = refused {
            return Err(refused);
        }
        if let Some(primaries) = &server.split {
            let mut reported = lock(&self.split);
            if reported.as_ref() != Some(primaries) {
                warn!(
                    primaries,
                    "PostgreSQL has several primaries (split brain), and the latest one is used; stop the others"
                );
                *reported = Some(primaries.clone());
            }
        }
        Ok(())
    }
}

/// Runs a statement. It is sent when this is polled first.
async fn run(client: &Client, statement: &str, parameters: Parameters) -> Result<Vec<Row>, Error> {
    client.query_typed_raw(statement, parameters).await?.try_collect().await
}

fn unavailable(text: impl Into<String>) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, text.into())
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
