//! A client of the store in memory, and its faults.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use fastrand::Rng;
use futures::stream::{self, BoxStream, StreamExt as _};
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

use super::{HeldRequest, MemoryCas};
use crate::store::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};

/// A client of a [`MemoryCas`], with faults of its own. Clones share them.
#[derive(Clone, Debug)]
pub struct MemoryCasClient {
    store: MemoryCas,
    state: Arc<ClientState>,
}

#[derive(Debug)]
struct ClientState {
    faults: Mutex<CasFaults>,
    random: Mutex<Rng>,
    network: watch::Sender<Network>,
    next: Mutex<VecDeque<(Request, String, OneFault)>>,
    next_lag: Mutex<Option<(String, Duration)>>,
    reads: Mutex<BTreeMap<String, u64>>,
}

/// The faults of a client that occur at random. None by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CasFaults {
    /// A read that may be stale shows the record as it was at most so long ago: each read another time.
    pub lag: Duration,
    /// Each such read lags by exactly that.
    pub lag_is_exact: bool,
    /// A request, and an answer, takes at most so long.
    pub latency: Duration,
    /// The share of requests that are lost.
    pub lost_requests: f64,
    /// The share of requests whose answers are lost.
    pub lost_answers: f64,
    /// The share of requests that fail, and are carried out later.
    pub late_requests: f64,
    /// By how much at most.
    pub late_by: Duration,
    /// The share of swaps that the client library repeats, so that one's own success comes back as a conflict.
    pub repeated_swaps: f64,
}

/// The network between a client and its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Requests and answers arrive.
    #[default]
    Healthy,
    /// Requests fail at once.
    Cut,
    /// Requests are lost. They fail when the network is healthy again.
    Partitioned,
    /// Requests are carried out, and their answers are lost.
    AnswersLost,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// [`CasStore::read`].
    Read,
    /// [`CasStore::swap`].
    Swap,
    /// [`CasStore::delete`].
    Delete,
    /// [`CasStore::list`].
    List,
    /// [`CasStore::epoch`].
    Epoch,
}

#[derive(Debug)]
enum OneFault {
    Hold(HeldRequest),
    LoseAnswer,
    Repeat,
}

impl MemoryCasClient {
    pub(super) fn new(store: MemoryCas, seed: u64) -> Self {
        let state = ClientState {
            faults: Mutex::default(),
            random: Mutex::new(Rng::with_seed(seed)),
            network: watch::Sender::default(),
            next: Mutex::default(),
            next_lag: Mutex::default(),
            reads: Mutex::default(),
        };
        Self { store, state: Arc::new(state) }
    }

    /// Sets the faults that occur at random.
    pub fn set_faults(&self, faults: CasFaults) {
        *lock(&self.state.faults) = faults;
    }

    /// Sets the state of the network.
    pub fn set_network(&self, network: Network) {
        self.state.network.send_replace(network);
    }

    /// Holds the next request of this kind whose key begins with `prefix`.
    pub fn hold_next(&self, request: Request, prefix: &str) -> HeldRequest {
        let held = HeldRequest::default();
        self.add_next(request, prefix, OneFault::Hold(held.clone()));
        held
    }

    /// Loses the answer of the next request of this kind whose key begins with `prefix`.
    pub fn lose_next_answer(&self, request: Request, prefix: &str) {
        self.add_next(request, prefix, OneFault::LoseAnswer);
    }

    /// Carries the next swap of a key that begins with `prefix` out twice, as a client library does that repeats a request.
    pub fn repeat_next_swap(&self, prefix: &str) {
        self.add_next(Request::Swap, prefix, OneFault::Repeat);
    }

    /// Lets the next read of a key that begins with `prefix` show the record as it was so long ago, also if it asks for a fresh one.
    pub fn lag_next_read(&self, prefix: &str, lag: Duration) {
        *lock(&self.state.next_lag) = Some((prefix.to_owned(), lag));
    }

