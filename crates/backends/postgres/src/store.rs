//! The store: six requests.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
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
    connection::{Failure, Parameter, Requests},
    diagnose::diagnose,
    error::{classify, is_conflict},
    hints::Hints,
};

/// A PostgreSQL database as a store of records.
///
/// Used by a [`PostgresBackend`](crate::PostgresBackend).
#[derive(Debug)]
pub struct PostgresStore {
    requests: Arc<Requests>,
    /// Heartbeats, which a swap that waits for a fenced transaction must not delay.
    heartbeats: Requests,
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
        Ok(Self { heartbeats: requests.apart(), requests, hints: Hints::default() })
    }

    pub(crate) fn schema(&self) -> &str {
        &self.requests.config.schema
    }
}

#[async_trait]
impl CasStore for PostgresStore {
    fn name(&self) -> String {
        format!("postgres {}", self.requests.config.hosts.join(", "))
    }

    async fn read(&self, key: &str, _: Freshness) -> Result<Option<Record>, BackendError> {
        let what = "reading a record";
        let rows = self.requests.query(what, &self.requests.statements.read, &[(&key, Type::TEXT)]).await?;
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
        let digest = expected.map(digest_of).transpose()?;
        let statements = &self.requests.statements;
        let mut parameters: Vec<Parameter<'_>> =
            vec![(&epoch, Type::INT4), (&key, Type::TEXT), (&body, Type::BYTEA)];
        let statement = match &digest {
            Some(digest) => {
                parameters.push((digest, Type::BYTEA));
                &statements.replace
            }
            None => &statements.create,
        };
        let requests = if key.starts_with(SESSIONS) { &self.heartbeats } else { &*self.requests };
        // Nobody waits for a heartbeat.
        let changes = key.starts_with(ELECTIONS).then_some(key);
        let rows = match requests.swap(what, statement, &parameters, changes).await {
            Ok(rows) => rows,
            Err(Failure::Refused(error)) if is_conflict(&error) => return Ok(Swap::Conflict),
            Err(Failure::Refused(error)) => return Err(classify(what, &error)),
            Err(Failure::Other(error)) => return Err(error),
        };
        let row = rows.first().ok_or_else(|| unexpected(what))?;
        Ok(match (get(what, row, 0)?, get(what, row, 1)?) {
            (false, _) => Swap::EpochChanged,
            (true, true) => Swap::Done(version_of(body)),
            (true, false) => Swap::Conflict,
        })
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let digest = digest_of(expected)?;
        let parameters: [Parameter<'_>; 2] = [(&key, Type::TEXT), (&digest, Type::BYTEA)];
        let rows =
            self.requests.query("deleting a record", &self.requests.statements.delete, &parameters).await?;
        Ok(!rows.is_empty())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let what = "listing records";
        let rows =
            self.requests.query(what, &self.requests.statements.list, &[(&prefix, Type::TEXT)]).await?;
        rows.iter().map(|row| Ok(record(get(what, row, 0)?, get(what, row, 1)?))).collect()
    }

    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        if key.starts_with(ELECTIONS) { self.hints.of(key, &self.requests) } else { None }
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        let what = "reading the timeline";
        let rows = self.requests.query(what, &self.requests.statements.epoch, &[]).await?;
        let epoch: i32 = get(what, rows.first().ok_or_else(|| unexpected(what))?, 0)?;
        let epoch = u64::try_from(epoch).map_err(|_| unexpected(what))?;
        Ok(EpochState::Known(Epoch(epoch)))
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose(&self.requests).await
    }

    async fn close(&self) {
        self.hints.close();
        self.requests.close().await;
        self.heartbeats.close().await;
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

fn digest_of(version: &Version) -> Result<Vec<u8>, BackendError> {
    let digits = version.as_str();
    let byte = |at: usize| digits.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>().ok_or_else(|| {
        BackendError::new(BackendErrorKind::Invalid, format!("{digits:?} is no version of a record"))
    })
}

fn get<'a, T: FromSql<'a>>(what: &str, row: &'a Row, column: usize) -> Result<T, BackendError> {
    row.try_get(column).map_err(|error| classify(what, &error))
}

fn unexpected(what: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Invalid,
        format!("{what}: the server's answer is not what was asked for"),
    )
}
