//! A cluster of three members as its clients see it: sessions, entries, and members that fail.
//!
//! Everything that a quorum decides is one state, which changes at one instant. The answer of a single member may be stale: it may lag,
//! be cut off, or be deposed without knowing it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{sync::watch, time::Instant};

use crate::reports::Reports;

/// The largest lag of a member: how long it may show a state that has ended.
pub(crate) const MAX_LAG: Duration = Duration::from_millis(2_000);
pub(crate) const MEMBERS: usize = 3;

/// The cluster; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Notified when the state of a member changes.
    members: watch::Sender<u64>,
    /// Notified when the entries of an election change.
    elections: Mutex<BTreeMap<String, watch::Sender<u64>>>,
}

#[derive(Debug)]
pub(crate) struct State {
    revision: u64,
    /// Numbers sessions, apart from revisions, so that no two sessions share an id even after a wipe.
    opened: u64,
    pub(crate) term: u64,
    /// The member that a quorum has elected; `None` while there is no leader.
    pub(crate) leader: Option<usize>,
    pub(crate) members: [Member; MEMBERS],
    pub(crate) sessions: BTreeMap<u64, Session>,
    elections: BTreeMap<String, Election>,
    /// Elections whose entries have changed and whose watchers are not notified yet.
    changed: BTreeSet<String>,
    /// Withdrawn requests, which must not be applied any more.
    pub(crate) withdrawn: BTreeSet<u128>,
    /// ZooKeeper: how followers report signs of life.
    pub(crate) reports: Reports,
    /// The rate of the leader's clock.
    rate: f64,
    random: Rng,
    /// A member is cut off right after answering a heartbeat once in this many heartbeats.
    cut_off_odds: u32,
    /// How often that has happened.
    pub(crate) cuts: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Member {
    /// Answers nothing, and applies the requests of this time later.
    pub(crate) frozen: bool,
    /// Has no connection to the other members. Clients reach it.
    pub(crate) cut_off: bool,
    /// The term in which it led, when it does not know that it was deposed.
    pub(crate) believes_to_lead: Option<u64>,
    /// How far it is behind the others.
    pub(crate) lag: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) ttl: Duration,
    expires: Instant,
    /// The current connection (ZooKeeper); requests of earlier ones are refused.
    pub(crate) connection: u64,
}

#[derive(Debug, Default)]
struct Election {
    /// In order of succession.
    entries: Vec<Stored>,
    /// Earlier states of the entries, each with the time until which it was current.
    past: Vec<(Instant, Vec<Stored>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) session: u64,
    pub(crate) nonce: u128,
    pub(crate) revision: u64,
}

