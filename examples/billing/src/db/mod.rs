//! The billing database, on SQLite or PostgreSQL with the same SQL.

mod fenced;
mod queries;
mod schema;

use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::{AnyConnection, AnyPool, Connection, any::AnyPoolOptions};

use crate::election::is_postgres;

pub(crate) use fenced::WriteError;
pub(crate) use queries::{RecordedRenewal, Renewal, Term};
pub(crate) use schema::NewSubscription;

/// A leader that is stopped within a transaction holds its locks. PostgreSQL ends such a transaction after this time,
/// so that the next leader does not wait until the old one continues.
const POSTGRES_IDLE_IN_TRANSACTION: &str = "SET idle_in_transaction_session_timeout = '2s'";

/// How long a server waits for a connection. A leader that has none resigns.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to the billing database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pool: AnyPool,
    engine: Engine,
    /// Whether the election is in this database.
    has_election: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

impl Database {
    /// Connects, and creates the tables that are missing.
    ///
    /// # Errors
    /// If the URL is not supported or the database does not answer. The error does not contain the password.
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        Self::open_with(url, ACQUIRE_TIMEOUT).await
    }

    /// As [`open`](Self::open), with another limit for the wait for a connection.
    pub(crate) async fn open_with(url: &str, acquire_timeout: Duration) -> anyhow::Result<Self> {
        let (engine, url) = parse_url(url)?;
        sqlx::any::install_default_drivers();
        let settings: &'static [&'static str] = match engine {
            Engine::Sqlite => {
                &["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA busy_timeout = 10000"]
            }
            Engine::Postgres => &[POSTGRES_IDLE_IN_TRANSACTION],
        };
        // A pool would retry until its timeout, and then not report the cause.
        let first = AnyConnection::connect(&url).await;
        let first = first.with_context(|| format!("cannot open the database {}", redacted(&url)))?;
        first.close().await?;
        let pool = AnyPoolOptions::new()
            // SQLite has one writer at a time. With one connection, writers queue in this process instead of in SQLite.
            .max_connections(if engine == Engine::Sqlite { 1 } else { 8 })
            .acquire_timeout(acquire_timeout)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for setting in settings.iter().copied() {
                        sqlx::query(setting).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_lazy(&url)?;
        let database = Self { pool, engine, has_election: false };
        database.create_tables().await.context("cannot create the tables of the database")?;
        Ok(database)
    }

    /// The election is in this database, so that the leader's transactions check it.
    pub(crate) fn with_election(self) -> Self {
        Self { has_election: true, ..self }
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map(drop)
    }
}

/// The engine, and the URL for the driver.
fn parse_url(url: &str) -> anyhow::Result<(Engine, String)> {
    if is_postgres(url) {
        return Ok((Engine::Postgres, url.to_owned()));
    }
    let Some(file) = url.strip_prefix("sqlite:") else {
        bail!("{:?} is not a database URL: use sqlite:FILE or postgres://USER@HOST/DATABASE", redacted(url));
    };
    if file.is_empty() || file.contains(":memory:") {
        bail!("{url:?} names no file: the servers share the database, so use a file like sqlite:billing.db");
    }
    let create = if file.contains("mode=") {
        ""
    } else if file.contains('?') {
        "&mode=rwc"
    } else {
        "?mode=rwc"
    };
    Ok((Engine::Sqlite, format!("{url}{create}")))
}

/// The URL without the user, the password and the settings, which may contain a password, too.
fn redacted(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A new SQLite database.
    pub(crate) async fn sqlite() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("billing.db").display());
        let database = Database::open(&url).await.unwrap();
        (dir, database)
    }

    /// The URL of a new database on the PostgreSQL server of the tests.
    pub(crate) async fn postgres() -> String {
        let endpoint = std::env::var("TENURE_TEST_POSTGRES_15").expect(
            "this test needs a PostgreSQL: `cargo xtask test -p billing` starts one; or set TENURE_TEST_POSTGRES_15=HOST:PORT \
             to one where the user `postgres` needs no password",
        );
        let server = format!("postgres://postgres@{endpoint}");
        let name = format!("billing_{:016x}", fastrand::u64(..));
        sqlx::any::install_default_drivers();
        let connected = AnyConnection::connect(&format!("{server}/postgres")).await;
        let mut connection = connected.expect("the PostgreSQL server answers");
        // The name consists of letters and digits. A statement cannot take a name as a parameter.
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(create).execute(&mut connection).await.unwrap();
        format!("{server}/{name}")
    }

    #[tokio::test]
    async fn the_error_about_an_invalid_database_url_says_what_is_allowed() {
        for (url, reason) in [
            ("mysql://me:secret@host/db", "sqlite:FILE or postgres://"),
            ("billing.db", "sqlite:FILE or postgres://"),
            ("sqlite:", "names no file"),
            ("sqlite::memory:", "names no file"),
            ("sqlite:/nowhere/at/all/billing.db", "cannot open the database"),
            (
                "postgres://127.0.0.1:1/db?user=me&password=secret",
                "cannot open the database postgres://127.0.0.1:1/db",
            ),
            ("postgres://me:secret@127.0.0.1:1/db", "cannot open the database postgres://***@127.0.0.1:1/db"),
        ] {
            let error = format!("{:#}", Database::open(url).await.unwrap_err());
            assert!(error.contains(reason) && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn servers_that_start_together_create_the_tables_together_on_sqlite() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("billing.db").display());
        futures::future::try_join_all((0..8).map(|_| Database::open(&url))).await.unwrap();
    }

    #[tokio::test]
    async fn servers_that_start_together_create_the_tables_together_on_postgres() {
        let url = postgres().await;
        futures::future::try_join_all((0..8).map(|_| Database::open(&url))).await.unwrap();
    }
}
