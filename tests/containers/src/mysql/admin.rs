//! A client that administers a MariaDB server, as the user `root` and with one connection per request.

use std::{io, time::Duration};

use mysql_async::{Conn, Error, Opts, OptsBuilder, Row, prelude::Queryable as _};
use tokio::time::timeout;

use crate::error::ContainerError;

/// How long a request may take, with its connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The user who may do everything, and needs no password in tests.
const USER: &str = "root";
/// A database that every server has.
const DATABASE: &str = "tenure";

/// A client that administers a MariaDB server.
#[derive(Clone, Debug)]
pub struct MysqlAdmin {
    endpoint: String,
    database: String,
}

impl MysqlAdmin {
    /// A client of the server at `endpoint`, `host:port`, and of its database `tenure`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), database: DATABASE.to_owned() }
    }

    /// A client of another database of the same server.
    pub fn in_database(&self, database: &str) -> Self {
        Self { endpoint: self.endpoint.clone(), database: database.to_owned() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The URL with which `root` connects to the database.
    pub fn url(&self) -> String {
        self.url_of(USER)
    }

    /// The URL with which a user, or `user:password`, connects to the database.
    pub fn url_of(&self, user: &str) -> String {
        format!("mysql://{user}@{}/{}", self.endpoint, self.database)
    }

    /// Succeeds when the server answers a query; a replica does so too.
    ///
    /// # Errors
    /// When it does not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.execute("SELECT 1").await
    }

    /// Runs one statement and returns its rows as text.
    ///
    /// # Errors
    /// When the server refuses it, or does not answer within 5 s.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ContainerError> {
        let unexpected = || ContainerError::Unexpected(format!("{} is no host:port", self.endpoint));
        let (host, port) = self.endpoint.rsplit_once(':').ok_or_else(unexpected)?;
        let options = OptsBuilder::default()
            .ip_or_hostname(host)
            .tcp_port(port.parse().map_err(|_| unexpected())?)
            .user(Some(USER))
            .db_name(Some(&self.database))
            .prefer_socket(false);
        let request = async {
            let mut conn = Conn::new(Opts::from(options)).await?;
            let rows: Vec<Row> = conn.query(sql).await?;
            conn.disconnect().await?;
            Ok(rows)
        };
        let rows = match timeout(REQUEST_TIMEOUT, request).await {
            Ok(done) => done.map_err(|error| self.failure(sql, error))?,
            Err(_) => return Err(self.no_answer(sql, io::ErrorKind::TimedOut.into())),
        };
        let text = |mut row: Row| {
            (0..row.len()).map(|column| row.take_opt(column).and_then(Result::ok).flatten()).collect()
        };
        Ok(rows.into_iter().map(text).collect())
    }

    /// Runs one statement and ignores its rows.
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

    /// Creates a database with this name, which must be a plain identifier, and returns a client of it.
    ///
    /// # Errors
    /// When it exists, or the server does not answer.
    pub async fn create_database(&self, name: &str) -> Result<Self, ContainerError> {
        self.execute(&format!("CREATE DATABASE `{name}`")).await?;
        Ok(self.in_database(name))
    }

    /// Creates a user who logs in with this password. Both must need no quoting.
    ///
    /// # Errors
    /// When the user exists, or the server does not answer.
    pub async fn add_user(&self, user: &str, password: &str) -> Result<(), ContainerError> {
        self.execute(&format!("CREATE USER {user}@'%' IDENTIFIED BY '{password}'")).await
    }

    /// Lets a user do everything in the database.
    ///
    /// # Errors
    /// When there is no such user, or the server does not answer.
    pub async fn grant_all(&self, user: &str) -> Result<(), ContainerError> {
        self.execute(&format!("GRANT ALL ON `{}`.* TO {user}@'%'", self.database)).await
    }

    fn failure(&self, sql: &str, error: Error) -> ContainerError {
        match error {
            Error::Server(refusal) => {
                let message = format!("{} ({})", refusal.message, refusal.code);
                ContainerError::Refused { request: self.request(sql), message }
            }
            other => self.no_answer(sql, io::Error::other(other)),
        }
    }

    fn no_answer(&self, sql: &str, source: io::Error) -> ContainerError {
        ContainerError::NoAnswer { request: self.request(sql), source }
    }

    fn request(&self, sql: &str) -> String {
        format!("{sql:?} at {}", self.endpoint)
    }
}
