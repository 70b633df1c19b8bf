//! The store: requests to JetStream.

use async_nats::HeaderMap;
use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use serde_json::{Value, json};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{
    Diagnosis, Error, internal,
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    config::NatsConfig,
    connection::{Requests, error_code, refused, unexpected},
    diagnose::diagnose,
};

/// The prefix of the keys of elections.
const ELECTIONS: &str = "e/";
/// A write to this key precedes each fresh read. It is not a key of a record: those have another prefix.
const BARRIER: &str = "barrier";
/// No message has this subject.
const NO_MESSAGE: u64 = 10_037;
/// The record has another version.
const WRONG_VERSION: [u64; 2] = [10_071, 10_164];
/// How many records of a list are read at the same time.
const CONCURRENT_READS: usize = 32;

/// A bucket of NATS JetStream as a store of records.
///
/// Used by a [`NatsBackend`](crate::NatsBackend).
#[derive(Debug)]
pub struct NatsStore {
    pub(crate) requests: Requests,
}

impl NatsStore {
    /// A store in the bucket that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has no host, or a name or a number that is not allowed.
    pub fn new(config: NatsConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("NATS", &config.hosts, config.login.sends_secret(), "ca");
        }
        Ok(Self { requests: Requests::new(config) })
    }

    /// The subject of a key of the bucket.
    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.requests.config.bucket)
    }

    /// The subject of a record. Dots separate the parts of a subject, and an election's name may have several in a row: they and slashes
    /// change places.
    fn subject_of(&self, key: &str) -> String {
        self.subject(&format!("r.{}", swap_separators(key)))
    }

    /// The subject at which changes of a record are announced. No stream keeps it.
    pub(crate) fn hints_of(&self, key: &str) -> String {
        format!("tenure.{}.{}", self.requests.config.bucket, swap_separators(key))
    }

    /// A request to the API of JetStream.
    async fn api(&self, what: &str, name: &str, body: &Value) -> Result<Value, BackendError> {
        let subject = format!("$JS.API.{name}.{}", self.requests.config.stream());
        self.requests.json(what, &subject, HeaderMap::new(), body.to_string().into_bytes()).await
    }

    /// Writes a message, and returns its number in the stream, once a quorum has it. An error in the answer is returned as it is.
    async fn publish(
        &self,
        what: &str,
        subject: &str,
        expected: Option<u64>,
        body: Vec<u8>,
    ) -> Result<Result<u64, Value>, BackendError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", self.requests.config.stream());
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        }
        let answer = self.requests.json(what, subject, headers, body).await?;
        if let Some(error) = answer.get("error") {
            return Ok(Err(error.clone()));
        }
        answer["seq"].as_u64().filter(|number| *number > 0).map(Ok).ok_or_else(|| unexpected(what))
    }

    /// Makes sure that the leader of the stream is the leader still: only it can commit a write. Returns the write's number.
    ///
    /// JetStream answers reads without a quorum. A leader that has been cut off from the others answers them for some seconds.
    async fn barrier(&self, what: &str) -> Result<u64, BackendError> {
        let written = self.publish(what, &self.subject(BARRIER), None, Vec::new()).await?;
        written.map_err(|error| refused(what, &error))
    }

    async fn get(&self, what: &str, key: &str) -> Result<Option<Record>, BackendError> {
        let subject = self.subject_of(key);
        // By the leader: direct reads are answered by any replica.
        let answer = self.api(what, "STREAM.MSG.GET", &json!({ "last_by_subj": subject })).await?;
        match answer.get("error") {
            Some(error) if error_code(error) == NO_MESSAGE => return Ok(None),
            Some(error) => return Err(refused(what, error)),
            None => {}
        }
        let message = &answer["message"];
        // An operator who deletes a key leaves a message with a header, and no content.
        let body = BASE64_STANDARD.decode(message["data"].as_str().unwrap_or_default());
        let (Some(number), Ok(body)) = (message["seq"].as_u64(), body) else { return Err(unexpected(what)) };
        if message["subject"] != subject.as_str() {
            return Err(unexpected(what));
        }
        Ok(Some(Record { key: key.to_owned(), version: Version::from(number), body }))
    }

    /// The records of these keys, and the keys that have none.
    async fn get_all(
        &self,
        what: &str,
        keys: Vec<String>,
    ) -> Result<(Vec<Record>, Vec<String>), BackendError> {
        let read = async |key: String| self.get(what, &key).await.map(|found| found.ok_or(key));
        let reads: Vec<_> = keys.into_iter().map(read).collect();
        let mut found = stream::iter(reads).buffer_unordered(CONCURRENT_READS);
        let (mut records, mut missing) = (Vec::new(), Vec::new());
        while let Some(read) = found.try_next().await? {
            match read {
                Ok(record) => records.push(record),
                Err(key) => missing.push(key),
            }
        }
        Ok((records, missing))
    }
}

