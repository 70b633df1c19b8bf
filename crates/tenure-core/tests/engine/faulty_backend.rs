//! A faulty backend: the in-memory one, with a hook before each call and on each heartbeat's answer.

use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::{
    Candidate, ElectionName, SimClock,
    memory::{MemoryBackend, MemoryStore},
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Entered, Entry, EntryEvent, EntryRequest,
        EntryWatcher, Heartbeat, HeartbeatProof, Observation, PerEntryWatcher, QueuePosition, SessionOptions,
        Won,
    },
};

use crate::host::Host;

/// A call of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Heartbeat,
    KeepAlive,
    Enter,
    WaitTurn,
    Watch,
    Update,
    Leave,
    Close,
}

/// A host whose backend runs `before` ahead of each call, so that calls can fail or panic.
pub(crate) fn host(
    store: &MemoryStore,
    id: &str,
    before: impl Fn(Call) -> Result<(), BackendError> + Send + Sync + 'static,
) -> Host {
    host_with_faults(store, id, Faults { before: Box::new(before), ..Faults::none() })
}

/// A host whose backend changes the answers to heartbeats.
pub(crate) fn host_with_answers(
    store: &MemoryStore,
    id: &str,
    answered: impl Fn(Heartbeat) -> Heartbeat + Send + Sync + 'static,
) -> Host {
    host_with_faults(store, id, Faults { answered: Box::new(answered), ..Faults::none() })
}

/// A host whose backend says that the store keeps a session for `time` after its last heartbeat.
pub(crate) fn host_kept_for(store: &MemoryStore, id: &str, time: Duration) -> Host {
    host_with_faults(store, id, Faults { expires_after: Some(time), ..Faults::none() })
}

/// A host whose sessions have so many entries at most.
pub(crate) fn host_with_entries_per_session(store: &MemoryStore, id: &str, count: usize) -> Host {
    host_with_faults(store, id, Faults { entries_per_session: Some(count), ..Faults::none() })
}

fn host_with_faults(store: &MemoryStore, id: &str, faults: Faults) -> Host {
    Host::with_backend(
        store,
        id,
        SimClock::new(),
        |config| config,
        |inner| Arc::new(Faulty { inner, faults: Arc::new(faults) }),
    )
}

struct Faults {
    before: Box<dyn Fn(Call) -> Result<(), BackendError> + Send + Sync>,
    answered: Box<dyn Fn(Heartbeat) -> Heartbeat + Send + Sync>,
    /// In place of what the inner session says.
    expires_after: Option<Duration>,
    /// In place of what the inner backend says.
    entries_per_session: Option<usize>,
}

impl Faults {
    fn none() -> Self {
        Self {
            before: Box::new(|_| Ok(())),
            answered: Box::new(|answer| answer),
            expires_after: None,
            entries_per_session: None,
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Faulty {
    inner: MemoryBackend,
    faults: Arc<Faults>,
}

#[async_trait]
impl Backend for Faulty {
    fn capabilities(&self) -> Capabilities {
        let inner = self.inner.capabilities();
        self.faults.entries_per_session.map_or(inner, |count| inner.entries_per_session(count))
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        (self.faults.before)(Call::Open)?;
        let inner = Arc::from(self.inner.open_session(options).await?);
        Ok(Box::new(FaultySession { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.inner.candidates(election).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        self.inner.observe(election).await
    }
}

#[derive(Debug)]
struct FaultySession {
    inner: Arc<dyn BackendSession>,
    faults: Arc<Faults>,
}

#[async_trait]
impl BackendSession for FaultySession {
    fn id(&self) -> String {
        self.inner.id()
    }

    fn granted_ttl(&self) -> Duration {
        self.inner.granted_ttl()
    }

    fn expires_after(&self) -> Duration {
        self.faults.expires_after.unwrap_or_else(|| self.inner.expires_after())
    }

    fn only_heartbeats_extend(&self) -> bool {
        self.inner.only_heartbeats_extend()
    }

    fn proof(&self) -> HeartbeatProof {
        self.inner.proof()
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        (self.faults.before)(Call::Heartbeat)?;
        self.inner.heartbeat().await.map(&self.faults.answered)
    }

    async fn keep_alive(&self) -> Result<(), BackendError> {
        (self.faults.before)(Call::KeepAlive)?;
        self.inner.keep_alive().await
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        (self.faults.before)(Call::Enter)?;
        self.inner.enter(request).await
    }

    async fn wait_turn(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        (self.faults.before)(Call::WaitTurn)?;
        self.inner.wait_turn(request, entry, position).await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (inner, faults) = (Arc::clone(&self.inner), Arc::clone(&self.faults));
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            let (inner, faults) = (Arc::clone(&inner), Arc::clone(&faults));
            async move {
                (faults.before)(Call::Watch)?;
                let mut watcher = inner.entry_watcher();
                watcher.add(0, &entry);
                loop {
                    let (_, event) = poll_fn(|context| watcher.poll_next(context)).await?;
                    if for_resign_requests || event == EntryEvent::Deleted {
                        return Ok(event);
                    }
                }
            }
        }))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        (self.faults.before)(Call::Update)?;
        self.inner.update(entry, request).await
    }

    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        (self.faults.before)(Call::Leave)?;
        self.inner.leave(request, entry).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        (self.faults.before)(Call::Close)?;
        self.inner.close().await
    }
}
