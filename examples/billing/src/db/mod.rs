//! The billing database: SQLite by default, PostgreSQL by URL; the same SQL for both.

mod fenced;
mod read;
mod schema;

use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::{AnyConnection, AnyPool, Connection, any::AnyPoolOptions};

pub(crate) use fenced::WriteError;
pub(crate) use read::{Recorded, Renewal, Term};
pub(crate) use schema::NewSubscription;

/// A leader that is stopped within a transaction holds its locks. PostgreSQL ends such a
/// transaction after this time, so that the next leader need not wait for the old one to wake.
const POSTGRES_IDLE_IN_TRANSACTION: &str = "SET idle_in_transaction_session_timeout = '2s'";

/// A connection to the billing database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pool: AnyPool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

impl Database {
    /// Connects, and makes the tables where they are missing.
    ///
    /// # Errors
    /// A URL of another kind, or a database that does not answer: what is wrong, without the password.
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        let (kind, url) = understand(url)?;
        sqlx::any::install_default_drivers();
        let settings: &'static [&'static str] = match kind {
            Kind::Sqlite => {
                &["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA busy_timeout = 10000"]
            }
            Kind::Postgres => &[POSTGRES_IDLE_IN_TRANSACTION],
        };
        // A pool would try again for its whole timeout, and then say no more than that.
        let first = AnyConnection::connect(&url).await;
        let first = first.with_context(|| format!("cannot open the database {}", shown(&url)))?;
        first.close().await?;
        let pool = AnyPoolOptions::new()
            // SQLite has one writer at a time: its queue is in this process, where waiting is cheap.
            .max_connections(if kind == Kind::Sqlite { 1 } else { 8 })
            .acquire_timeout(Duration::from_secs(5))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for setting in settings.iter().copied() {
                        sqlx::query(setting).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_lazy(&url)?;
        let database = Self { pool, kind };
        database.make_tables().await.context("cannot make the tables of the database")?;
        Ok(database)
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map(drop)
    }
}

fn understand(url: &str) -> anyhow::Result<(Kind, String)> {
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok((Kind::Postgres, url.to_owned()));
    }
    let Some(file) = url.strip_prefix("sqlite:") else {
        bail!(
            "{:?} is not a database URL: allowed are sqlite:FILE and postgres://USER@HOST/DATABASE",
            shown(url)
        );
    };
    if file.is_empty() || file.contains(":memory:") {
        bail!("{url:?} names no file: the servers share the database, as in sqlite:billing.db");
    }
    let create = if file.contains("mode=") {
        ""
    } else if file.contains('?') {
        "&mode=rwc"
    } else {
        "?mode=rwc"
    };
    Ok((Kind::Sqlite, format!("{url}{create}")))
}

/// The URL without its user and password, and without settings, which may hold one as well.
fn shown(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A database of its own, on SQLite.
    pub(crate) async fn sqlite() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("billing.db").display());
        let database = Database::open(&url).await.unwrap();
        (dir, database)
    }

    /// The URL of a database of its own, on the PostgreSQL that is run and thrown away with the tests.
    pub(crate) async fn postgres() -> String {
        let server = std::env::var("TENURE_TEST_POSTGRES").expect(
            "this test needs a PostgreSQL: `cargo xtask test -p billing` starts one; or set \
             TENURE_TEST_POSTGRES=postgres://USER@HOST/DATABASE to one where USER may create databases",
        );
        let name = format!("billing_{:016x}", fastrand::u64(..));
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&server).await.expect("TENURE_TEST_POSTGRES answers");
        // It is made of letters and digits, and no statement takes a name as a parameter.
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(create).execute(&mut connection).await.unwrap();
        let (host, _) = server.rsplit_once('/').expect("TENURE_TEST_POSTGRES ends in /DATABASE");
        format!("{host}/{name}")
    }

    #[tokio::test]
    async fn a_database_url_that_cannot_work_says_what_is_allowed() {
        for (url, reason) in [
            ("mysql://me:secret@host/db", "sqlite:FILE and postgres://"),
            ("billing.db", "sqlite:FILE and postgres://"),
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
    async fn servers_that_start_together_make_the_tables_together_on_sqlite() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("billing.db").display());
        futures::future::try_join_all((0..8).map(|_| Database::open(&url))).await.unwrap();
    }

    #[tokio::test]
    async fn servers_that_start_together_make_the_tables_together_on_postgres() {
        let url = postgres().await;
        futures::future::try_join_all((0..8).map(|_| Database::open(&url))).await.unwrap();
    }
}
