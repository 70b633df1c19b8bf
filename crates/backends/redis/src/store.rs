//! The store: one script with six operations.

use std::{collections::HashMap, sync::Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use redis::{FromRedisValue, Value};
use sha1_smol::Sha1;
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{
    Diagnosis, Error, internal,
    spi::{BackendError, BackendErrorKind},
};

use crate::{config::RedisConfig, connection::Requests, diagnose::diagnose};

/// A Redis or Valkey server as a store of records.
///
/// Used by a [`RedisBackend`](crate::RedisBackend).
#[derive(Debug)]
pub struct RedisStore {
    requests: Requests,
    /// The epoch that was seen last, with the process of the server, as the script writes it.
    epoch: Mutex<String>,
}

impl RedisStore {
    /// A store on the server that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has a host or a prefix that is not allowed.
    pub fn new(config: RedisConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("Redis", &config.hosts, config.login.is_some(), "ca");
        }
        Ok(Self { requests: Requests::new(config), epoch: Mutex::default() })
    }
}

#[async_trait]
impl CasStore for RedisStore {
    fn name(&self) -> String {
        format!("redis {}", self.requests.config.hosts.join(", "))
    }

    async fn read(&self, key: &str, _: Freshness) -> Result<Option<Record>, BackendError> {
        let what = "reading a record";
        let body: Option<Vec<u8>> = parsed(what, self.requests.run(what, &[b"read", key.as_bytes()]).await?)?;
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
        let known = internal::lock(&self.epoch).clone();
        if number_of(&known) != Some(epoch.0) {
            return Ok(Swap::EpochChanged);
        }
        let expected = expected.map_or("", Version::as_str);
        let arguments = [b"swap", key.as_bytes(), expected.as_bytes(), body, known.as_bytes()];
        match parsed::<String>(what, self.requests.run(what, &arguments).await?)?.as_str() {
            "done" => Ok(Swap::Done(version_of(body))),
            "conflict" => Ok(Swap::Conflict),
            "epoch" => Ok(Swap::EpochChanged),
            _ => Err(unexpected(what)),
        }
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let what = "deleting a record";
        let arguments: [&[u8]; 3] = [b"delete", key.as_bytes(), expected.as_str().as_bytes()];
        Ok(parsed::<u8>(what, self.requests.run(what, &arguments).await?)? == 1)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let what = "listing records";
        // A record that stays is in one part at least, as it is then or later.
        let (mut found, mut cursor) = (HashMap::new(), "0".to_owned());
        loop {
            let arguments: [&[u8]; 3] = [b"list", cursor.as_bytes(), prefix.as_bytes()];
            let part: Vec<(String, Vec<u8>)>;
            (cursor, part) = parsed(what, self.requests.run(what, &arguments).await?)?;
            found.extend(part);
            if cursor == "0" {
                return Ok(found.into_iter().map(|(key, body)| record(key, body)).collect());
            }
        }
    }

    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        if key.starts_with("e/") { self.requests.hints.of(key) } else { None }
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        let what = "reading the epoch";
        let known = internal::lock(&self.epoch).clone();
        let nonce = format!("{:032x}", fastrand::u128(..));
        let arguments: [&[u8]; 3] = [b"epoch", known.as_bytes(), nonce.as_bytes()];
        let found: String = parsed(what, self.requests.run(what, &arguments).await?)?;
        let number = number_of(&found).ok_or_else(|| unexpected(what))?;
        let mut latest = internal::lock(&self.epoch);
        // An answer may be later than that of a later request.
        if number_of(&latest).is_none_or(|latest| latest < number) {
            *latest = found;
        }
        Ok(EpochState::Known(Epoch(number)))
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose(&self.requests).await
    }

    async fn close(&self) {
        self.requests.close().await;
    }
}

fn record(key: String, body: Vec<u8>) -> Record {
    Record { key, version: version_of(&body), body }
}

/// No two bodies are equal, so that the digest is a version that is never used twice, whatever was lost.
fn version_of(body: &[u8]) -> Version {
    Version::new(Sha1::from(body).hexdigest())
}

fn number_of(epoch: &str) -> Option<u64> {
    epoch.split(' ').next()?.parse().ok()
}

pub(crate) fn parsed<T: FromRedisValue>(what: &str, answer: Value) -> Result<T, BackendError> {
    redis::from_redis_value(answer).map_err(|_| unexpected(what))
}

fn unexpected(what: &str) -> BackendError {
    // The operation may have been carried out.
    let text = format!("{what}: the server's answer is not what was asked for");
    BackendError::new(BackendErrorKind::Unavailable, text)
}
