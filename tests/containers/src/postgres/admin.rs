//! A client that administers a PostgreSQL server, as the user `postgres` and with one connection per request.

use std::{io, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::error::ContainerError;

/// How long a request may take, with its connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The superuser, who needs no password in tests.
const USER: &str = "postgres";

/// A client that administers a PostgreSQL server.
#[derive(Clone, Debug)]
pub struct PostgresAdmin {
    endpoint: String,
    database: String,
}

/// The values of a row; `None` for a null.
pub(crate) type Row = Vec<Option<String>>;

impl PostgresAdmin {
    /// A client of the server at `endpoint`, `host:port`, and of its database `postgres`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), database: USER.to_owned() }
    }

    /// A client of another database of the same server.
    pub fn in_database(&self, database: &str) -> Self {
        Self { endpoint: self.endpoint.clone(), database: database.to_owned() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The URL with which the superuser connects to the database.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@{}/{}", self.endpoint, self.database)
    }

    /// Succeeds when the server answers a query; a replica does so too.
    ///
    /// # Errors
    /// When it does not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.execute("SELECT 1").await
    }

    /// Runs one statement of SQL, or several in one transaction, and returns the rows as text.
    ///
    /// # Errors
    /// When the server refuses a statement, or does not answer within 5 s.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ContainerError> {
        let messages = self.connected(async |client| client.simple_query(sql).await, sql).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect::<Row>())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs SQL and ignores its rows.
    ///
    /// # Errors
    /// As for [`query`](Self::query).
    pub async fn execute(&self, sql: &str) -> Result<(), ContainerError> {
        self.query(sql).await.map(drop)
    }

    /// The first value of the first row.
    ///
    /// # Errors
    /// As for [`query`](Self::query), and when there is none.
    pub async fn value(&self, sql: &str) -> Result<String, ContainerError> {
        let rows = self.query(sql).await?;
        let first = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        first.ok_or_else(|| ContainerError::Unexpected(format!("{sql} has no value at {}", self.endpoint)))
    }

    /// Whether the server is a replica. A primary that starts is one for a moment as well.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn is_replica(&self) -> Result<bool, ContainerError> {
        Ok(self.value("SELECT pg_is_in_recovery()").await? == "t")
    }

    /// The timeline to which a primary writes: it rises with each promotion.
    ///
    /// # Errors
    /// When the server is a replica, or does not answer.
    pub async fn timeline(&self) -> Result<u32, ContainerError> {
        let file = self.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await?;
        let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        timeline.ok_or_else(|| ContainerError::Unexpected(format!("{file:?} names no timeline")))
    }

    /// Creates a database with this name, which must be a plain identifier, and returns a client of it.
    ///
    /// # Errors
    /// When it exists, or the server does not answer.
    pub async fn create_database(&self, name: &str) -> Result<Self, ContainerError> {
        self.execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(self.in_database(name))
    }

    /// Creates a user who logs in with this password. Both must need no quoting.
    ///
    /// # Errors
    /// When the user exists, or the server does not answer.
    pub async fn add_user(&self, user: &str, password: &str) -> Result<(), ContainerError> {
        self.execute(&format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await
    }

    /// Ends all connections of clients, as an operator, a failing connection pool or a restart does. Returns how many.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn terminate_connections(&self) -> Result<usize, ContainerError> {
        const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        Ok(self.query(TERMINATE).await?.len())
    }

    /// Changes a setting of the server, and makes the server read it.
    ///
    /// # Errors
    /// When there is no such setting, or the server does not answer.
    pub async fn set(&self, setting: &str, value: &str) -> Result<(), ContainerError> {
        // Each on its own: the first is refused in a transaction.
        self.execute(&format!("ALTER SYSTEM SET {setting} = '{value}'")).await?;
        self.execute("SELECT pg_reload_conf()").await
    }

    async fn connected<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
        sql: &str,
    ) -> Result<T, ContainerError> {
        let unexpected = || ContainerError::Unexpected(format!("{} is no host:port", self.endpoint));
        let (host, port) = self.endpoint.rsplit_once(':').ok_or_else(unexpected)?;
        let mut config = Config::new();
        config.host(host).port(port.parse().map_err(|_| unexpected())?);
        config.user(USER).dbname(&self.database);
        let request = async {
            let (client, connection) = config.connect(NoTls).await?;
            let work = async move { work(&client).await };
            // The connection ends when the client is dropped.
            let (done, _) = tokio::join!(work, connection);
            done
        };
        match timeout(REQUEST_TIMEOUT, request).await {
            Ok(done) => done.map_err(|error| self.failure(sql, error)),
            Err(_) => Err(self.no_answer(sql, io::ErrorKind::TimedOut.into())),
        }
    }

    fn failure(&self, sql: &str, error: tokio_postgres::Error) -> ContainerError {
        match error.as_db_error() {
            Some(refusal) => {
                let message = format!("{} ({})", refusal.message(), refusal.code().code());
                ContainerError::Refused { request: self.request(sql), message }
            }
            None => self.no_answer(sql, io::Error::other(error)),
        }
    }

    fn no_answer(&self, sql: &str, source: io::Error) -> ContainerError {
        ContainerError::NoAnswer { request: self.request(sql), source }
    }

    fn request(&self, sql: &str) -> String {
        format!("{sql:?} at {}", self.endpoint)
    }
}