impl Cluster {
    pub(crate) fn new(rate: f64, random: Rng, cut_off_odds: u32) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                revision: 0,
                opened: 0,
                term: 1,
                leader: Some(0),
                members: [Member::default(); MEMBERS],
                sessions: BTreeMap::new(),
                elections: BTreeMap::new(),
                changed: BTreeSet::new(),
                withdrawn: BTreeSet::new(),
                reports: Reports::default(),
                rate,
                random,
                cut_off_odds,
                cuts: 0,
            }),
            members: watch::Sender::new(0),
            elections: Mutex::default(),
        }))
    }

    /// The state, after removing expired sessions.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire();
        self.notify(&mut state);
        state
    }

    /// Changes sessions and entries, and notifies their watchers.
    pub(crate) fn change<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let outcome = with(&mut state);
        self.notify(&mut state);
        outcome
    }

    /// Changes the condition of members.
    pub(crate) fn change_members(&self, with: impl FnOnce(&mut State)) {
        self.change(with);
        self.0.members.send_modify(|n| *n += 1);
    }

    fn notify(&self, state: &mut State) {
        for election in std::mem::take(&mut state.changed) {
            self.watched(&election).send_modify(|n| *n += 1);
        }
    }

    fn watched(&self, election: &str) -> watch::Sender<u64> {
        let mut elections = self.0.elections.lock().unwrap_or_else(PoisonError::into_inner);
        match elections.get(election) {
            Some(sender) => sender.clone(),
            None => elections.entry(election.to_owned()).or_insert(watch::Sender::new(0)).clone(),
        }
    }

    /// Notified whenever the entries of `election` change.
    pub(crate) fn changes(&self, election: &str) -> watch::Receiver<u64> {
        self.watched(election).subscribe()
    }

    /// Ends expired sessions, until it is aborted.
    pub(crate) async fn expire_sessions(self) {
        loop {
            let next = self.state().sessions.values().map(|session| session.expires).min();
            let (soonest, latest) =
                (Instant::now() + Duration::from_millis(1), Instant::now() + Duration::from_millis(200));
            // At least 1 ms later: without a leader expired sessions stay.
            tokio::time::sleep_until(next.map_or(latest, |next| next.clamp(soonest, latest))).await;
        }
    }

    /// Waits until `member` is not frozen.
    pub(crate) async fn served_by(&self, member: usize) {
        let mut changes = self.0.members.subscribe();
        while self.state().members[member].frozen {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until `member` is connected to a quorum with a leader.
    pub(crate) async fn quorum_at(&self, member: usize) {
        let mut changes = self.0.members.subscribe();
        loop {
            {
                let state = self.state();
                let at = state.members[member];
                if !at.frozen && !at.cut_off && state.leader.is_some() && !state.reports.stalled {
                    return;
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl State {
    fn expire(&mut self) {
        // Only a leader ends sessions.
        if self.leader.is_none() || self.reports.stalled {
            return;
        }
        let now = Instant::now();
        let expired: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.expires <= now).map(|(session, _)| *session).collect();
        for session in expired {
            self.end_session(session);
        }
    }

    pub(crate) fn open(&mut self, ttl: Duration) -> u64 {
        self.opened += 1;
        let session = self.opened;
        let expires = self.after(ttl);
        self.sessions.insert(session, Session { ttl, expires, connection: 0 });
        session
    }

    /// The instant at which `ttl` has passed on the leader's clock.
    fn after(&self, ttl: Duration) -> Instant {
        Instant::now() + ttl.div_f64(self.rate)
    }

    /// Extends a session by its whole TTL.
    pub(crate) fn touch(&mut self, session: u64) -> Result<Duration, BackendError> {
        let ttl = self.sessions.get(&session).ok_or_else(|| session_gone(session))?.ttl;
        let expires = self.after(ttl);
        if let Some(stored) = self.sessions.get_mut(&session) {
            stored.expires = expires;
        }
        Ok(ttl)
    }

    pub(crate) fn end_session(&mut self, session: u64) -> bool {
        if self.sessions.remove(&session).is_none() {
            return false;
        }
        for (name, election) in &mut self.elections {
            if election.remove(|entry| entry.session == session) {
                self.changed.insert(name.clone());
            }
        }
        true
    }

    /// Creates an entry, or returns the one that the same request has created before.
    pub(crate) fn enter(
        &mut self,
        election: &str,
        session: u64,
        nonce: u128,
    ) -> Result<Stored, BackendError> {
        if !self.sessions.contains_key(&session) {
            return Err(session_gone(session));
        }
        let revision = self.revision + 1;
        let history = self.elections.entry(election.to_owned()).or_default();
        if let Some(found) = history.entries.iter().find(|e| e.session == session && e.nonce == nonce) {
            return Ok(*found);
        }
        self.revision = revision;
        history.remember();
        let entry = Stored { session, nonce, revision };
        history.entries.push(entry);
        self.changed.insert(election.to_owned());
        Ok(entry)
    }

    pub(crate) fn remove(&mut self, name: &str, is_it: impl Fn(&Stored) -> bool) {
        if self.elections.get_mut(name).is_some_and(|election| election.remove(is_it)) {
            self.changed.insert(name.to_owned());
        }
    }

    /// The entries of an election; the first is the leader's.
    pub(crate) fn entries(&self, election: &str) -> &[Stored] {
        self.elections.get(election).map_or(&[], |election| &election.entries)
    }

    /// The entries as a member with this lag shows them, but not those of before `not_before`.
    pub(crate) fn entries_as_of(&self, election: &str, lag: Duration, not_before: Instant) -> &[Stored] {
        let Some(election) = self.elections.get(election) else { return &[] };
        let now = Instant::now();
        let then = now.checked_sub(lag).map_or(not_before, |then| then.max(not_before));
        let old = election.past.iter().find(|(until, _)| *until > then);
        old.map_or(&election.entries, |(_, entries)| entries)
    }

    pub(crate) fn entry_count(&self) -> usize {
        self.elections.values().map(|election| election.entries.len()).sum()
    }

    /// Elects a leader, possibly the same one. All sessions get their whole TTL again.
    pub(crate) fn elect(&mut self, random: &mut Rng) {
        let able = |member: &Member| !member.frozen && !member.cut_off;
        let mut able: Vec<usize> = (0..MEMBERS).filter(|n| able(&self.members[*n])).collect();
        let former = self.leader.take();
        random.shuffle(&mut able);
        if able.len() <= MEMBERS / 2 {
            return;
        }
        if let Some(former) = former
            && (self.members[former].frozen || self.members[former].cut_off)
        {
            self.members[former].believes_to_lead = Some(self.term);
        }
        self.term += 1;
        self.leader = Some(able[0]);
        self.members[able[0]].believes_to_lead = None;
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for session in ids {
            let _ = self.touch(session);
        }
    }

    /// Sometimes cuts a member off from its peers right after it has answered a heartbeat.
    pub(crate) fn maybe_cut_off_after_heartbeat(&mut self, member: usize) {
        // Most likely when it matters: a report that is due late has not arrived.
        let odds = if self.has_late_report(member) { 2 } else { self.cut_off_odds };
        if self.random.u32(..odds) > 0 || self.members.iter().any(|other| other.cut_off || other.frozen) {
            return;
        }
        self.cuts += 1;
        self.members[member].cut_off = true;
        if self.leader == Some(member) {
            let mut random = self.random.fork();
            self.elect(&mut random);
        }
    }

    /// Deletes everything in the store. Its revisions may restart.
    pub(crate) fn wipe(&mut self, revisions_restart: bool) {
        self.sessions.clear();
        self.changed.extend(std::mem::take(&mut self.elections).into_keys());
        self.withdrawn.clear();
        if revisions_restart {
            self.revision = 0;
        }
    }

    /// Ends all faults of members.
    pub(crate) fn restore(&mut self, random: &mut Rng) {
        self.members = [Member::default(); MEMBERS];
        self.elect(random);
    }
}

impl Election {
    fn remember(&mut self) {
        let now = Instant::now();
        let entries = self.entries.clone();
        self.past.push((now, entries));
        self.past.retain(|(until, _)| now.duration_since(*until) < MAX_LAG);
    }

    /// Removes matching entries; returns whether there were any.
    fn remove(&mut self, is_it: impl Fn(&Stored) -> bool) -> bool {
        let found = self.entries.iter().any(&is_it);
        if found {
            self.remember();
            self.entries.retain(|entry| !is_it(entry));
        }
        found
    }
}

pub(crate) fn session_gone(session: u64) -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, format!("session {session} does not exist"))
}

pub(crate) fn connection_reset(what: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{what}: the connection was reset"))
}

pub(crate) fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry does not exist")
}
