//! A host in simulated time: a session with a clock and a network of its own, whose window is kept as the engine keeps it.

use std::{cell::Cell, sync::Arc, time::Duration};

use tenure_core::{
    BootInstant, CandidateId, Clock, ElectionName, SimClock,
    spi::{Backend, BackendError, BackendSession, Entered, EntryRequest, QueuePosition, SessionOptions, Won},
};
use tokio::task::JoinHandle;

use crate::{
    CasBackend, CasSettings,
    memory::{MemoryCas, MemoryCasClient},
    record::Election,
};

pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const DRIFT: f64 = 0.1;

pub(crate) struct Host {
    pub(crate) client: MemoryCasClient,
    pub(crate) backend: CasBackend<MemoryCasClient>,
    pub(crate) clock: SimClock,
    pub(crate) session: Arc<dyn BackendSession>,
    ttl: Duration,
    deadline: Cell<BootInstant>,
}

pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(crate) async fn sleep(time: f64) {
    tokio::time::sleep(seconds(time)).await;
}

pub(crate) fn election(name: &str) -> ElectionName {
    ElectionName::new(name).unwrap()
}

pub(crate) fn request(name: &str, nonce: u128) -> EntryRequest {
    let candidate = CandidateId::new("host").unwrap();
    EntryRequest { election: election(name), candidate, value: Arc::from(*b"value"), nonce }
}

/// The record of an election, as it is in the store.
pub(crate) fn stored(store: &MemoryCas, name: &str) -> Election {
    let key = format!("e/{name}");
    let record = store.records(&key).into_iter().find(|record| record.key == key);
    record.map(|record| Election::decode(&key, &record.body).unwrap()).unwrap_or_default()
}

impl Host {
    pub(crate) async fn new(store: &MemoryCas) -> Self {
        Self::with_rate(store, 1.0).await
    }

    /// A host whose clock runs at this rate.
    pub(crate) async fn with_rate(store: &MemoryCas, rate: f64) -> Self {
        Self::with(store, rate, TTL).await.unwrap()
    }

    /// A host with another TTL.
    pub(crate) async fn with_ttl(store: &MemoryCas, ttl: Duration) -> Self {
        Self::with(store, 1.0, ttl).await.unwrap()
    }

    /// A host, or the error with which the store is refused.
    pub(crate) async fn try_new(store: &MemoryCas) -> Result<Self, BackendError> {
        Self::with(store, 1.0, TTL).await
    }

    async fn with(store: &MemoryCas, rate: f64, ttl: Duration) -> Result<Self, BackendError> {
        let client = store.client(fastrand::u64(..));
        let settings = CasSettings::new().with_poll_interval(seconds(0.1));
        let backend = CasBackend::with_settings(client.clone(), settings);
        let clock = SimClock::with_rate(rate);
        let deadline = Cell::new(deadline_from(clock.now(), ttl));
        let session = open(&backend, &clock, ttl).await?;
        Ok(Self { client, backend, clock, session, ttl, deadline })
    }

    /// Opens another session, as an elector does whose session has ended.
    pub(crate) async fn reopen(&mut self) {
        let deadline = deadline_from(self.clock.now(), self.ttl);
        self.session = open(&self.backend, &self.clock, self.ttl).await.unwrap();
        self.deadline.set(deadline);
    }

    /// Sends a heartbeat, which extends the window from before it was sent.
    pub(crate) async fn beat(&self) -> Result<(), BackendError> {
        let sent = self.clock.now();
        self.session.heartbeat().await?;
        self.deadline.set(deadline_from(sent, self.ttl));
        Ok(())
    }

    /// Whether the window is open: a candidate at the head considers itself the leader.
    pub(crate) fn is_open(&self) -> bool {
        self.clock.now() < self.deadline.get()
    }

    pub(crate) async fn enter(&self, name: &str, nonce: u128) -> Result<Entered, BackendError> {
        self.session.enter(&request(name, nonce)).await
    }

    /// Enters and leads.
    pub(crate) async fn lead(&self, name: &str, nonce: u128) -> u64 {
        let entered = self.enter(name, nonce).await.unwrap();
        entered.token().expect("nobody is ahead").get()
    }

    /// Waits, in a task, until the candidate is at the head.
    pub(crate) fn wait(&self, name: &str, nonce: u128) -> JoinHandle<Result<Won, BackendError>> {
        let (session, request) = (Arc::clone(&self.session), request(name, nonce));
        tokio::spawn(async move { session.wait_turn(&request, None, &QueuePosition::new(|_| ())).await })
    }

    /// Enters a queue behind others.
    pub(crate) async fn queue(&self, name: &str, nonce: u128) {
        let entered = self.enter(name, nonce).await.unwrap();
        assert!(matches!(entered, Entered::Queued { .. }), "{entered:?}");
    }

    pub(crate) async fn leave(&self, name: &str, nonce: u128) {
        self.session.leave(&request(name, nonce), None).await.unwrap();
    }

    /// Sends a heartbeat every third of a TTL, in a task.
    pub(crate) fn keep_alive(&self) -> JoinHandle<()> {
        let (session, pause) = (Arc::clone(&self.session), self.ttl / 3);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let _ = session.heartbeat().await;
            }
        })
    }
}

fn deadline_from(sent: BootInstant, ttl: Duration) -> BootInstant {
    sent + ttl.mul_f64(1.0 - DRIFT)
}

async fn open(
    backend: &CasBackend<MemoryCasClient>,
    clock: &SimClock,
    ttl: Duration,
) -> Result<Arc<dyn BackendSession>, BackendError> {
    let options = SessionOptions::new(ttl, Arc::new(clock.clone()), DRIFT);
    backend.open_session(&options).await.map(Arc::from)
}
