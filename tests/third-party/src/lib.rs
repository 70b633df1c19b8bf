//! A third party's backend: a complete small store within one process, and its URL scheme.
//!
//! `acme:NAME` is the store with this name; `acme:NAME?delay=10ms` delays its answers. A program adds the scheme to its
//! registry: `registry.register("acme", acme_store::open)`.

mod store;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tenure_core::{
    Candidate, Config, ElectionName, Error, FencingToken, StoreUrl,
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Entered, Entry, EntryEvent, EntryRequest,
        EntryWatcher, Heartbeat, HeartbeatProof, Observation, PerEntryWatcher,
    },
};

use crate::store::Store;

/// The stores of this process, by name.
static STORES: Mutex<Option<HashMap<String, Arc<Store>>>> = Mutex::new(None);

/// Opens the store that `url` names.
///
/// # Errors
/// When the URL has a host or no name, or the delay is no time.
pub fn open(url: &StoreUrl, _config: &Config) -> Result<Arc<dyn Backend>, Error> {
    const ADVICE: &str = "give acme:NAME";
    if !url.hosts().is_empty() {
        return Err(url.invalid(format!("it has a host; {ADVICE}")).into());
    }
    if url.path().is_empty() {
        return Err(url.invalid(format!("it has no name; {ADVICE}")).into());
    }
    let delay = url.duration("delay")?.unwrap_or_default();
    Ok(Arc::new(AcmeBackend::new(url.path(), delay)))
}

/// A client of a store.
#[derive(Clone, Debug)]
pub struct AcmeBackend {
    store: Arc<Store>,
    delay: Duration,
}

impl AcmeBackend {
    /// A client of the store `name`, whose answers take `delay`.
    pub fn new(name: &str, delay: Duration) -> Self {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        let stores = stores.get_or_insert_default();
        let store = stores.entry(name.to_owned()).or_insert_with(|| Arc::new(Store::new()));
        Self { store: Arc::clone(store), delay }
    }

    /// Deletes an entry, as an operator could.
    pub fn delete_entry(&self, token: u64) {
        self.store.delete(token);
    }

    /// Ends a session, as an operator could.
    pub fn end_session(&self, session: u64) {
        self.store.close(session);
    }

    /// Describes all sessions and entries of the store.
    pub fn contents(&self) -> Vec<String> {
        self.store.contents()
    }

    /// The answer to a request. A real backend sends it over a connection here.
    async fn answer<T>(&self, answer: T) -> T {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        answer
    }
}

#[async_trait]
impl Backend for AcmeBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        let id = self.answer(self.store.open(ttl)).await;
        Ok(Box::new(AcmeSession { backend: self.clone(), id, ttl }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        Ok(self.answer(self.store.candidates(election)).await)
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        Ok(self.answer(self.store.elections()).await)
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let (store, election) = (Arc::clone(&self.store), election.clone());
        let leaders = stream::unfold(None::<Option<Candidate>>, move |last| {
            let (store, election) = (Arc::clone(&store), election.clone());
            async move {
                let changed = || {
                    let leader = store.candidates(&election).into_iter().next();
                    (last.as_ref() != Some(&leader)).then_some(leader)
                };
                let leader = store.wait_for(changed).await;
                Some((Ok(leader.clone()), Some(leader)))
            }
        });
        Ok(leaders.boxed())
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.answer(self.store.request_resign(election)).await
    }
}

#[derive(Debug)]
struct AcmeSession {
    backend: AcmeBackend,
    id: u64,
    ttl: Duration,
}

#[async_trait]
impl BackendSession for AcmeSession {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    /// The store is one process: an answered heartbeat has extended the session.
    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Answer
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        self.backend.answer(self.backend.store.renew(self.id)).await
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        self.backend.answer(self.backend.store.enter(self.id, request)).await
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        self.backend.store.wait_for(|| self.backend.store.turn(self.id, entry)).await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (store, id) = (Arc::clone(&self.backend.store), self.id);
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            let store = Arc::clone(&store);
            async move {
                let event = || {
                    let event = store.event(id, &entry)?;
                    (for_resign_requests || event == EntryEvent::Deleted).then_some(event)
                };
                Ok(store.wait_for(event).await)
            }
        }))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.backend.answer(self.backend.store.update(entry, request)).await
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        self.backend.answer(self.backend.store.leave(self.id, request)).await;
        Ok(())
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.backend.answer(self.backend.store.close(self.id)).await;
        Ok(())
    }
}
