//! The store: reads, transactions and blocking queries.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::{
    StreamExt as _,
    future::join_all,
    stream::{self, BoxStream},
};
use reqwest::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{
    Diagnosis, Error, internal,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use crate::{
    client::{Agents, Answer, Request, text_of},
    config::ConsulConfig,
    diagnose::diagnose,
};

/// The prefix of the keys of elections.
const ELECTIONS: &str = "e/";
/// The key with a number that identifies the cluster.
const IDENTITY: &str = "cluster";
/// How long a blocking query waits for a change. Consul adds up to a sixteenth.
const WAIT: Duration = Duration::from_secs(10);
/// A blocking query that ends sooner without a change did not block.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// How many blocking queries there are at a time: each has a connection, and an agent allows an address 200.
const MAX_BLOCKING_QUERIES: usize = 32;
/// How many requests beside heartbeats there are at a time, each of which has a connection, too.
const MAX_REQUESTS: usize = 32;
/// The prefix of the keys of sessions, which heartbeats renew.
const SESSIONS: &str = "s/";
/// The largest list that is read: 500 sessions with the largest values, or many thousands of usual ones.
const MAX_LIST_BYTES: usize = 64 << 20;
/// The largest body of a transaction that Consul accepts by default, less what is beside the value.
const MAX_TRANSACTION_VALUE_BYTES: usize = 512 * 1024 - 2048;

/// The key-value store of a Consul cluster as a store of records.
///
/// Used by a [`ConsulBackend`](crate::ConsulBackend).
#[derive(Debug)]
pub struct ConsulStore {
    agents: Arc<Agents>,
    blocking_queries: Arc<Semaphore>,
    /// Requests beside heartbeats.
    requests: Semaphore,
    compared: Mutex<Compared>,
}

/// The hosts that were seen to be of one cluster.
#[derive(Debug, Default)]
struct Compared {
    /// The cluster's identity, and the host at which it was read first.
    identity: Option<(usize, String)>,
    hosts: BTreeSet<usize>,
}

/// An entry of the key-value store, in answers to reads and transactions.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    value: Option<String>,
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Transaction {
    results: Option<Vec<TransactionResult>>,
    errors: Option<Vec<TransactionError>>,
}

#[derive(Deserialize)]
struct TransactionResult {
    #[serde(rename = "KV")]
    entry: Entry,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TransactionError {
    what: String,
}

impl ConsulStore {
    /// A store in the cluster that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has no host, or a prefix that is not allowed.
    pub fn new(config: ConsulConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("Consul", &config.hosts, config.token.is_some(), "ca");
        }
        let blocking_queries = Arc::new(Semaphore::new(MAX_BLOCKING_QUERIES));
        Ok(Self {
            agents: Arc::new(Agents::new(config)),
            blocking_queries,
            requests: Semaphore::new(MAX_REQUESTS),
            compared: Mutex::default(),
        })
    }

    fn path(&self, key: &str) -> String {
        path(&self.agents, key)
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.agents.config.prefix)
    }

    /// Waits until there are few enough requests. Heartbeats do not wait.
    async fn permit(&self, key: &str) -> Option<SemaphorePermit<'_>> {
        if key.starts_with(SESSIONS) { None } else { self.requests.acquire().await.ok() }
    }

    /// The entry of an answer as a record.
    fn record(&self, what: &str, entry: Entry) -> Result<Record, BackendError> {
        let own = entry.key.strip_prefix(&self.agents.config.prefix).and_then(|key| key.strip_prefix('/'));
        let Some(key) = own else { return Err(garbage(what, "of another key")) };
        let body = BASE64_STANDARD.decode(entry.value.unwrap_or_default());
        let body = body.map_err(|_| garbage(what, "whose value is no base64"))?;
        Ok(Record { key: key.to_owned(), version: version(what, entry.modify_index)?, body })
    }

    /// Carries out operations in one step. `None` if a version was not as expected: nothing was done then.
    async fn transaction(
        &self,
        what: &'static str,
        operations: Value,
    ) -> Result<Option<Vec<TransactionResult>>, BackendError> {
        let request = Request::put(what, "txn".to_owned(), operations.to_string().into_bytes());
        let answer = self.agents.send(&request).await?;
        let Transaction { results, errors } = parsed(what, &answer)?;
        if answer.status == StatusCode::OK {
            return Ok(Some(results.unwrap_or_default()));
        }
        let texts: Vec<_> = errors.unwrap_or_default().into_iter().map(|error| error.what).collect();
        // In the whole text: the key stands before the reason, and may be long.
        let whole = texts.join("; ");
        let says = |known: &str| whole.contains(known);
        let is_conflict = ["index is stale", "failed index check", "doesn't exist"].into_iter().any(says);
        let text = text_of(whole.as_bytes());
        if says("Permission denied") {
            let text = format!("{what} in Consul: {text}; {}", self.agents.grant());
            return Err(BackendError::new(BackendErrorKind::Forbidden, text));
        }
        match is_conflict {
            true => Ok(None),
            false => Err(garbage(what, &format!("that refuses the transaction: {text}"))),
        }
    }

    async fn read_entry(&self, key: &str, mode: &str) -> Result<Option<Record>, BackendError> {
        let what = "reading a record";
        let answer = self.agents.send(&Request::get(what, format!("{}{mode}", self.path(key)))).await?;
        if !is_found(&answer) {
            return Ok(None);
        }
        let entries: Vec<Entry> = parsed(what, &answer)?;
        let entry = entries.into_iter().next().filter(|entry| entry.key == self.key(key));
        self.record(what, entry.ok_or_else(|| garbage(what, "without the entry"))?).map(Some)
    }

    /// Swaps a body that is too large for a transaction. Its answer has no version, which is read after it.
    async fn swap_large(
        &self,
        what: &'static str,
        key: &str,
        index: u64,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let path = format!("{}?cas={index}", self.path(key));
        let answer = self.agents.send(&Request::put(what, path, body.to_vec())).await?;
        if !parsed::<bool>(what, &answer)? {
            return Ok(Swap::Conflict);
        }
        Ok(match self.read_entry(key, "?consistent").await? {
            Some(found) if found.body == body => Swap::Done(found.version),
            // Replaced since: as if the answer had been lost.
            _ => Swap::Conflict,
        })
    }

    /// Checks that the host that is used is of the same cluster as those that were used before it: before its first request.
    async fn check_hosts(&self) -> Result<(), BackendError> {
        let mut compared = self.compared.lock().await;
        let host = *self.agents.current.borrow();
        if compared.hosts.contains(&host) { Ok(()) } else { self.compare_hosts(&mut compared).await }
    }

    /// Compares the identities that the hosts' clusters have (hazard G34), and gives one to a cluster without. Hosts that do not answer soon are
    /// compared before they are used.
    async fn compare_hosts(&self, compared: &mut Compared) -> Result<(), BackendError> {
        let hosts = &self.agents.config.hosts;
        if hosts.len() == 1 {
            return Ok(());
        }
        let (what, path) = ("comparing the hosts", self.path(IDENTITY));
        let limit = self.agents.config.settings.request_timeout() / 3;
        for is_last in [false, true] {
            let read = Request::get(what, format!("{path}?consistent"));
            let reads = (0..hosts.len()).map(|host| timeout(limit, self.agents.send_to(host, &read)));
            let found = join_all(reads).await.into_iter().enumerate().filter_map(|(host, answer)| {
                let answer = answer.ok()?.ok()?;
                let entries = if is_found(&answer) { parsed(what, &answer).ok()? } else { Vec::new() };
                let identity = entries.into_iter().next().map(|entry: Entry| entry.value.unwrap_or_default());
                Some((host, identity))
            });
            let before = compared.identity.clone().map(|(host, identity)| (host, Some(identity)));
            let found: Vec<_> = before.into_iter().chain(found).collect();
            let Some((first, identity)) = found.first() else { return Ok(()) };
            let other = found.iter().find(|(_, other)| other != identity);
            match (other, identity) {
                (None, Some(identity)) => {
                    compared.identity = Some((*first, identity.clone()));
                    compared.hosts.extend(found.iter().map(|(host, _)| *host));
                    return Ok(());
                }
                (Some((other, _)), _) if is_last => {
                    let (first, other) = (&hosts[*first], &hosts[*other]);
                    let text = format!(
                        "{first} and {other} belong to different clusters of Consul: two candidates could lead; name the agents of one"
                    );
                    return Err(BackendError::new(BackendErrorKind::Invalid, text));
                }
                _ => {
                    // Unless somebody else creates it.
                    let body = format!("{:032x}", fastrand::u128(..)).into_bytes();
                    let create = Request::put(what, format!("{path}?cas=0"), body);
                    let _ = timeout(limit, self.agents.send_to(*first, &create)).await;
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl CasStore for ConsulStore {
    fn name(&self) -> String {
        format!("consul {}", self.agents.config.hosts.join(", "))
    }

    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<Record>, BackendError> {
        self.check_hosts().await?;
        let _permit = self.permit(key).await;
        // The default mode asks the leader too, which need not ask its followers: it may be an earlier leader for a moment. A server that was
        // cut off refuses, unlike with `stale`.
        self.read_entry(key, if freshness == Freshness::Fresh { "?consistent" } else { "" }).await
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        _: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let what = "swapping a record";
        self.check_hosts().await?;
        let _permit = self.permit(key).await;
        // Zero: if there is none.
        let index = expected.map_or(Ok(0), |expected| index_of(what, expected))?;
        let value = BASE64_STANDARD.encode(body);
        if value.len() > MAX_TRANSACTION_VALUE_BYTES {
            return self.swap_large(what, key, index, body).await;
        }
        let operation =
            json!([{"KV": {"Verb": "cas", "Key": self.key(key), "Value": value, "Index": index}}]);
        let Some(results) = self.transaction(what, operation).await? else { return Ok(Swap::Conflict) };
        let result = results.into_iter().next().filter(|result| result.entry.key == self.key(key));
        let result = result.ok_or_else(|| garbage(what, "without a result"))?;
        Ok(Swap::Done(version(what, result.entry.modify_index)?))
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let what = "deleting a record";
        let (key, index) = (self.key(key), index_of(what, expected)?);
        // `delete-cas` succeeds if there is none.
        let operations = json!([
            {"KV": {"Verb": "check-index", "Key": key, "Index": index}},
            {"KV": {"Verb": "delete", "Key": key}}
        ]);
        Ok(self.transaction(what, operations).await?.is_some())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let what = "listing records";
        self.check_hosts().await?;
        let path = format!("{}?recurse&consistent", self.path(prefix));
        let request = Request { max_bytes: MAX_LIST_BYTES, ..Request::get(what, path) };
        let answer = self.agents.send(&request).await?;
        if !is_found(&answer) {
            return Ok(Vec::new());
        }
        let entries: Vec<Entry> = parsed(what, &answer)?;
        entries.into_iter().map(|entry| self.record(what, entry)).collect()
    }

    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        if !key.starts_with(ELECTIONS) {
            return None;
        }
        let permit = Arc::clone(&self.blocking_queries).try_acquire_owned().ok()?;
        let state = (Arc::clone(&self.agents), self.path(key), None, permit);
        let changes = stream::unfold(state, |(agents, path, mut index, permit)| async move {
            loop {
                let next = next_index(&agents, &path, index).await?;
                // After each subscription: the record may have changed before it.
                if index.replace(next) != Some(next) {
                    return Some(((), (agents, path, index, permit)));
                }
            }
        });
        Some(changes.boxed())
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        Ok(EpochState::Fixed)
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        let mut diagnoses = diagnose(&self.agents).await;
        if let Err(error) = self.compare_hosts(&mut Compared::default()).await {
            diagnoses.push(Diagnosis::problem("hosts", error.to_string(), "name the agents of one cluster"));
        }
        diagnoses
    }

    async fn close(&self) {
        self.agents.close();
    }
}

/// Waits until a key has another index than this one, or for a while. `None` when the hints end: after a failure, when another host is used, and
/// when the index goes back, as after a restored snapshot. Whoever reads the record subscribes again after its next, jittered poll.
async fn next_index(agents: &Agents, path: &str, index: Option<u64>) -> Option<u64> {
    let what = "waiting for a change";
    let request = match index {
        None => Request::get(what, path.to_owned()),
        Some(index) => Request {
            wait: WAIT + WAIT / 16,
            ..Request::get(what, format!("{path}?index={index}&wait={}s", WAIT.as_secs()))
        },
    };
    let (begun, mut host) = (Instant::now(), agents.current.subscribe());
    let next = tokio::select! {
        answer = agents.send(&request) => answer.ok()?.index?.max(1),
        // Other requests have found that it does not answer.
        _ = host.changed() => return None,
    };
    let goes_back = index.is_some_and(|index| next < index);
    let did_not_block = index == Some(next) && begun.elapsed() < MIN_WAIT;
    (!goes_back && !did_not_block).then_some(next)
}

/// The path of a key. Neither the prefix nor a key has a character that would have to be escaped.
pub(crate) fn path(agents: &Agents, key: &str) -> String {
    format!("kv/{}/{key}", agents.config.prefix)
}

fn is_found(answer: &Answer) -> bool {
    answer.status == StatusCode::OK
}

fn version(what: &str, index: u64) -> Result<Version, BackendError> {
    // Zero would stand for a record that does not exist.
    if index == 0 { Err(garbage(what, "without an index")) } else { Ok(index.into()) }
}

fn index_of(what: &str, version: &Version) -> Result<u64, BackendError> {
    let index = version.as_str().parse().ok().filter(|index| *index > 0);
    index.ok_or_else(|| {
        BackendError::new(BackendErrorKind::Invalid, format!("{what}: this is no version of Consul"))
    })
}

fn parsed<T: DeserializeOwned>(what: &str, answer: &Answer) -> Result<T, BackendError> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| garbage(what, &format!("that is not as expected: {error}")))
}

/// The request may have been carried out.
fn garbage(what: &str, how: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{what} in Consul: an answer {how}"))
}
