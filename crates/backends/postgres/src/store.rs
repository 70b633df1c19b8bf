//! The store: six requests.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{future::join, stream::BoxStream};
use sha2::{Digest as _, Sha256};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{
    Diagnosis, Error, internal,
    spi::{BackendError, BackendErrorKind},
};
use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};

use crate::{
    config::PostgresConfig,
    connection::{Parameters, Requests, text},
    diagnose::diagnose,
    error::classify,
    hints::Hints,
};

/// A PostgreSQL database as a store of records.
///
/// Used by a [`PostgresBackend`](crate::PostgresBackend).
#[derive(Debug)]
pub struct PostgresStore {
    requests: Arc<Requests>,
    /// Heartbeats, which a swap that waits for a fenced transaction must not delay.
    heartbeats: Arc<Requests>,
    hints: Hints,
}

impl PostgresStore {
    /// A store in the database that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has no host, or a name or a time that is not allowed.
    pub fn new(config: PostgresConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("PostgreSQL", &config.hosts, config.has_password(), "sslrootcert");
        }
        let requests = Arc::new(Requests::new(config));
        Ok(Self { heartbeats: Arc::new(requests.apart()), requests, hints: Hints::default() })
    }

    pub(crate) fn schema(&self) -> &str {
        &self.requests.database.config.schema
    }
}

#[async_trait]
impl CasStore for PostgresStore {
    fn name(&self) -> String {
        format!("postgres {}", self.requests.database.config.hosts.join(", "))
    }

    async fn read(&self, key: &str, _: Freshness) -> Result<Option<Record>, BackendError> {
        let what = "reading a record";
        let rows =
            self.requests.query(what, &self.requests.database.statements.read, vec![text(key)]).await?;
        rows.first().map(|row| Ok(record(key.to_owned(), get(what, row, 0)?))).transpose()
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let what = "swapping a record";
        let Ok(epoch) = i32::try_from(epoch.0) else { return Ok(Swap::EpochChanged) };
        let (statements, version) = (&self.requests.database.statements, version_of(body));
        let mut parameters: Parameters =
            vec![(Box::new(epoch), Type::INT4), text(key), (Box::new(body.to_vec()), Type::BYTEA)];
        let statement = match expected {
            Some(expected) => {
                parameters.push(text(expected.as_str()));
                &statements.replace
            }
            None => &statements.create,
        };
        // Nobody waits for a heartbeat.
        let notify = key.starts_with(ELECTIONS).then(|| vec![text(key), text(version.as_str())]);
        let requests = if key.starts_with(SESSIONS) { &self.heartbeats } else { &self.requests };
        let rows = requests.swap(what, statement, parameters, notify).await?;
        let Some(rows) = rows else { return Ok(Swap::Conflict) };
        let row = rows.first().ok_or_else(|| unexpected(what))?;
        Ok(match (get(what, row, 0)?, get(what, row, 1)?) {
            (false, _) => Swap::EpochChanged,
            (true, true) => Swap::Done(version),
            (true, false) => Swap::Conflict,
        })
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let (statement, parameters) =
            (&self.requests.database.statements.delete, vec![text(key), text(expected.as_str())]);
        let rows = self.requests.query("deleting a record", statement, parameters).await?;
        Ok(!rows.is_empty())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let what = "listing records";
        let rows =
            self.requests.query(what, &self.requests.database.statements.list, vec![text(prefix)]).await?;
        rows.iter().map(|row| Ok(record(get(what, row, 0)?, get(what, row, 1)?))).collect()
    }

    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        if key.starts_with(ELECTIONS) { self.hints.of(key, &self.requests) } else { None }
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        let what = "reading the timeline";
        // Before a session is opened: its connection is made at the same time.
        self.heartbeats.begin_to_connect();
        let rows = self.requests.query(what, &self.requests.database.statements.epoch, Vec::new()).await?;
        let epoch: i32 = get(what, rows.first().ok_or_else(|| unexpected(what))?, 0)?;
        let epoch = u64::try_from(epoch).map_err(|_| unexpected(what))?;
        Ok(EpochState::Known(Epoch(epoch)))
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose(&self.requests).await
    }

    async fn close(&self) {
        self.hints.close();
        join(self.requests.close(), self.heartbeats.close()).await;
    }
}

/// The prefix of the keys of elections.
const ELECTIONS: &str = "e/";
/// The prefix of the keys of sessions, which heartbeats renew.
const SESSIONS: &str = "s/";

fn record(key: String, body: Vec<u8>) -> Record {
    Record { key, version: version_of(&body), body }
}

/// No two bodies are equal, so that the digest is a version that is never used twice, whatever was restored or lost.
fn version_of(body: &[u8]) -> Version {
    let digits: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    Version::new(digits)
}

fn get<'a, T: FromSql<'a>>(what: &str, row: &'a Row, column: usize) -> Result<T, BackendError> {
    row.try_get(column).map_err(|error| classify(what, &error))
}

fn unexpected(what: &str) -> BackendError {
    // The statement may have been carried out.
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("{what}: the server's answer is not what was asked for"),
    )
}
