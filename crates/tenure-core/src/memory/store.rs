//! The state of the in-memory store: sessions, entries, epochs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::MemoryBackend;
use crate::{
    Candidate, ElectionName, FencingToken,
    spi::{
        BackendError, BackendErrorKind, Capabilities, Entered, Entry, EntryRequest, HeartbeatProof, Won,
        foreign_leader_error, is_resign_requested, mark_resign_requested, replacement_payload,
    },
};

/// A store in memory. Clones are the same store.
///
/// Revisions number the entries, as in etcd and ZooKeeper: the revision of an entry is its fencing token, and the entry
/// with the lowest revision leads.
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Inner>);

/// What proves a heartbeat of a [`MemoryStore`]. Each variant imitates a kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Proof {
    /// The answer.
    Answer,
    /// A read that finds the same epoch, as in etcd. It is part of the heartbeat.
    Read,
    /// Later heartbeats, as in ZooKeeper.
    LaterHeartbeats {
        /// The least time between the answer to a heartbeat and the sending of the first one that proves it.
        gap: Duration,
    },
    /// Sessions live as long as their process, as with file locks.
    Process,
}

impl From<Proof> for HeartbeatProof {
    fn from(proof: Proof) -> Self {
        match proof {
            Proof::Answer | Proof::Read => Self::Answer,
            Proof::LaterHeartbeats { gap } => Self::LaterHeartbeats { gap, count: 3 },
            Proof::Process => Self::Process,
        }
    }
}

/// A session that was extended, as its member sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewed {
    pub(super) ttl: Duration,
    pub(super) epoch: u64,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    proof: Proof,
    cluster: u64,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// Added to the revision at which a session was opened for the session's number, which is never used again.
    session_offset: u64,
    epoch: u64,
    sessions: BTreeMap<u64, StoredSession>,
    elections: BTreeMap<ElectionName, BTreeMap<u64, StoredEntry>>,
}

#[derive(Debug)]
struct StoredSession {
    ttl: Duration,
    expires: Instant,
}

