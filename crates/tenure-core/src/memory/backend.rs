//! A client of the in-memory store.

use std::{future::Future, time::Duration};

use async_trait::async_trait;
use futures::StreamExt;
use tokio::time::Instant;

use super::{Delivery, Direction, Link, MemoryStore, Op, Proof, store::Renewed};
use crate::{
    Candidate, ElectionName, FencingToken,
    failpoints::{SafetyRule, is_disabled},
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Entered, Entry, EntryEvent,
        EntryRequest, EntryWatcher, Heartbeat, HeartbeatProof, Observation, PerEntryWatcher, QueuePosition,
        SessionOptions, SessionRecord, Won,
    },
};

/// The pause before a heartbeat is repeated whose epoch has changed.
const CONFIRM_RETRY: Duration = Duration::from_millis(20);

/// A client of a [`MemoryStore`], with a network [`Link`] of its own.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    store: MemoryStore,
    link: Link,
}

impl MemoryBackend {
    pub(super) fn new(store: MemoryStore) -> Self {
        Self { store, link: Link::new() }
    }

    /// The network link to the store, on which faults can be injected.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Waits until `read` returns a value. Calls it at every change that the link lets this client see.
    async fn wait_for<T>(&self, read: impl Fn() -> Option<T>) -> T {
        let mut store = self.store.changes();
        let mut link = self.link.changes();
        loop {
            let is_visible = self.link.delivery(Op::Watch, Direction::Response) == Delivery::Deliver;
            if is_visible && let Some(value) = read() {
                return value;
            }
            let expiry = self.store.next_expiry();
            tokio::select! {
                _ = store.changed() => {}
                _ = link.changed() => {}
                () = sleep_until(expiry) => {}
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn store_name(&self) -> String {
        "memory".to_owned()
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let ttl = options.ttl;
        let store = self.store.clone();
        let id = self.link.send(Op::Open, move || Ok(store.open(ttl))).await?;
        Ok(Box::new(MemorySession { backend: self.clone(), id, ttl }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let (store, election) = (self.store.clone(), election.clone());
        self.link.send(Op::Read, move || Ok(store.candidates(&election))).await
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        let store = self.store.clone();
        self.link.send(Op::Read, move || Ok(store.elections())).await
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        let (store, election) = (self.store.clone(), election.clone());
        self.link.send(Op::Update, move || store.request_resign(&election)).await
    }

    async fn end_session(&self, record: &SessionRecord) -> Result<(), BackendError> {
        let (store, record) = (self.store.clone(), record.clone());
        let refused = |text: &str| Err(BackendError::new(BackendErrorKind::Invalid, text));
        let end = move || {
            if record.cluster != store.cluster() {
                return refused("the session belongs to another store");
            }
            let Ok(session) = record.session.parse() else {
                return refused("this is no session of this store");
            };
            match store.close_if(session, |nonce| record.is_nonce_of_session(nonce)) {
                true => Ok(()),
                false => refused("the entries of the session were created by another process"),
            }
        };
        self.link.send(Op::Close, end).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let (backend, election) = (self.clone(), election.clone());
        let first = self.link.send(Op::Watch, || Ok(())).await.map(|()| None::<Option<Candidate>>)?;
        Ok(futures::stream::unfold(first, move |last| {
            let (backend, election) = (backend.clone(), election.clone());
            async move {
                let leader = backend
                    .wait_for(|| {
                        let leader = backend.store.candidates(&election).into_iter().next();
                        let key = |c: &Option<Candidate>| c.as_ref().map(|c| (c.token, c.value.clone()));
                        (last.as_ref().map(key) != Some(key(&leader))).then_some(leader)
                    })
                    .await;
                Some((Ok(leader.clone()), Some(leader)))
            }
        })
        .boxed())
    }
}

#[derive(Debug)]
struct MemorySession {
    backend: MemoryBackend,
    id: u64,
    ttl: Duration,
}

impl MemorySession {
    fn send<T: Send + 'static>(
        &self,
        op: Op,
        carry_out: impl FnOnce(MemoryStore, u64) -> Result<T, BackendError> + Send + 'static,
    ) -> impl Future<Output = Result<T, BackendError>> + Send {
        let (store, id) = (self.backend.store.clone(), self.id);
        let link = self.backend.link.clone();
        async move { link.send(op, move || carry_out(store, id)).await }
    }

    /// Like etcd: a member that considers itself leader renews the session alone.
    async fn renew_at_member(&self) -> Result<Renewed, BackendError> {
        let ttl = self.ttl;
        match self.backend.link.member_is_isolated() {
            true => self.send(Op::Heartbeat, move |store, _| Ok(store.stale_renewal(ttl))).await,
            false => self.send(Op::Heartbeat, |store, id| store.renew(id)).await,
        }
    }
}

#[async_trait]
impl BackendSession for MemorySession {
    fn id(&self) -> String {
        self.id.to_string()
    }

    async fn cluster(&self) -> Result<String, BackendError> {
        Ok(self.backend.store.cluster())
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        self.backend.store.proof().into()
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let link = self.backend.link.clone();
        match self.backend.store.proof() {
            Proof::Answer | Proof::Process if link.member_is_isolated() => std::future::pending().await,
            Proof::Answer | Proof::Process => {
                self.send(Op::Heartbeat, |store, id| Ok(Heartbeat::new(store.renew(id)?.ttl))).await
            }
            Proof::Read => loop {
                let renewed = self.renew_at_member().await?;
                // Another heartbeat is tried when the epoch has changed. The engine bounds the time.
                if is_disabled(SafetyRule::ConfirmHeartbeats)
                    || self.send(Op::Confirm, move |store, _| Ok(store.epoch() == renewed.epoch)).await?
                    || is_disabled(SafetyRule::CompareEpochs)
                {
                    return Ok(Heartbeat::new(renewed.ttl));
                }
                tokio::time::sleep(CONFIRM_RETRY).await;
            },
            Proof::LaterHeartbeats { .. } if link.member_is_isolated() => std::future::pending().await,
            // Like ZooKeeper: a quorum carries out the heartbeat, but the session is extended only when the member relays
            // it, up to half a tick later, if it still can.
            Proof::LaterHeartbeats { gap } => {
                self.send(Op::Heartbeat, move |store, id| {
                    let answer = store.peek_session(id)?;
                    tokio::spawn(async move {
                        tokio::time::sleep(gap.mul_f64(0.9)).await;
                        if !link.member_is_isolated() {
                            let _ = store.renew(id);
                        }
                    });
                    Ok(Heartbeat::new(answer.ttl))
                })
                .await
            }
        }
    }

    async fn keep_alive(&self) -> Result<(), BackendError> {
        match self.backend.store.proof() {
            Proof::Read => self.renew_at_member().await.map(drop),
            _ => self.heartbeat().await.map(drop),
        }
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let request = request.clone();
        self.send(Op::Enter, move |store, id| store.enter(id, &request)).await
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        let gone = || BackendError::new(BackendErrorKind::EntryGone, "the entry does not exist");
        let entry = entry.ok_or_else(gone)?;
        let won = self.backend.wait_for(|| match self.backend.store.entries_ahead(self.id, entry) {
            None => Some(Err(gone())),
            Some(0) => FencingToken::new(entry.version).map(|token| Ok(Won::new(entry.clone(), token))),
            Some(ahead) => {
                position.set_next(ahead == 1);
                None
            }
        });
        won.await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (backend, id) = (self.backend.clone(), self.id);
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            let backend = backend.clone();
            async move {
                let store = &backend.store;
                let event = backend.wait_for(|| match store.entries_ahead(id, &entry) {
                    None => Some(EntryEvent::Deleted),
                    Some(_) if for_resign_requests && store.is_resign_requested(&entry) => {
                        Some(EntryEvent::ResignRequested)
                    }
                    Some(_) => None,
                });
                Ok(event.await)
            }
        }))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        let (entry, request) = (entry.clone(), request.clone());
        self.send(Op::Update, move |store, _| store.update(&entry, &request)).await
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let request = request.clone();
        self.send(Op::Leave, move |store, id| {
            store.leave(id, &request);
            Ok(())
        })
        .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.send(Op::Close, |store, id| {
            store.close(id);
            Ok(())
        })
        .await
    }
}
