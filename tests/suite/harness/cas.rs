//! The harness with which a store that compares and swaps passes the conformance suite: a real server, and a proxy for each client.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;
use tenure::{BootClock, Clock, spi::Backend as _};
use tenure_cas::{CasBackend, CasStore, Epoch, EpochState, Freshness, Swap};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
    recorder::Recorder,
};

/// The part of a store that one test uses. The store compares and swaps.
pub trait CasServer: fmt::Debug + Send + Sync + 'static {
    /// The adapter.
    type Store: CasStore;

    /// The address of the server, `host:port`.
    fn endpoint(&self) -> String;

    /// A backend that reaches the server at `endpoint`, with requests that end after about a second, and polls ten times a second.
    fn backend(&self, endpoint: &str) -> CasBackend<Self::Store>;

    /// Keys that the store allows, and that tenure would not write.
    fn foreign_keys(&self) -> Vec<&'static str> {
        vec!["e/another", "e/", "s/not-a-session", "e/a/b"]
    }

    /// Whether the store gives hints of changes ([`CasStore::changes`]).
    fn gives_hints(&self) -> bool {
        true
    }

    /// The TTL of the candidates' sessions.
    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// The harness of a store that compares and swaps.
#[derive(Debug)]
pub struct Cas<S: CasServer> {
    server: S,
    recorder: Recorder,
    /// Reads and edits records as an operator would, and ends what dead sessions have left, as any other elector would.
    operator: CasBackend<S::Store>,
}

impl<S: CasServer> Cas<S> {
    /// A harness for a part of the store that is empty.
    pub fn new(server: S) -> Self {
        let operator = server.backend(&server.endpoint());
        Self { server, recorder: Recorder::default(), operator }
    }

    /// The server.
    pub fn server(&self) -> &S {
        &self.server
    }

    /// Changes the fields of a record, as an operator would by hand.
    async fn edit(&self, key: &str, change: impl Fn(&mut Value)) {
        let store = self.operator.store();
        loop {
            let found = store.read(key, Freshness::Fresh).await.unwrap_or_else(|error| panic!("{error}"));
            let found = found.unwrap_or_else(|| panic!("there is no {key}"));
            let mut record: Value = serde_json::from_slice(&found.body).expect("a record is JSON");
            change(&mut record);
            record["nonce"] = format!("{:032x}", fastrand::u128(..)).into();
            let body = record.to_string();
            let swapped = store.swap(key, Some(&found.version), epoch_of(store).await, body.as_bytes()).await;
            if let Swap::Done(_) = swapped.unwrap_or_else(|error| panic!("{error}")) {
                return;
            }
        }
    }
}

/// The current epoch of a store.
///
/// # Panics
/// When it cannot be read.
pub async fn epoch_of(store: &impl CasStore) -> Epoch {
    match store.epoch().await.unwrap_or_else(|error| panic!("{error}")) {
        EpochState::Known(epoch) => epoch,
        EpochState::Fixed | EpochState::Unknown => Epoch(0),
    }
}

const FOREIGN: &str = "10.0.0.1";

#[async_trait]
impl<S: CasServer> Harness for Cas<S> {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let proxy = Proxy::start(self.server.endpoint()).await.expect("a loopback port can be bound");
        let backend = self.server.backend(&proxy.endpoint());
        Client { backend: self.recorder.wrap(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        self.server.ttl()
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        let remove = |record: &mut Value| {
            record["token"] = record["token"].as_u64().map(|token| token + 1).into();
            let queue = record["queue"].as_array_mut().expect("a queue is an array");
            queue.retain(|slot| slot["session"] != session);
        };
        self.edit(&format!("e/{election}"), remove).await;
    }

    async fn expire_session(&self, session: &str) {
        let end = |record: &mut Value| {
            let fields = record.as_object_mut().expect("a record is an object");
            fields.retain(|name, _| name == "format");
            fields.insert("state".to_owned(), "ended".into());
        };
        self.edit(&format!("s/{session}"), end).await;
    }

    async fn add_foreign_entries(&self, _election: &str) {
        let store = self.operator.store();
        for key in self.server.foreign_keys() {
            let created = store.swap(key, None, epoch_of(store).await, FOREIGN.as_bytes()).await;
            assert!(matches!(created, Ok(Swap::Done(_))), "{key}: {created:?}");
        }
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        for key in self.server.foreign_keys() {
            let found = self.operator.store().read(key, Freshness::Fresh).await;
            let found = found.unwrap_or_else(|error| panic!("{error}"));
            if found.is_none_or(|record| record.body != FOREIGN.as_bytes()) {
                return false;
            }
        }
        true
    }

    async fn remaining_state(&self) -> Vec<String> {
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        self.operator.collect_garbage(&clock, 0.1).await.unwrap_or_else(|error| panic!("{error}"));
        let mut left = Vec::new();
        for prefix in ["s/", "e/"] {
            let found = self.operator.store().list(prefix).await.unwrap_or_else(|error| panic!("{error}"));
            left.extend(found.into_iter().filter(|record| is_in_use(&record.body)).map(|record| record.key));
        }
        self.operator.close().await;
        left
    }
}

/// Whether a record is that of a live session, or of an election with candidates.
fn is_in_use(body: &[u8]) -> bool {
    let record: Value = serde_json::from_slice(body).unwrap_or_default();
    record["state"] == "live" || record["queue"].as_array().is_some_and(|queue| !queue.is_empty())
}
