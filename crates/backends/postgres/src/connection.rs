//! The connection for requests: made when it is needed, and replaced when it does not answer.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{
    AsyncMessage, Client, Error, Row,
    error::{DbError, Severity},
    types::{ToSql, Type},
};
use tracing::{debug, info, warn};

use crate::{
    config::PostgresConfig,
    connect::{Messages, Server, connect},
    error::{classify, is_of_a_standby},
    schema::Statements,
};

/// How many connections there are at most, with those that were given up because a request was not answered. A server works on such a
/// request for as long as it waits for a synchronous standby, whether or not the client waits: without a bound there would be
/// more and more of them.
const MAX_CONNECTIONS: usize = 4;
/// How long a connection that was given up is kept for its answers.
const MAX_UNANSWERED: Duration = Duration::from_secs(600);
/// The pause after a failed attempt to connect: doubled each time, up to the limit.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A parameter of a statement, and its type.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Sends statements to the primary, over one connection at a time.
pub(crate) struct Requests {
    pub(crate) config: PostgresConfig,
    pub(crate) statements: Statements,
    /// Locked while a connection is made.
    slot: tokio::sync::Mutex<Slot>,
    /// What drives the connections.
    drivers: Mutex<JoinSet<()>>,
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct Slot {
    current: Option<Arc<Connection>>,
    /// The cluster, and the latest timeline that was seen of it.
    seen: Option<(i64, i32)>,
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
    /// Dropped with this: the connection has been given up.
    _in_use: oneshot::Sender<Infallible>,
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
            statements: Statements::new(&config.schema),
            config,
            slot: tokio::sync::Mutex::default(),
            drivers: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
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
        self.try_query(what, statement, parameters).await.map_err(|failure| match failure {
            Failure::Refused(error) => classify(what, &error),
            Failure::Other(error) => error,
        })
    }

    /// As [`query`](Self::query), with the server's error.
    pub(crate) async fn try_query(
        &self,
        what: &str,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let connection = self.connection().await.map_err(Failure::Other)?;
        let answer = connection.client.query_typed(statement, parameters);
        match timeout(self.config.attempt_timeout, answer).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => {
                if error.is_closed() || is_of_a_standby(&error) {
                    self.give_up(&connection).await;
                }
                Err(Failure::Refused(error))
            }
            Err(_) => {
                self.give_up(&connection).await;
                let text =
                    format!("{what}: PostgreSQL did not answer within {:?}", self.config.attempt_timeout);
                Err(Failure::Other(BackendError::new(BackendErrorKind::Unavailable, text)))
            }
        }
    }

    /// The current connection, or a new one.
    async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        let mut slot = self.slot.lock().await;
        if let Some(current) = slot.current.as_ref().filter(|current| !current.client.is_closed()) {
            return Ok(Arc::clone(current));
        }
        slot.current = None;
        // All who have waited for the attempt fail with it.
        if let Some(failed) = slot.failed.as_ref().filter(|failed| Instant::now() < failed.retry_at) {
            return Err(failed.error.clone());
        }
        match self.open(slot.seen).await {
            Ok((connection, seen)) => {
                (slot.failed, slot.seen) = (None, Some(seen));
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

    async fn open(&self, seen: Option<(i64, i32)>) -> Result<(Arc<Connection>, (i64, i32)), BackendError> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let text = format!(
                "PostgreSQL has not answered the requests on {MAX_CONNECTIONS} connections, as when it waits for a synchronous \
                 standby; waiting for it"
            );
            return Err(BackendError::new(BackendErrorKind::Unavailable, text));
        };
        let Server { client, messages, host, cluster, timeline, .. } =
            connect(&self.config, &self.statements, seen).await?;
        if seen.is_some_and(|seen| seen != (cluster, timeline)) {
            info!(host, timeline, "PostgreSQL has failed over");
        }
        let (in_use, given_up) = oneshot::channel();
        lock(&self.drivers).spawn(drive(messages, host, given_up, permit));
        Ok((Arc::new(Connection { client, _in_use: in_use }), (cluster, timeline)))
    }

    /// Makes the next request use another connection. What was sent on this one may still be carried out: it is never cancelled, because
    /// a cancelled commit is one that was not replicated.
    async fn give_up(&self, connection: &Arc<Connection>) {
        let mut slot = self.slot.lock().await;
        slot.current.take_if(|current| Arc::ptr_eq(current, connection));
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.slot.lock().await.current = None;
        // Detached: a last statement, and the message that ends the connection, are under way.
        lock(&self.drivers).detach_all();
    }
}

/// Drives a connection until it ends: when it fails, or some time after it was given up, when all its requests have been answered.
async fn drive(
    mut messages: Messages,
    host: String,
    given_up: oneshot::Receiver<Infallible>,
    _permit: OwnedSemaphorePermit,
) {
    let overdue = async {
        let _ = given_up.await;
        sleep(MAX_UNANSWERED).await;
    };
    let drive = async {
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
    };
    tokio::select! {
        () = drive => {}
        () = overdue => debug!(host, "a connection with unanswered requests is closed"),
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
