//! PostgreSQL, through tokio-postgres.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, NoTls, Socket, Statement,
    tls::NoTlsStream,
    types::{ToSql, Type},
};

use super::RawStore;

/// How many entries are in flight on the connection.
const IN_FLIGHT: usize = 256;
/// As long as the record of an election with one candidate.
const BODY: &[u8] = &[b'x'; 300];

/// As the adapter's table, with a version in a column of its own.
const TABLES: &str = "\
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
DROP TABLE IF EXISTS raw_records;
CREATE TABLE raw_records (key text COLLATE \"C\" PRIMARY KEY, version bigint NOT NULL, body bytea NOT NULL) WITH (fillfactor = 50);
LISTEN raw_records";
const READ: &str = "SELECT version, body FROM raw_records WHERE key = $1";
const CREATE: &str = "INSERT INTO raw_records VALUES ($1, 1, $2) ON CONFLICT DO NOTHING";
const REPLACE: &str =
    "UPDATE raw_records SET version = version + 1, body = $2 WHERE key = $1 AND version = $3";
const DELETE: &str = "WITH deleted AS (DELETE FROM raw_records WHERE key = $1 RETURNING key) \
                      SELECT pg_notify('raw_records', key) FROM deleted";

pub(crate) struct Postgres {
    config: Config,
    client: Client,
    read: Statement,
    create: Statement,
    replace: Statement,
    delete: Statement,
    /// Keeps the connection of the listener open, which is driven only while a notification is awaited: nothing is quicker.
    _listener: Client,
    listening: Connection<Socket, NoTlsStream>,
    next: u64,
}

/// Connects to the database of a URL. Settings of the adapter in it are ignored.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    connect_with(&config(url)?).await
}

fn config(url: &str) -> Result<Config> {
    let (url, _) = url.split_once('?').unwrap_or((url, ""));
    url.parse().with_context(|| format!("not a URL of PostgreSQL: {url}"))
}

async fn connect_with(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    // Ends when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

impl Postgres {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let config = config(url)?;
        let client = connect_with(&config).await?;
        let (listener, mut listening) = config.connect(NoTls).await?;
        tokio::select! {
            made = listener.batch_execute(TABLES) => made?,
            _ = next_notification(&mut listening) => bail!("a notification before anything was listened to"),
        }
        client.execute(CREATE, &[&ELECTION, &BODY]).await?;
        Ok(Self {
            config,
            read: client.prepare(READ).await?,
            create: client.prepare(CREATE).await?,
            replace: client.prepare(REPLACE).await?,
            delete: client.prepare(DELETE).await?,
            client,
            _listener: listener,
            listening,
            next: fastrand::u64(..) >> 16,
        })
    }

    fn key(&mut self) -> String {
        self.next += 1;
        format!("{:x}", self.next)
    }
}

/// The election that is entered again and again, as one that is in use is.
const ELECTION: &str = "election";

/// Drives a connection until a notification has come.
async fn next_notification(connection: &mut Connection<Socket, NoTlsStream>) -> Result<()> {
    loop {
        let message = poll_fn(|context| connection.poll_message(context)).await;
        if let AsyncMessage::Notification(_) = message.context("the connection has ended")?? {
            return Ok(());
        }
    }
}

#[async_trait]
impl RawStore for Postgres {
    fn entering(&self) -> (&'static str, &'static str) {
        (
            "read the row, update it if its version is the same",
            "connect, insert a session's row, read the election's, update it",
        )
    }

    async fn enter(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let row = self.client.query_one(&self.read, &[&ELECTION]).await?;
        let version: i64 = row.try_get(0)?;
        let entered = self.client.execute(&self.replace, &[&ELECTION, &BODY, &version]).await?;
        let took = begun.elapsed();
        ensure!(entered == 1, "the version was another one");
        Ok(took)
    }

    async fn enter_from_nothing(&mut self) -> Result<Duration> {
        let session = self.key();
        let begun = Instant::now();
        let client = connect_with(&self.config).await?;
        // Not prepared, which would be a round trip more for each.
        client.execute_typed(CREATE, &[(&session, Type::TEXT), (&BODY, Type::BYTEA)]).await?;
        let row = client.query_typed_one(READ, &[(&ELECTION, Type::TEXT)]).await?;
        let version: i64 = row.try_get(0)?;
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&ELECTION, Type::TEXT), (&BODY, Type::BYTEA), (&version, Type::INT8)];
        let entered = client.execute_typed(REPLACE, &parameters).await?;
        let took = begun.elapsed();
        ensure!(entered == 1, "the version was another one");
        client.execute(DELETE, &[&session]).await?;
        // Of that.
        next_notification(&mut self.listening).await?;
        Ok(took)
    }

    async fn handover(&mut self, quiet: Duration) -> Result<Duration> {
        let key = self.key();
        self.client.execute(&self.create, &[&key, &BODY]).await?;
        tokio::time::sleep(quiet).await;
        let begun = Instant::now();
        let deleting = async { self.client.execute(&self.delete, &[&key]).await };
        let (deleted, told) = tokio::join!(deleting, async {
            next_notification(&mut self.listening).await.map(|()| begun.elapsed())
        });
        deleted?;
        told
    }

    async fn enter_many(&mut self, count: usize) -> Result<Duration> {
        let (client, read, create) = (&self.client, &self.read, &self.create);
        let prefix = format!("many-{:x}", fastrand::u64(..));
        let begun = Instant::now();
        let entering = (0..count).map(|n| {
            let key = format!("{prefix}-{n}");
            async move {
                client.query_opt(read, &[&key]).await?;
                client.execute(create, &[&key, &BODY]).await.map(drop)
            }
            .boxed()
        });
        stream::iter(entering.collect::<Vec<_>>()).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
        Ok(begun.elapsed())
    }

    /// PostgreSQL has no sessions that expire.
    async fn expire(&mut self, _: Duration, _: Duration, _: usize) -> Result<Vec<Duration>> {
        Ok(Vec::new())
    }

    async fn requests(&mut self) -> Result<u64> {
        statements(&self.client, "%").await
    }

    async fn writes(&mut self) -> Result<Option<u64>> {
        Ok(Some(statements(&self.client, "%UPDATE%").await? + statements(&self.client, "%INSERT%").await?))
    }
}

/// How many statements like this the server has carried out, without these.
pub(crate) async fn statements(client: &Client, pattern: &str) -> Result<u64> {
    const COUNT: &str = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements JOIN pg_database ON dbid = pg_database.oid \
                         WHERE datname = current_database() AND query LIKE $1 AND query NOT LIKE '%pg_stat_statements%'";
    let counted = client.query_one(COUNT, &[&pattern]).await.context(
        "cannot count statements: set shared_preload_libraries = 'pg_stat_statements' in the server's configuration",
    )?;
    Ok(u64::try_from(counted.try_get::<_, i64>(0)?)?)
}
