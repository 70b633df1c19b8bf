//! Electors over one in-memory store whose requests can be reordered, with a history of the requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use shuttle::future::yield_now;

use super::harness::ModelClock;
use crate::{
    BootInstant, Candidate, CandidateId, Clock, Config, ElectionName, FencingToken, Leadership, StoreElector,
    memory::{MemoryBackend, MemoryStore},
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Entered, Entry, EntryRequest, EntryWatcher,
        Heartbeat, HeartbeatProof, Observation, PerEntryWatcher, QueuePosition, SessionOptions, Won,
    },
};

pub(super) const TTL: Duration = Duration::from_secs(10);
pub(super) const ELECTION: &str = "e";

/// What has happened in one schedule.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The tokens of the terms that have work in flight.
    working: BTreeSet<u64>,
    /// How often the entry of each request was removed, by nonce.
    removals: BTreeMap<u128, usize>,
    /// When each session was last extended, by the model's clock.
    extended: BTreeMap<u64, BootInstant>,
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

    /// An elector with the settings of `config` and the candidate id `id`.
    pub(super) fn elector(&self, config: &Config, id: &str) -> Arc<StoreElector> {
        let config = config.clone().with_ttl(TTL).with_id(CandidateId::new(id).unwrap());
        let backend = RecordingBackend { inner: self.store.backend(), world: self.clone() };
        Arc::new(StoreElector::with_clock(Arc::new(backend), config, self.clock.clone()).unwrap())
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Advances the clock, and expires the sessions that were not extended for a TTL.
    pub(super) fn advance(&self, time: Duration) {
        self.clock.advance(time);
        let now = self.clock.now();
        let extended = self.history().extended.clone();
        for (session, extended_at) in extended {
            if now >= extended_at + TTL {
                self.store.expire_session(session);
            }
        }
    }

    /// Expires the session of the entry with `token`.
    pub(super) fn expire(&self, token: FencingToken) {
        let owner = self.store.entries(ELECTION).into_iter().find(|entry| entry.revision == token.get());
        owner.map(|entry| self.store.expire_session(entry.session));
    }

    /// Work that is in flight until it is cancelled.
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

    /// Asserts that a candidate removes no entry while the work of that entry is in flight.
    fn assert_work_stopped(&self, what: &str, is_removed: impl Fn(&crate::memory::StoredEntry) -> bool) {
        let history = self.history();
        for entry in self.store.entries(ELECTION).iter().filter(|entry| is_removed(entry)) {
            assert!(!history.working.contains(&entry.revision), "{what} while its work is in flight");
        }
    }

    /// Asserts that each entry was removed at most once, all work has stopped, and the store is empty.
    pub(super) fn assert_nothing_left(&self) {
        let history = self.history();
        assert!(history.working.is_empty(), "work is in flight after its elector was closed");
        assert!(history.removals.values().all(|times| *times == 1), "an entry was removed more than once");
        assert_eq!((self.store.entry_count(), self.store.sessions().len()), (0, 0));
    }
}

/// Removes its term from the history when its work is dropped.
struct Working {
    world: World,
    token: u64,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.world.history().working.remove(&self.token);
    }
}

/// A backend or session that records its requests in the history.
#[derive(Debug)]
struct RecordingBackend<T> {
    inner: T,
    world: World,
}

/// Executes a request. Other threads may run before and after its execution.
async fn request<T>(execution: impl Future<Output = T>) -> T {
    yield_now().await;
    let answer = execution.await;
    yield_now().await;
    answer
}

#[async_trait]
impl Backend for RecordingBackend<MemoryBackend> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let inner: Arc<dyn BackendSession> = Arc::from(request(self.inner.open_session(options)).await?);
        let session: u64 = inner.id().parse().unwrap();
        let now = self.world.clock.now();
        self.world.history().extended.insert(session, now);
        Ok(Box::new(RecordingBackend { inner, world: self.world.clone() }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        request(self.inner.candidates(election)).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        request(self.inner.observe(election)).await
    }
}

#[async_trait]
impl BackendSession for RecordingBackend<Arc<dyn BackendSession>> {
    fn id(&self) -> String {
        self.inner.id()
    }

    fn granted_ttl(&self) -> Duration {
        self.inner.granted_ttl()
    }

    fn only_heartbeats_extend(&self) -> bool {
        self.inner.only_heartbeats_extend()
    }

    fn proof(&self) -> HeartbeatProof {
        self.inner.proof()
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        request(async {
            let answer = self.inner.heartbeat().await?;
            let now = self.world.clock.now();
            self.world.history().extended.insert(self.id().parse().unwrap(), now);
            Ok(answer)
        })
        .await
    }

    async fn keep_alive(&self) -> Result<(), BackendError> {
        request(self.inner.keep_alive()).await
    }

    async fn enter(&self, entering: &EntryRequest) -> Result<Entered, BackendError> {
        request(self.inner.enter(entering)).await
    }

    async fn wait_turn(
        &self,
        waiting: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        request(self.inner.wait_turn(waiting, entry, position)).await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let inner = Arc::clone(&self.inner);
        Box::new(PerEntryWatcher::new(move |entry, _| {
            let inner = Arc::clone(&inner);
            request(async move {
                let mut watcher = inner.entry_watcher();
                watcher.add(0, &entry);
                poll_fn(|context| watcher.poll_next(context)).await.map(|(_, event)| event)
            })
        }))
    }

    async fn update(&self, entry: &Entry, change: &EntryRequest) -> Result<(), BackendError> {
        request(self.inner.update(entry, change)).await
    }

    async fn leave(&self, withdrawn: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        request(async {
            self.world.assert_work_stopped("an entry is removed", |entry| entry.nonce == withdrawn.nonce);
            *self.world.history().removals.entry(withdrawn.nonce).or_default() += 1;
            self.inner.leave(withdrawn, entry).await
        })
        .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        request(async {
            let session: u64 = self.id().parse().unwrap();
            self.world.assert_work_stopped("a session is closed", |entry| entry.session == session);
            self.inner.close().await
        })
        .await
    }
}
