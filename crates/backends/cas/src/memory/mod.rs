//! A store in memory, for tests, whose clients have faults: stale reads, lost and late answers, requests that are carried out long after
//! they were given up, and failovers that lose acknowledged writes.
//!
//! Its time is tokio's, so that tests can pause it. All random choices of a client come from its seed.

mod client;
mod held;

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tenure_core::internal::lock;
use tokio::{sync::watch, time::Instant};

pub use client::{CasFaults, MemoryCasClient, Network, Request};
pub use held::HeldRequest;

use crate::{
    rules::{CasRule, is_disabled},
    store::{Epoch, EpochState, Record, Swap, Version},
};

/// For how long earlier states of a record can be read.
const HISTORY: Duration = Duration::from_secs(120);

/// A store in memory; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryCas(Arc<Inner>);

/// What kind of store a [`MemoryCas`] is.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCasOptions {
    /// Whether it can lose writes, and says when.
    pub epochs: MemoryEpochs,
    /// Versions are hashes of the bodies, as ETags are.
    pub etags: bool,
    /// It gives hints of changes.
    pub hints: bool,
    /// It accepts the condition of a swap, and ignores it.
    pub ignores_conditions: bool,
    /// It creates a missing record although the swap expects a version of it.
    pub creates_missing: bool,
}

/// What a [`MemoryCas`] says of its epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryEpochs {
    /// It loses no write.
    #[default]
    Fixed,
    /// Its epoch rises with each failover.
    Known,
    /// It does not say.
    Unknown,
}

#[derive(Debug, Default)]
struct Inner {
    options: MemoryCasOptions,
    state: Mutex<State>,
    /// Notified when a record changes that somebody watches.
    watched: Mutex<BTreeMap<String, watch::Sender<()>>>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Record>,
    last_version: u64,
    epoch: u64,
    /// The earlier states of each record, each with the time until which it was current.
    past: BTreeMap<String, Vec<(Instant, Option<Record>)>>,
    /// What each write of this epoch has replaced.
    log: Vec<(String, Option<Record>)>,
    requests: u64,
}

impl MemoryCas {
    /// An empty store that loses no write, numbers versions and gives hints.
    pub fn new() -> Self {
        Self::with_options(MemoryCasOptions { hints: true, ..MemoryCasOptions::default() })
    }

    /// An empty store of this kind.
    pub fn with_options(options: MemoryCasOptions) -> Self {
        Self(Arc::new(Inner { options, ..Inner::default() }))
    }

    /// A client of the store without faults, whose random choices come from `seed`.
    pub fn client(&self, seed: u64) -> MemoryCasClient {
        MemoryCasClient::new(self.clone(), seed)
    }

    /// The records whose keys begin with `prefix`.
    pub fn records(&self, prefix: &str) -> Vec<Record> {
        self.state().records.values().filter(|record| record.key.starts_with(prefix)).cloned().collect()
    }

    /// Replaces or removes a record, as an operator would.
    pub fn put(&self, key: &str, body: Option<Vec<u8>>) {
        let mut state = self.state();
        let record = body.map(|body| self.record(&mut state, key, body));
        self.write(&mut state, key, record);
    }

    /// Fails over to a replica that has not received the last `lost` writes. The epoch rises.
    pub fn fail_over(&self, lost: usize) {
        let mut state = self.state();
        for _ in 0..lost {
            let Some((key, before)) = state.log.pop() else { break };
            // The new primary numbers its versions from the last one that it knows.
            state.last_version = state.last_version.saturating_sub(1);
            match before {
                Some(record) => drop(state.records.insert(key, record)),
                None => drop(state.records.remove(&key)),
            }
        }
        state.log.clear();
        state.past.clear();
        state.epoch += 1;
        drop(state);
        for watched in lock(&self.0.watched).values() {
            watched.send_replace(());
        }
    }

    /// Ends all streams of hints.
    pub fn stop_hints(&self) {
        lock(&self.0.watched).clear();
    }

    /// Sets the epoch, as when an earlier primary answers again.
    pub fn set_epoch(&self, epoch: u64) {
        self.state().epoch = epoch;
    }

    /// The number of requests that were carried out.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    fn options(&self) -> MemoryCasOptions {
        self.0.options
    }

    fn changes(&self, key: &str) -> watch::Receiver<()> {
        lock(&self.0.watched).entry(key.to_owned()).or_default().subscribe()
    }

    fn epoch(&self) -> EpochState {
        match self.options().epochs {
            MemoryEpochs::Fixed => EpochState::Fixed,
            MemoryEpochs::Known => EpochState::Known(Epoch(self.state().epoch)),
            MemoryEpochs::Unknown => EpochState::Unknown,
        }
    }

    fn record(&self, state: &mut State, key: &str, body: Vec<u8>) -> Record {
        state.last_version += 1;
        let version = match self.options().etags {
            true => {
                let mut hasher = DefaultHasher::new();
                body.hash(&mut hasher);
                Version::new(format!("{:016x}", hasher.finish()))
            }
            false => Version::from(state.last_version),
        };
        Record { key: key.to_owned(), version, body }
    }

    fn write(&self, state: &mut State, key: &str, record: Option<Record>) {
        let before = match record {
            Some(record) => state.records.insert(key.to_owned(), record),
            None => state.records.remove(key),
        };
        let now = Instant::now();
        let past = state.past.entry(key.to_owned()).or_default();
        past.push((now, before.clone()));
        past.retain(|(until, _)| now.duration_since(*until) < HISTORY);
        state.log.push((key.to_owned(), before));
        if let Some(watched) = lock(&self.0.watched).get(key) {
            watched.send_replace(());
        }
    }

    /// The record as it was `lag` ago.
    fn read(&self, key: &str, lag: Duration) -> Option<Record> {
        let mut state = self.state();
        state.requests += 1;
        let now = Instant::now();
        let then = now.checked_sub(lag).unwrap_or(now);
        let past = state.past.get(key).and_then(|past| past.iter().find(|(until, _)| *until > then));
        match past {
            Some((_, record)) => record.clone(),
            None => state.records.get(key).cloned(),
        }
    }

    fn swap(&self, key: &str, expected: Option<&Version>, epoch: Epoch, body: Vec<u8>) -> Swap {
        let mut state = self.state();
        state.requests += 1;
        if self.options().epochs == MemoryEpochs::Known
            && epoch.0 != state.epoch
            && !is_disabled(CasRule::EpochInsideSwap)
        {
            return Swap::EpochChanged;
        }
        let found = state.records.get(key).map(|record| &record.version);
        let options = self.options();
        let ignores_condition = options.ignores_conditions || found.is_none() && options.creates_missing;
        if found != expected && !ignores_condition {
            return Swap::Conflict;
        }
        let record = self.record(&mut state, key, body);
        let version = record.version.clone();
        self.write(&mut state, key, Some(record));
        Swap::Done(version)
    }

    fn delete(&self, key: &str, expected: &Version) -> bool {
        let mut state = self.state();
        state.requests += 1;
        let is_it = state.records.get(key).is_some_and(|record| record.version == *expected);
        if is_it {
            self.write(&mut state, key, None);
        }
        is_it
    }
}
