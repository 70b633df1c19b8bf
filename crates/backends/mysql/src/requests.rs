//! Requests: over a few connections to the primary, which are made when they are needed.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use mysql_async::{Error, Row, Value};
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, info};

use crate::{
    config::MysqlConfig,
    error::{NO_SUCH_TABLE, classify, is_conflict, is_of_a_replica, is_of_connection, unavailable},
    schema::{Statements, TABLES, permission},
    server::{Answer, Found, Server},
};

/// How many requests are under way at a time.
const CONNECTIONS: usize = 4;
/// The share of a request's time that connecting may take, so that the error says what did not answer.
const CONNECT_SHARE: f64 = 0.75;
/// How much longer to wait for the other hosts once a primary has answered: the first to answer may be a former primary.
const OTHER_PRIMARIES_WAIT: Duration = Duration::from_millis(100);
/// How long closing a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections for one kind of request.
pub(crate) struct Requests {
    pub(crate) config: Arc<MysqlConfig>,
    primary: Arc<KnownPrimary>,
    idle: Mutex<Vec<Server>>,
    permits: Semaphore,
}

/// What all connections have found out.
#[derive(Debug, Default)]
struct KnownPrimary {
    /// The highest epoch, and the server that had it.
    seen: Mutex<Option<Found>>,
    /// Rises when the server is the primary no more. Connections of before are given up.
    generation: AtomicU64,
    /// Whether the tables were there. If they have gone they are not made again: elections would begin anew beside a leader.
    has_tables: AtomicBool,
}

impl Requests {
    pub(crate) fn new(config: MysqlConfig) -> Self {
        Self::with(Arc::new(config), Arc::default())
    }

    /// The same, over connections of their own.
    pub(crate) fn apart(&self) -> Self {
        Self::with(Arc::clone(&self.config), Arc::clone(&self.primary))
    }

    fn with(config: Arc<MysqlConfig>, primary: Arc<KnownPrimary>) -> Self {
        Self { config, primary, idle: Mutex::default(), permits: Semaphore::new(CONNECTIONS) }
    }

    /// Carries out a statement that reads. The first column of its rows says whether the server is the primary of the current epoch.
    ///
    /// # Errors
    /// Also when it is not.
    pub(crate) async fn query(
        &self,
        what: &str,
        statement: fn(&Statements) -> &str,
        parameters: Vec<Value>,
    ) -> Result<Vec<Row>, BackendError> {
        let mut rows = self.run(what, statement, parameters).await?.rows;
        let Some(first) = rows.first_mut() else {
            return Err(unavailable(format!(
                "{what}: tenure_epoch is empty; restart all candidates, which begins an epoch there"
            )));
        };
        if first.take_opt::<bool, _>(0).and_then(Result::ok) != Some(true) {
            self.give_up_primary();
            return Err(unavailable(format!(
                "{what}: the server is the primary no more, or another one; connecting again"
            )));
        }
        Ok(rows)
    }

    /// Carries out a statement that writes, and returns whether it changed a row. It changes none if it has lost against another one.
    pub(crate) async fn write(
        &self,
        what: &str,
        statement: fn(&Statements) -> &str,
        parameters: Vec<Value>,
    ) -> Result<bool, BackendError> {
        Ok(self.run(what, statement, parameters).await?.affected > 0)
    }

    async fn run(
        &self,
        what: &str,
        statement: fn(&Statements) -> &str,
        parameters: Vec<Value>,
    ) -> Result<Answer, BackendError> {
        let limit = self.config.settings.request_timeout();
        match timeout(limit, self.run_in_time(what, statement, parameters)).await {
            Ok(answer) => answer.map_err(|error| self.permitted(error)),
            Err(_) => Err(unavailable(format!("{what}: no answer within {limit:?}"))),
        }
    }

    async fn run_in_time(
        &self,
        what: &str,
        statement: fn(&Statements) -> &str,
        parameters: Vec<Value>,
    ) -> Result<Answer, BackendError> {
        let _permit = self.permits.acquire().await;
        loop {
            let idle = lock(&self.idle).pop().filter(|server| self.is_current(server));
            let is_new = idle.is_none();
            let mut server = match idle {
                Some(server) => server,
                None => self.connect().await?,
            };
            let statements = Arc::clone(&server.statements);
            match server.run(statement(&statements), parameters.clone()).await {
                Ok(answer) => {
                    self.put_back(server);
                    return Ok(answer);
                }
                Err(Error::Server(refusal)) if is_conflict(refusal.code) => {
                    self.put_back(server);
                    return Ok(Answer { rows: Vec::new(), affected: 0 });
                }
                // The server has closed the connection while it was not used. A swap that was done is a conflict now.
                Err(error) if !is_new && is_of_connection(&error) => {
                    debug!(%error, "a connection has ended; making another one");
                }
                Err(error) => {
                    if is_of_a_replica(&error) {
                        self.give_up_primary();
                    }
                    return Err(classify(what, &error));
                }
            }
        }
    }

    fn is_current(&self, server: &Server) -> bool {
        server.generation == self.primary.generation.load(Ordering::Relaxed)
    }

    fn put_back(&self, server: Server) {
        if self.is_current(&server) {
            lock(&self.idle).push(server);
        }
    }

    fn give_up_primary(&self) {
        self.primary.generation.fetch_add(1, Ordering::Relaxed);
        lock(&self.idle).clear();
    }