#[async_trait]
impl CasStore for NatsStore {
    fn name(&self) -> String {
        format!("nats {}", self.requests.config.hosts.join(", "))
    }

    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<Record>, BackendError> {
        let what = "reading a record";
        if freshness == Freshness::Fresh {
            self.barrier(what).await?;
        }
        self.get(what, key).await
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        _: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let what = "swapping a record";
        let Ok(expected) = expected.map_or(Ok(0), number) else { return Ok(Swap::Conflict) };
        match self.publish(what, &self.subject_of(key), Some(expected), body.to_vec()).await? {
            Ok(version) => {
                // Nobody waits for a heartbeat.
                if key.starts_with(ELECTIONS)
                    && let Some(connection) = self.requests.current()
                {
                    connection.publish(self.hints_of(key));
                }
                Ok(Swap::Done(Version::from(version)))
            }
            Err(error) if WRONG_VERSION.contains(&error_code(&error)) => {
                // A heartbeat fails when its session was ended, or when the bucket was created again.
                if !key.starts_with(ELECTIONS) {
                    self.requests.check_bucket();
                }
                Ok(Swap::Conflict)
            }
            Err(error) => Err(refused(what, &error)),
        }
    }

    /// Removes the message, if it is the one of that version: a later one has a higher number. A marker, as other clients leave it for a deleted
    /// key, would stay for ever.
    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let what = "deleting a record";
        let Ok(version) = number(expected) else { return Ok(false) };
        let body = json!({ "filter": self.subject_of(key), "seq": version + 1 });
        let answer = self.api(what, "STREAM.PURGE", &body).await?;
        match (answer.get("error"), answer["purged"].as_u64()) {
            (Some(error), _) => Err(refused(what, error)),
            (None, Some(purged)) => Ok(purged > 0),
            (None, None) => Err(unexpected(what)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let what = "listing records";
        let written = self.barrier(what).await?;
        let (start, mut subjects) = (self.subject_of(""), Vec::new());
        loop {
            let body = json!({ "subjects_filter": format!("{}>", self.subject_of(prefix)), "offset": subjects.len() });
            let answer = self.api(what, "STREAM.INFO", &body).await?;
            if let Some(error) = answer.get("error") {
                return Err(refused(what, error));
            }
            // A leader that is not the leader any more lacks the write.
            if answer["state"]["last_seq"].as_u64() < Some(written) {
                return Err(unexpected(what));
            }
            let Some(page) = answer["state"]["subjects"].as_object().filter(|page| !page.is_empty()) else {
                break;
            };
            subjects.extend(page.keys().cloned());
            if answer["total"].as_u64().is_none_or(|total| subjects.len() as u64 >= total) {
                break;
            }
        }
        let keys = subjects.iter().filter_map(|subject| subject.strip_prefix(&start)).map(swap_separators);
        let (mut records, missing) = self.get_all(what, keys.collect()).await?;
        if !missing.is_empty() {
            // They were deleted, or an earlier leader has answered, which does not have them.
            self.barrier(what).await?;
            records.extend(self.get_all(what, missing).await?.0);
        }
        Ok(records)
    }

    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        let connection = self.requests.current().filter(|_| key.starts_with(ELECTIONS))?;
        // At once, before the record is read.
        let subscribed = connection.client.subscribe(self.hints_of(key)).now_or_never()?;
        Some(subscribed.ok()?.map(drop).boxed())
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        // Raft: what was acknowledged is kept, as far as the servers' disks keep it.
        Ok(EpochState::Fixed)
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose(self).await
    }

    async fn close(&self) {
        self.requests.close().await;
    }
}

fn number(version: &Version) -> Result<u64, BackendError> {
    let invalid = |_| BackendError::new(BackendErrorKind::Invalid, "this is no version of NATS");
    version.as_str().parse().map_err(invalid)
}

/// Exchanges dots and slashes. Doing it twice changes nothing.
fn swap_separators(key: &str) -> String {
    let swapped = key.chars().map(|character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    swapped.collect()
}