/// An entry in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredEntry {
    /// The session that the entry belongs to.
    pub session: u64,
    /// The nonce of the request that made the entry.
    pub nonce: u128,
    /// The revision of the entry, which is its fencing token.
    pub revision: u64,
    /// The encoded id and value of the candidate.
    pub payload: Vec<u8>,
    created: Instant,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store, in which the answer proves a heartbeat.
    pub fn new() -> Self {
        Self::with_proof(Proof::Answer)
    }

    /// An empty store whose heartbeats are proven by `proof`.
    pub fn with_proof(proof: Proof) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State { epoch: 1, ..State::default() }),
            changed: watch::channel(0).0,
            proof,
            cluster: fastrand::u64(..),
        }))
    }

    /// A client with a network link of its own.
    pub fn backend(&self) -> MemoryBackend {
        MemoryBackend::new(self.clone())
    }

    /// The entries of `election`, the one of the leader first.
    pub fn entries(&self, election: &str) -> Vec<StoredEntry> {
        let state = self.state();
        state
            .elections
            .iter()
            .filter(|(name, _)| name.as_str() == election)
            .flat_map(|(_, entries)| entries.values().cloned())
            .collect()
    }

    /// The numbers of all live sessions.
    pub fn sessions(&self) -> Vec<u64> {
        self.state().sessions.keys().copied().collect()
    }

    /// The number of entries in all elections.
    pub fn entry_count(&self) -> usize {
        self.state().elections.values().map(BTreeMap::len).sum()
    }

    /// Deletes an entry, as an operator could. Returns whether it existed.
    pub fn delete_entry(&self, election: &str, revision: u64) -> bool {
        let mut deleted = false;
        self.change(|state| {
            for (name, entries) in &mut state.elections {
                deleted |= name.as_str() == election && entries.remove(&revision).is_some();
            }
        });
        deleted
    }

    /// Expires a session. Returns whether it existed.
    pub fn expire_session(&self, session: u64) -> bool {
        let mut ended = false;
        self.change(|state| ended = state.end_session(session));
        ended
    }

    /// Removes all sessions and entries. Revisions continue.
    pub fn wipe(&self) {
        self.change(|state| {
            state.sessions.clear();
            state.elections.clear();
        });
    }

    /// Removes all sessions and entries, and starts the revisions, and with them the fencing tokens, from the beginning: as a
    /// server whose data was deleted.
    pub fn wipe_with_tokens(&self) {
        self.wipe();
        self.change(|state| state.session_offset += std::mem::take(&mut state.revision));
    }

    /// Begins a new epoch, as a leader election inside a real store does. All sessions get their whole TTL again.
    pub fn begin_epoch(&self) {
        let now = Instant::now();
        self.change(|state| {
            state.epoch += 1;
            for session in state.sessions.values_mut() {
                session.expires = now + session.ttl;
            }
        });
    }

    pub(super) fn proof(&self) -> Proof {
        self.0.proof
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE.ends_sessions(true)
    }

    /// Notifies of every change of the store.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The state, after expired sessions were removed.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.expire(Instant::now()) {
            self.0.changed.send_modify(|n| *n += 1);
        }
        state
    }

    fn change<T>(&self, apply: impl FnOnce(&mut State) -> T) -> T {
        let outcome = apply(&mut self.state());
        self.0.changed.send_modify(|n| *n += 1);
        outcome
    }

    /// When the next session expires, unless it is extended.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.state().sessions.values().map(|session| session.expires).min()
    }

    pub(super) fn open(&self, ttl: Duration) -> u64 {
        self.change(|state| {
            state.revision += 1;
            let session = state.session_offset + state.revision;
            state.sessions.insert(session, StoredSession { ttl, expires: Instant::now() + ttl });
            session
        })
    }

    pub(super) fn renew(&self, session: u64) -> Result<Renewed, BackendError> {
        let mut state = self.state();
        let epoch = state.epoch;
        let stored = state.sessions.get_mut(&session).ok_or_else(|| session_gone(session))?;
        stored.expires = Instant::now() + stored.ttl;
        Ok(Renewed { ttl: stored.ttl, epoch })
    }

    /// The answer to a heartbeat, without extending the session.
    pub(super) fn peek_session(&self, session: u64) -> Result<Renewed, BackendError> {
        let state = self.state();
        let stored = state.sessions.get(&session).ok_or_else(|| session_gone(session))?;
        Ok(Renewed { ttl: stored.ttl, epoch: state.epoch })
    }

    /// The answer of a member that was partitioned before the current epoch.
    pub(super) fn stale_renewal(&self, ttl: Duration) -> Renewed {
        Renewed { ttl, epoch: self.state().epoch.saturating_sub(1) }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.state().epoch
    }

    pub(super) fn enter(&self, session: u64, request: &EntryRequest) -> Result<Entered, BackendError> {
        self.change(|state| {
            if !state.sessions.contains_key(&session) {
                return Err(session_gone(session));
            }
            let found = state.elections.get(&request.election).and_then(|entries| {
                entries
                    .values()
                    .find(|e| e.session == session && e.nonce == request.nonce)
                    .map(|e| e.revision)
            });
            let revision = found.unwrap_or_else(|| {
                state.revision += 1;
                let revision = state.revision;
                let entry = StoredEntry {
                    session,
                    nonce: request.nonce,
                    revision,
                    payload: request.payload(),
                    created: Instant::now(),
                };
                state.elections.entry(request.election.clone()).or_default().insert(revision, entry);
                revision
            });
            let entry = Entry {
                election: request.election.clone(),
                key: format!("{}/{revision}", request.election).into(),
                version: revision,
            };
            let token = FencingToken::new(revision).filter(|_| state.ahead_of(&entry) == 0);
            Ok(match token {
                Some(token) => Entered::Leads(Won::new(entry, token)),
                None => Entered::Queued { entry: Some(entry) },
            })
        })
    }

    /// The number of entries ahead of `entry`. `None` when it does not exist in this session.
    pub(super) fn entries_ahead(&self, session: u64, entry: &Entry) -> Option<usize> {
        let state = self.state();
        state.find(entry).filter(|stored| stored.session == session)?;
        Some(state.ahead_of(entry))
    }

    pub(super) fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.change(|state| {
            let stored = state
                .elections
                .get_mut(&entry.election)
                .and_then(|entries| entries.get_mut(&entry.version))
                .ok_or_else(|| BackendError::new(BackendErrorKind::EntryGone, "the entry does not exist"))?;
            stored.payload = replacement_payload(&stored.payload, request);
            Ok(())
        })
    }

    /// Asks the leader to resign.
    pub(super) fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.change(|state| {
            let first = state.elections.get_mut(election).and_then(|entries| entries.values_mut().next());
            let Some(stored) = first else { return Ok(None) };
            let leader = candidate_of(stored);
            stored.payload =
                mark_resign_requested(&stored.payload).ok_or_else(|| foreign_leader_error(&leader))?;
            Ok(Some(leader))
        })
    }

    /// Whether the candidate of `entry` was asked to resign.
    pub(super) fn is_resign_requested(&self, entry: &Entry) -> bool {
        let state = self.state();
        let stored = state.elections.get(&entry.election).and_then(|entries| entries.get(&entry.version));
        stored.is_some_and(|stored| is_resign_requested(&stored.payload))
    }

    pub(super) fn leave(&self, session: u64, request: &EntryRequest) {
        self.change(|state| {
            if let Some(entries) = state.elections.get_mut(&request.election) {
                entries.retain(|_, e| e.session != session || e.nonce != request.nonce);
            }
        });
    }

    pub(super) fn close(&self, session: u64) {
        self.change(|state| state.end_session(session));
    }

    /// Ends a session if all of its entries have nonces that `is_own`. Returns whether they have.
    pub(super) fn close_if(&self, session: u64, is_own: impl Fn(u128) -> bool) -> bool {
        self.change(|state| {
            let mut entries = state.elections.values().flat_map(BTreeMap::values);
            let all = entries.all(|entry| entry.session != session || is_own(entry.nonce));
            if all {
                state.end_session(session);
            }
            all
        })
    }

    /// Identifies this store.
    pub(super) fn cluster(&self) -> String {
        self.0.cluster.to_string()
    }

    /// The elections that have an entry.
    pub(super) fn elections(&self) -> Vec<ElectionName> {
        let state = self.state();
        let existing = state.elections.iter().filter(|(_, entries)| !entries.is_empty());
        existing.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn candidates(&self, election: &ElectionName) -> Vec<Candidate> {
        let state = self.state();
        let entries = state.elections.get(election).into_iter().flat_map(BTreeMap::values);
        entries.map(candidate_of).collect()
    }
}

/// The candidate of an entry, as others see it.
fn candidate_of(stored: &StoredEntry) -> Candidate {
    let token = FencingToken::new(stored.revision);
    let name = stored.revision.to_string();
    let mut candidate = Candidate::decode(&name, stored.session.to_string(), &stored.payload, token);
    candidate.age = Some(stored.created.elapsed());
    candidate
}

impl State {
    fn expire(&mut self, now: Instant) -> bool {
        let expired: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.expires <= now).map(|(session, _)| *session).collect();
        for session in &expired {
            self.end_session(*session);
        }
        !expired.is_empty()
    }

    fn end_session(&mut self, session: u64) -> bool {
        for entries in self.elections.values_mut() {
            entries.retain(|_, e| e.session != session);
        }
        self.sessions.remove(&session).is_some()
    }

    fn find(&self, entry: &Entry) -> Option<&StoredEntry> {
        self.elections.get(&entry.election)?.get(&entry.version)
    }

    fn ahead_of(&self, entry: &Entry) -> usize {
        let entries = self.elections.get(&entry.election);
        entries.map_or(0, |entries| entries.range(..entry.version).count())
    }
}

fn session_gone(session: u64) -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, format!("session {session} does not exist"))
}
