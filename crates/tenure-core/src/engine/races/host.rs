//! An elector over the in-memory store, each of whose requests can be overtaken, with a probe_entry of what the store is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use shuttle::future::yield_now;

use super::stage::ModelClock;
use crate::{
    BootInstant, Candidate, CandidateId, Clock, Config, ElectionName, FencingToken, Leadership, StoreElector,
    memory::{MemoryBackend, MemoryStore},
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Confirmation, Entered, Entry, EntryRequest,
        Heartbeat, HeartbeatProof, Observation,
    },
};

pub(super) const TTL: Duration = Duration::from_secs(10);
pub(super) const ELECTION: &str = "e";

/// What has happened in one schedule.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The tokens of the terms whose work is under way.
    working: BTreeSet<u64>,
    /// How often the store was asked to remove the entry of a request.
    left: BTreeMap<u128, usize>,
    /// When each session was renewed last, by the model's clock.
    renewed: BTreeMap<u64, BootInstant>,
}

/// The store, its clock and its history.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) store: MemoryStore,
    pub(super) clock: Arc<ModelClock>,
    history: Arc<Mutex<History>>,
}

impl World {
    pub(super) fn new() -> Self {
        Self { store: MemoryStore::new(), clock: ModelClock::new(), history: Arc::default() }
    }

    /// An elector whose settings are those of `config`, under its own name.
    pub(super) fn elector(&self, config: &Config, id: &str) -> Arc<StoreElector> {
        let config = config.clone().with_ttl(TTL).with_id(CandidateId::new(id).unwrap());
        let backend = Witnessed { inner: self.store.backend(), world: self.clone() };
        Arc::new(StoreElector::with_clock(Arc::new(backend), config, self.clock.clone()).unwrap())
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass, and the sessions expire that nobody has renewed.
    pub(super) fn pass(&self, time: Duration) {
        self.clock.advance(time);
        let now = self.clock.now();
        let renewed = self.history().renewed.clone();
        for (session, renewed) in renewed {
            if now >= renewed + TTL {
                self.store.expire_session(session);
            }
        }
    }

    /// Ends whichever session has the entry of `token`, as the store would.
    pub(super) fn expire(&self, token: FencingToken) {
        let owner = self.store.entries(ELECTION).into_iter().find(|entry| entry.revision == token.get());
        owner.map(|entry| self.store.expire_session(entry.session));
    }

    /// What a leader does until it is told to stop.
    pub(super) fn work(&self, leadership: &Leadership) -> impl Future<Output = ()> + use<> {
        let (world, token) = (self.clone(), leadership.fencing_token().get());
        let stop = leadership.cancellation_token();
        async move {
            world.history().working.insert(token);
            let _working = Working { world, token };
            while !stop.is_cancelled() {
                yield_now().await;
            }
        }
    }

    /// Nobody's entry is removed, at the candidate's own wish, while its work is under way.
    fn removes(&self, what: &str, is_removed: impl Fn(&crate::memory::StoredEntry) -> bool) {
        let history = self.history();
        for entry in self.store.entries(ELECTION).iter().filter(|entry| is_removed(entry)) {
            assert!(!history.working.contains(&entry.revision), "{what} while the work goes on");
        }
    }

    /// Each entry was removed at most once, all work has stopped, and nothing is left in the store.
    pub(super) fn nothing_left(&self) {
        let history = self.history();
        assert!(history.working.is_empty(), "work goes on after its elector was closed");
        assert!(history.left.values().all(|times| *times == 1), "an entry was left more than once");
        assert_eq!((self.store.entry_count(), self.store.sessions().len()), (0, 0));
    }
}

struct Working {
    world: World,
    token: u64,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.world.history().working.remove(&self.token);
    }
}

#[derive(Debug)]
struct Witnessed<T> {
    inner: T,
    world: World,
}

/// A request, between whose sending and answering anything may happen.
async fn request<T>(carried_out: impl Future<Output = T>) -> T {
    yield_now().await;
    let answer = carried_out.await;
    yield_now().await;
    answer
}

#[async_trait]
impl Backend for Witnessed<MemoryBackend> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        let inner = request(self.inner.open_session(ttl)).await?;
        let session: u64 = inner.id().parse().unwrap();
        let now = self.world.clock.now();
        self.world.history().renewed.insert(session, now);
        Ok(Box::new(Witnessed { inner, world: self.world.clone() }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        request(self.inner.candidates(election)).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        request(self.inner.observe(election)).await
    }
}

#[async_trait]
impl BackendSession for Witnessed<Box<dyn BackendSession>> {
    fn id(&self) -> String {
        self.inner.id()
    }

    fn granted_ttl(&self) -> Duration {
        self.inner.granted_ttl()
    }

    fn proof(&self) -> HeartbeatProof {
        self.inner.proof()
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        request(async {
            let answer = self.inner.heartbeat().await?;
            let now = self.world.clock.now();
            self.world.history().renewed.insert(self.id().parse().unwrap(), now);
            Ok(answer)
        })
        .await
    }

    async fn confirm(
        &self,
        heartbeat: &Heartbeat,
        probe_entry: Option<&Entry>,
    ) -> Result<Confirmation, BackendError> {
        request(self.inner.confirm(heartbeat, probe_entry)).await
    }

    async fn enter(&self, entering: &EntryRequest) -> Result<Entered, BackendError> {
        request(self.inner.enter(entering)).await
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        request(self.inner.wait_turn(entry)).await
    }

    async fn wait_deleted(&self, entry: &Entry) -> Result<(), BackendError> {
        request(self.inner.wait_deleted(entry)).await
    }

    async fn update(&self, entry: &Entry, change: &EntryRequest) -> Result<(), BackendError> {
        request(self.inner.update(entry, change)).await
    }

    async fn leave(&self, left: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        request(async {
            self.world.removes("the entry is removed", |entry| entry.nonce == left.nonce);
            *self.world.history().left.entry(left.nonce).or_default() += 1;
            self.inner.leave(left, entry).await
        })
        .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        request(async {
            let session: u64 = self.id().parse().unwrap();
            self.world.removes("the session is closed", |entry| entry.session == session);
            self.inner.close().await
        })
        .await
    }
}
