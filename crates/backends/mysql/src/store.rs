//! The store: six requests.

use async_trait::async_trait;
use futures::future::join;
use mysql_async::Row;
use sha2::{Digest as _, Sha256};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{Diagnosis, Error, internal, spi::BackendError};

use crate::{
    config::MysqlConfig, diagnose::diagnose, error::unavailable, requests::Requests, server::column,
};

/// A MariaDB or MySQL database as a store of records.
///
/// Used by a [`MysqlBackend`](crate::MysqlBackend).
#[derive(Debug)]
pub struct MysqlStore {
    requests: Requests,
    /// Heartbeats, which other requests must not delay.
    heartbeats: Requests,
}

impl MysqlStore {
    /// A store in the database that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has no host, or a name that is not allowed.
    pub fn new(config: MysqlConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("MySQL", &config.hosts, config.password.is_some(), "ca");
        }
        let requests = Requests::new(config);
        Ok(Self { heartbeats: requests.apart(), requests })
    }

    async fn current_epoch(&self) -> Result<Epoch, BackendError> {
        let what = "reading the epoch";
        let mut rows = self.requests.query(what, |it| &it.epoch, Vec::new()).await?;
        rows.first_mut().and_then(|row| column(row, 1)).map(Epoch).ok_or_else(|| unexpected(what))
    }
}

#[async_trait]
impl CasStore for MysqlStore {
    fn name(&self) -> String {
        format!("mysql {}", self.requests.config.hosts.join(", "))
    }

    async fn read(&self, key: &str, _: Freshness) -> Result<Option<Record>, BackendError> {
        let what = "reading a record";
        let mut rows = self.requests.query(what, |it| &it.read, vec![key.into()]).await?;
        let body: Option<Vec<u8>> =
            rows.first_mut().and_then(|row| column(row, 1)).ok_or_else(|| unexpected(what))?;
        Ok(body.map(|body| record(key.to_owned(), body)))
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let what = "swapping a record";
        let requests = if key.starts_with(SESSIONS) { &self.heartbeats } else { &self.requests };
        let is_done = match expected {
            Some(expected) => {
                let parameters = vec![body.into(), key.into(), expected.as_str().into(), epoch.0.into()];
                requests.write(what, |it| &it.replace, parameters).await?
            }
            None => {
                requests.write(what, |it| &it.create, vec![key.into(), body.into(), epoch.0.into()]).await?
            }
        };
        if is_done {
            return Ok(Swap::Done(version_of(body)));
        }
        // Nothing was done. This is the reason, even if the epoch has changed only since.
        let is_current = self.current_epoch().await? == epoch;
        Ok(if is_current { Swap::Conflict } else { Swap::EpochChanged })
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let parameters = vec![key.into(), expected.as_str().into()];
        self.requests.write("deleting a record", |it| &it.delete, parameters).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        // The prefixes have no character that LIKE gives a meaning.
        let parameters = vec![format!("{prefix}%").into()];
        let rows = self.requests.query("listing records", |it| &it.list, parameters).await?;
        let listed = |mut row: Row| match (column(&mut row, 1), column(&mut row, 2)) {
            (Some(key), Some(body)) => Some(record(key, body)),
            // The row of the epoch, if there is no record; or a key that tenure does not write.
            _ => None,
        };
        Ok(rows.into_iter().filter_map(listed).collect())
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        self.current_epoch().await.map(EpochState::Known)
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose(&self.requests).await
    }

    async fn close(&self) {
        join(self.requests.close(), self.heartbeats.close()).await;
    }
}

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

fn unexpected(what: &str) -> BackendError {
    unavailable(format!("{what}: the server's answer is not what was asked for"))
}
