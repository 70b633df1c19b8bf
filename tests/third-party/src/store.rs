//! The store: sessions that expire, and a queue of entries per election, within this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tenure_core::{
    Candidate, ElectionName, FencingToken,
    spi::{
        BackendError, BackendErrorKind, Entered, Entry, EntryEvent, EntryRequest, Heartbeat,
        foreign_leader_error, is_resign_requested, mark_resign_requested, replacement_payload,
    },
};
use tokio::{sync::watch, time::Instant};

/// One store. Its requests are methods: each is one atomic step.
#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The last number given to a session or an entry. Numbers never repeat, so that they can be fencing tokens.
    last: u64,
    sessions: BTreeMap<u64, Session>,
    /// All entries by number. The first one of an election leads.
    entries: BTreeMap<u64, Stored>,
}

#[derive(Debug)]
struct Session {
    ttl: Duration,
    expires: Instant,
}

#[derive(Debug)]
struct Stored {
    election: ElectionName,
    session: u64,
    nonce: u128,
    payload: Vec<u8>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::channel(()).0 }
    }

    /// The state, without what has expired.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let sessions = state.sessions.len();
        state.sessions.retain(|_, session| session.expires > now);
        if state.sessions.len() < sessions {
            state.remove_entries_without_session();
            self.changed.send_replace(());
        }
        state
    }

    fn change<T>(&self, apply: impl FnOnce(&mut State) -> T) -> T {
        let outcome = apply(&mut self.state());
        self.changed.send_replace(());
        outcome
    }

    /// Waits until `read` returns a value: reads at each change, and when a session expires.
    pub(crate) async fn wait_for<T>(&self, read: impl Fn() -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(value) = read() {
                return value;
            }
            let expiry = self.state().sessions.values().map(|session| session.expires).min();
            let expired = async {
                match expiry {
                    Some(expiry) => tokio::time::sleep_until(expiry).await,
                    None => std::future::pending().await,
                }
            };
            // `self` has the sender, so that the channel stays open.
            tokio::select! {
                _ = changes.changed() => {}
                () = expired => {}
            }
        }
    }

    pub(crate) fn open(&self, ttl: Duration) -> u64 {
        self.change(|state| {
            let session = state.next();
            state.sessions.insert(session, Session { ttl, expires: Instant::now() + ttl });
            session
        })
    }

    /// Extends the session, and with it all of its entries.
    pub(crate) fn renew(&self, session: u64) -> Result<Heartbeat, BackendError> {
        let mut state = self.state();
        let session = state.sessions.get_mut(&session).ok_or_else(session_gone)?;
        session.expires = Instant::now() + session.ttl;
        Ok(Heartbeat { ttl: session.ttl, epoch: 0 })
    }

    pub(crate) fn close(&self, session: u64) {
        self.change(|state| {
            state.sessions.remove(&session);
            state.remove_entries_without_session();
        });
    }

    pub(crate) fn enter(&self, session: u64, request: &EntryRequest) -> Result<Entered, BackendError> {
        self.change(|state| {
            if !state.sessions.contains_key(&session) {
                return Err(session_gone());
            }
            // The same request may come again, because its answer was lost.
            let found = state.entries.iter().find(|(_, stored)| stored.is_of(session, request));
            let number = match found.map(|(number, _)| *number) {
                Some(number) => number,
                None => {
                    let number = state.next();
                    let (election, nonce) = (request.election.clone(), request.nonce);
                    let stored = Stored { election, session, nonce, payload: request.payload() };
                    state.entries.insert(number, stored);
                    number
                }
            };
            let entry =
                Entry { election: request.election.clone(), key: number.to_string().into(), version: number };
            let leads = state.leader(&request.election).is_some_and(|leader| leader == number);
            Ok(Entered { entry, leads: leads.then(|| FencingToken::new(number)).flatten() })
        })
    }

    /// The fencing token of `entry` once it leads, or an error when it is gone.
    pub(crate) fn turn(&self, session: u64, entry: &Entry) -> Option<Result<FencingToken, BackendError>> {
        let state = self.state();
        if !state.has(session, entry) {
            return Some(Err(BackendError::new(BackendErrorKind::EntryGone, "the entry does not exist")));
        }
        let leads = state.leader(&entry.election)? == entry.version;
        leads.then(|| FencingToken::new(entry.version)).flatten().map(Ok)
    }

    pub(crate) fn event(&self, session: u64, entry: &Entry) -> Option<EntryEvent> {
        let state = self.state();
        match state.entries.get(&entry.version) {
            Some(stored) if stored.session == session => {
                is_resign_requested(&stored.payload).then_some(EntryEvent::ResignRequested)
            }
            _ => Some(EntryEvent::Deleted),
        }
    }

    pub(crate) fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.change(|state| {
            let gone = || BackendError::new(BackendErrorKind::EntryGone, "the entry does not exist");
            let stored = state.entries.get_mut(&entry.version).ok_or_else(gone)?;
            stored.payload = replacement_payload(&stored.payload, request);
            Ok(())
        })
    }

    pub(crate) fn leave(&self, session: u64, request: &EntryRequest) {
        self.change(|state| state.entries.retain(|_, stored| !stored.is_of(session, request)));
    }

    pub(crate) fn candidates(&self, election: &ElectionName) -> Vec<Candidate> {
        let state = self.state();
        let entries = state.entries.iter().filter(|(_, stored)| stored.election == *election);
        entries.map(|(number, stored)| candidate(*number, stored)).collect()
    }

    pub(crate) fn elections(&self) -> Vec<ElectionName> {
        self.state()
            .entries
            .values()
            .map(|stored| stored.election.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    pub(crate) fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.change(|state| {
            let Some(leader) = state.leader(election) else { return Ok(None) };
            let Some(stored) = state.entries.get_mut(&leader) else { return Ok(None) };
            let leader = candidate(leader, stored);
            stored.payload =
                mark_resign_requested(&stored.payload).ok_or_else(|| foreign_leader_error(&leader))?;
            Ok(Some(leader))
        })
    }

    /// Deletes an entry, as an operator could.
    pub(crate) fn delete(&self, number: u64) {
        self.change(|state| state.entries.remove(&number));
    }

    /// Describes all sessions and entries.
    pub(crate) fn contents(&self) -> Vec<String> {
        let state = self.state();
        let sessions = state.sessions.keys().map(|session| format!("session {session}"));
        sessions.chain(state.entries.keys().map(|entry| format!("entry {entry}"))).collect()
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn leader(&self, election: &ElectionName) -> Option<u64> {
        self.entries.iter().find(|(_, stored)| stored.election == *election).map(|(number, _)| *number)
    }

    fn has(&self, session: u64, entry: &Entry) -> bool {
        self.entries.get(&entry.version).is_some_and(|stored| stored.session == session)
    }

    fn remove_entries_without_session(&mut self) {
        let sessions = &self.sessions;
        self.entries.retain(|_, stored| sessions.contains_key(&stored.session));
    }
}

impl Stored {
    fn is_of(&self, session: u64, request: &EntryRequest) -> bool {
        (self.session, self.nonce, &self.election) == (session, request.nonce, &request.election)
    }
}

fn candidate(number: u64, stored: &Stored) -> Candidate {
    let token = FencingToken::new(number);
    Candidate::decode(&number.to_string(), stored.session.to_string(), &stored.payload, token)
}

fn session_gone() -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, "the session does not exist")
}
