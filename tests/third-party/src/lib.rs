//! A third party's backend: a complete small store within one process, and its URL scheme.
//!
//! `acme:NAME` is the store with this name. A program adds the scheme to its registry:
//! `registry.register("acme", acme_store::open)`.

mod store;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tenure_core::{
    Candidate, Config, ElectionName, Error, StoreUrl,
    spi::{
        self, Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Entered, Entry,
        EntryEvent, EntryRequest, EntryWatcher, Heartbeat, HeartbeatProof, Observation, PerEntryWatcher,
        QueuePosition, SessionOptions, Won,
    },
};

use crate::store::{Store, gone};

/// The stores of this process, by name.
static STORES: LazyLock<Mutex<HashMap<String, Arc<Store>>>> = LazyLock::new(Mutex::default);

/// Opens the store that `url` names, or says what is wrong with the URL.
pub fn open(url: &StoreUrl, _config: &Config) -> Result<Arc<dyn Backend>, Error> {
    if !url.hosts().is_empty() || url.path().is_empty() {
        return Err(url.invalid("it has a host or no name; give acme:NAME").into());
    }
    Ok(Arc::new(AcmeBackend::new(url.path())))
}

/// A client of a store. Here it calls the store; a real one sends requests over a connection.
#[derive(Clone, Debug)]
pub struct AcmeBackend(Arc<Store>);

impl AcmeBackend {
    /// A client of the store `name`.
    pub fn new(name: &str) -> Self {
        let mut stores = STORES.lock().expect("no caller panics");
        Self(Arc::clone(stores.entry(name.to_owned()).or_default()))
    }

    /// The numbers of all sessions and entries of the store.
    pub fn contents(&self) -> Vec<u64> {
        self.0.execute(|state| state.sessions.keys().chain(state.entries.keys()).copied().collect())
    }

    /// Deletes a session or an entry, as an operator could.
    pub fn delete(&self, number: u64) {
        self.0.execute(|state| (state.sessions.remove(&number), state.entries.remove(&number)));
    }
}

#[async_trait]
impl Backend for AcmeBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let (store, ttl) = (Arc::clone(&self.0), options.ttl);
        Ok(Box::new(AcmeSession { id: store.execute(|state| state.open(ttl)), store, ttl }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        Ok(self.0.execute(|state| state.candidates(election).collect()))
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        let names: BTreeSet<_> = self
            .0
            .execute(|state| state.entries.values().map(|entry| entry.request.election.clone()).collect());
        Ok(names.into_iter().collect())
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let (store, election) = (Arc::clone(&self.0), election.clone());
        let leaders = stream::unfold((store, election, None), |(store, election, last)| async move {
            let change = store.poll(|state| {
                let leader = state.candidates(&election).next();
                (last.as_ref() != Some(&leader)).then_some(leader)
            });
            let leader = change.await;
            Some((Ok(leader.clone()), (store, election, Some(leader))))
        });
        Ok(leaders.boxed())
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.0.execute(|state| {
            let leader = state.candidates(election).next();
            let entry = state.entries.values_mut().find(|entry| entry.request.election == *election);
            if let (Some(leader), Some(entry)) = (&leader, entry) {
                let marked = spi::mark_resign_requested(&entry.payload);
                entry.payload = marked.ok_or_else(|| spi::foreign_leader_error(leader))?;
            }
            Ok(leader)
        })
    }
}

#[derive(Debug)]
struct AcmeSession {
    store: Arc<Store>,
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

    /// The store is one process: an answered heartbeat has extended the session.
    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Answer
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        self.store.execute(|state| state.renew(self.id)).map(Heartbeat::new)
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        self.store.execute(|state| {
            let number = state.enter(self.id, request)?;
            let entry =
                Entry { election: request.election.clone(), key: number.to_string().into(), version: number };
            Ok(match state.turn(&entry) {
                Some(won) => Entered::Leads(won),
                None => Entered::Queued { entry: Some(entry) },
            })
        })
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        _position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        let entry = entry.ok_or_else(|| gone(BackendErrorKind::EntryGone))?;
        let turn = self.store.poll(|state| match state.find(self.id, entry) {
            None => Some(Err(gone(BackendErrorKind::EntryGone))),
            Some(_) => state.turn(entry).map(Ok),
        });
        turn.await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (store, id) = (Arc::clone(&self.store), self.id);
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            let store = Arc::clone(&store);
            async move {
                let event = store.poll(|state| {
                    let Some(found) = state.find(id, &entry) else { return Some(EntryEvent::Deleted) };
                    let is_asked = for_resign_requests && spi::is_resign_requested(&found.payload);
                    is_asked.then_some(EntryEvent::ResignRequested)
                });
                Ok(event.await)
            }
        }))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.store.execute(|state| {
            let found =
                state.entries.get_mut(&entry.version).ok_or_else(|| gone(BackendErrorKind::EntryGone))?;
            found.payload = spi::replacement_payload(&found.payload, request);
            Ok(())
        })
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        self.store.execute(|state| state.entries.retain(|_, entry| entry.request.nonce != request.nonce));
        Ok(())
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.store.execute(|state| state.sessions.remove(&self.id));
        Ok(())
    }
}