    /// How many reads of keys that begin with `prefix` this client has sent.
    pub fn reads_of(&self, prefix: &str) -> u64 {
        let reads = lock(&self.state.reads);
        reads.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    fn add_next(&self, request: Request, prefix: &str, fault: OneFault) {
        lock(&self.state.next).push_back((request, prefix.to_owned(), fault));
    }

    fn take_next(&self, request: Request, key: &str) -> Option<OneFault> {
        let mut next = lock(&self.state.next);
        let at =
            next.iter().position(|(of, prefix, _)| *of == request && key.starts_with(prefix.as_str()))?;
        next.remove(at).map(|(_, _, fault)| fault)
    }

    fn chance(&self, share: f64) -> bool {
        share > 0.0 && lock(&self.state.random).f64() < share
    }

    fn up_to(&self, most: Duration) -> Duration {
        if most.is_zero() { most } else { most.mul_f64(lock(&self.state.random).f64()) }
    }

    fn lag(&self, key: &str, freshness: Freshness) -> Duration {
        let next = lock(&self.state.next_lag).take_if(|(prefix, _)| key.starts_with(prefix.as_str()));
        if let Some((_, lag)) = next {
            return lag;
        }
        let faults = *lock(&self.state.faults);
        match freshness {
            Freshness::Fresh => Duration::ZERO,
            Freshness::MayBeStale if faults.lag_is_exact => faults.lag,
            Freshness::MayBeStale => self.up_to(faults.lag),
        }
    }

    /// Sends a request, which `execute` carries out in one step.
    async fn send<T: Send + 'static>(
        &self,
        request: Request,
        key: &str,
        execute: impl Fn(&MemoryCas) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        let store = self.store.clone();
        let faults = *lock(&self.state.faults);
        let mut is_repeated = request == Request::Swap && self.chance(faults.repeated_swaps);
        match self.take_next(request, key) {
            Some(OneFault::Hold(held)) => {
                let (answer, answered) = oneshot::channel();
                held.arrive(Box::new(move || drop(answer.send(execute(&store)))));
                return answered.await.map_err(|_| unavailable("the request was discarded"));
            }
            Some(OneFault::LoseAnswer) => {
                execute(&store);
                return Err(unavailable("the answer was lost"));
            }
            Some(OneFault::Repeat) => is_repeated = true,
            None => {}
        }
        let network = *self.state.network.borrow();
        match network {
            Network::Healthy => {}
            Network::Cut => return Err(unavailable("connection refused")),
            Network::Partitioned => return Err(self.healed().await),
            Network::AnswersLost => {
                execute(&store);
                return Err(self.healed().await);
            }
        }
        if self.chance(faults.lost_requests) {
            return Err(unavailable("the request was lost"));
        }
        if self.chance(faults.late_requests) {
            let late = self.up_to(faults.late_by);
            tokio::spawn(async move {
                sleep(late).await;
                execute(&store);
            });
            return Err(unavailable("the request was given up"));
        }
        let run = move || {
            let first = execute(&store);
            if is_repeated { execute(&store) } else { first }
        };
        let answer = match faults.latency.is_zero() {
            true => run(),
            false => {
                let delay = self.up_to(faults.latency);
                // A request that is under way is carried out, whether or not its sender still waits.
                let sent = tokio::spawn(async move {
                    sleep(delay).await;
                    run()
                });
                sent.await.map_err(|_| unavailable("the request was discarded"))?
            }
        };
        if self.chance(faults.lost_answers) {
            return Err(unavailable("the answer was lost"));
        }
        sleep_if_any(self.up_to(faults.latency)).await;
        // The network was cut while the answer was under way.
        let network = *self.state.network.borrow();
        match network {
            Network::Healthy => Ok(answer),
            Network::Cut => Err(unavailable("the connection was reset")),
            Network::Partitioned | Network::AnswersLost => Err(self.healed().await),
        }
    }

    async fn healed(&self) -> BackendError {
        let mut network = self.state.network.subscribe();
        let _ = network.wait_for(|network| *network == Network::Healthy).await;
        unavailable("the connection was reset")
    }
}

async fn sleep_if_any(delay: Duration) {
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

fn unavailable(text: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, text)
}

#[async_trait]
impl CasStore for MemoryCasClient {
    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<Record>, BackendError> {
        *lock(&self.state.reads).entry(key.to_owned()).or_default() += 1;
        let (wanted, lag) = (key.to_owned(), self.lag(key, freshness));
        self.send(Request::Read, key, move |store| store.read(&wanted, lag)).await
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let (wanted, expected, body) = (key.to_owned(), expected.cloned(), body.to_vec());
        let swap = move |store: &MemoryCas| store.swap(&wanted, expected.as_ref(), epoch, body.clone());
        self.send(Request::Swap, key, swap).await
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let (wanted, expected) = (key.to_owned(), expected.clone());
        self.send(Request::Delete, key, move |store| store.delete(&wanted, &expected)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let wanted = prefix.to_owned();
        self.send(Request::List, prefix, move |store| store.records(&wanted)).await
    }

    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        if !self.store.options().hints {
            return None;
        }
        let (changes, network) = (self.store.changes(key), self.state.network.subscribe());
        let hints = stream::unfold((changes, network), |(mut changes, mut network)| async move {
            changes.changed().await.ok()?;
            network.wait_for(|network| *network == Network::Healthy).await.ok()?;
            Some(((), (changes, network)))
        });
        Some(hints.boxed())
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        self.send(Request::Epoch, "", MemoryCas::epoch).await
    }
}