    /// Connects to each host. An attempt ends within the time limit.
    pub(crate) fn attempts(&self) -> Attempts {
        let limit = self.config.settings.request_timeout().mul_f64(CONNECT_SHARE);
        let mut attempts = JoinSet::new();
        for (host, port) in self.config.endpoints() {
            let (config, host) = (Arc::clone(&self.config), host.to_owned());
            attempts.spawn(async move {
                let name = format!("{host}:{port}");
                let late = |_| Err(unavailable(format!("connecting to {name}: no answer within {limit:?}")));
                let opened = timeout(limit, Server::open(&config, &host, port)).await.unwrap_or_else(late);
                (name, opened)
            });
        }
        Attempts(attempts)
    }

    /// Connects to the primary. Every host is tried at once; of several primaries the one with the highest epoch is used.
    async fn connect(&self) -> Result<Server, BackendError> {
        let generation = self.primary.generation.load(Ordering::Relaxed);
        let (mut attempts, mut primaries, mut failures) = (self.attempts(), Vec::new(), Vec::new());
        // Each attempt ends before that.
        let mut until = Instant::now() + self.config.settings.request_timeout();
        while let Ok(Some(attempt)) = timeout_at(until, attempts.0.join_next()).await {
            match attempt {
                Ok((_, Ok(server))) => {
                    primaries.push(server);
                    until = until.min(Instant::now() + OTHER_PRIMARIES_WAIT);
                }
                Ok((_, Err(error))) => failures.push(error),
                // It panics at some answers.
                Err(error) => failures.push(unavailable(format!("the client library has failed: {error}"))),
            }
        }
        let rank = |server: &Server| server.found.as_ref().map(|it| (it.epoch, it.is_primary));
        let Some(mut server) = primaries.into_iter().max_by_key(rank) else {
            return Err(BackendError::of_hosts(failures));
        };
        server.generation = generation;
        self.adopt(&mut server).await?;
        Ok(server)
    }

    /// Makes a server the primary. Creates the tables, if there are none, and begins an epoch if the last one was on another server (hazard C5).
    async fn adopt(&self, server: &mut Server) -> Result<(), BackendError> {
        let (name, statements) = (server.info.name.clone(), Arc::clone(&server.statements));
        if server.found.is_none() {
            if self.primary.has_tables.load(Ordering::Relaxed) {
                let text =
                    format!("{name}: the tables have gone; restart all candidates, which creates them again");
                return Err(unavailable(text));
            }
            let failed = |error| classify(&format!("creating the tables on {name}"), &error);
            match server.define(&statements.create_epoch).await {
                Err(Error::Server(refusal)) if refusal.code == NO_SUCH_TABLE => {
                    for statement in TABLES.into_iter().chain([statements.create_epoch.as_str()]) {
                        server.define(statement).await.map_err(failed)?;
                    }
                }
                created => created.map_err(failed)?,
            }
            server.look().await?;
            info!(server = name, epoch = ?server.found, "the tables are new: nobody leads for the TTL and a tenth of it");
        }
        let seen = lock(&self.primary.seen).clone();
        let is_given_twice = |found: &Found| {
            seen.as_ref().is_some_and(|seen| seen.epoch == found.epoch && seen.server != found.server)
        };
        if server.found.as_ref().is_some_and(|found| !found.is_primary || is_given_twice(found)) {
            let epoch = seen.as_ref().map(|seen| seen.epoch);
            let parameters = vec![epoch.into(), epoch.into(), seen.map(|seen| seen.server).into()];
            let raised = server.run(&statements.raise, parameters).await;
            raised.map_err(|error| classify(&format!("beginning an epoch on {name}"), &error))?;
            server.look().await?;
            info!(server = name, epoch = ?server.found, "the elections have moved to another server: an epoch begins");
        }
        let Some(found) = server.found.clone().filter(|found| found.is_primary) else {
            return Err(unavailable(format!("{name} is read-only now, or its tables have gone")));
        };
        self.primary.has_tables.store(true, Ordering::Relaxed);
        let mut seen = lock(&self.primary.seen);
        if let Some(seen) = seen.as_ref().filter(|seen| seen.epoch > found.epoch) {
            return Err(unavailable(format!(
                "{name} is an earlier primary (epoch {}, and {} was seen on {}): stop it, or make it a replica; if it is the right one, run \
                 there: UPDATE tenure_epoch SET server = ''",
                found.epoch, seen.epoch, seen.server
            )));
        }
        *seen = Some(found);
        Ok(())
    }

    /// The error, with the statements that an owner of the database has to run, if the user may not do it.
    fn permitted(&self, error: BackendError) -> BackendError {
        if error.kind() != BackendErrorKind::Forbidden {
            return error;
        }
        let advice = permission(&self.config.database, &self.config.user);
        BackendError::new(BackendErrorKind::Forbidden, format!("{error}; {advice}"))
    }

    /// Closes the connections that are not in use; the others end with their requests.
    pub(crate) async fn close(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        self.give_up_primary();
        let _ = timeout(CLOSE_TIMEOUT, join_all(idle.into_iter().map(Server::close))).await;
    }
}

/// Attempts to connect. Those that are not waited for end in the background, and then close their connections: a server counts
/// handshakes that are cut off, and refuses this client after `max_connect_errors` of them.
#[derive(Debug)]
pub(crate) struct Attempts(pub(crate) JoinSet<(String, Result<Server, BackendError>)>);

impl Drop for Attempts {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests")
            .field("config", &self.config)
            .field("primary", &self.primary)
            .finish_non_exhaustive()
    }
}
