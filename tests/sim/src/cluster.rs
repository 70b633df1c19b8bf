//! A cluster of three as its clients see it: sessions, entries, and members that fail.
//!
//! Everything that a quorum decides is one state, changed at one instant. What a single member says
//! may be old: it lags, it was cut off, it leads no more and does not know.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{sync::watch, time::Instant};

/// For how long a member may show what is over.
pub(crate) const MOST_LAG: Duration = Duration::from_millis(2_000);
pub(crate) const MEMBERS: usize = 3;

/// The cluster; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Woken when something happens to a member.
    members: watch::Sender<u64>,
    /// Woken when an election's entries change.
    elections: Mutex<BTreeMap<String, watch::Sender<u64>>>,
}

#[derive(Debug)]
pub(crate) struct State {
    revision: u64,
    /// Sessions are not numbered like changes: no store gives the same name to two.
    opened: u64,
    pub(crate) term: u64,
    /// Which member leads by the word of a quorum; none while there is none.
    pub(crate) leader: Option<usize>,
    pub(crate) members: [Member; MEMBERS],
    pub(crate) sessions: BTreeMap<u64, Session>,
    elections: BTreeMap<String, Election>,
    /// Elections whose entries have changed, and who watches them does not know yet.
    changed: BTreeSet<String>,
    /// Requests that can have no effect any more.
    pub(crate) withdrawn: BTreeSet<u128>,
    /// How fast the leader's clock runs.
    rate: f64,
    random: Rng,
    /// How often a member is cut off at the worst moment: once in so many heartbeats.
    worst: u32,
    /// How often it was.
    pub(crate) cuts: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Member {
    /// Answers nobody, and will carry out later what it is asked now.
    pub(crate) frozen: bool,
    /// Hears nothing of the others. Clients reach it.
    pub(crate) cut_off: bool,
    /// The term in which it led, when it does not know that it leads no more.
    pub(crate) believes_to_lead: Option<u64>,
    /// How far behind the others it is.
    pub(crate) lag: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) ttl: Duration,
    expires: Instant,
    /// Which of its connections counts (ZooKeeper).
    pub(crate) connection: u64,
}

#[derive(Debug, Default)]
struct Election {
    /// In order of succession.
    entries: Vec<Stored>,
    /// What the entries were until when.
    past: Vec<(Instant, Vec<Stored>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) session: u64,
    pub(crate) nonce: u128,
    pub(crate) revision: u64,
}

impl Cluster {
    pub(crate) fn new(rate: f64, random: Rng, worst: u32) -> Self {
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
                rate,
                random,
                worst,
                cuts: 0,
            }),
            members: watch::Sender::new(0),
            elections: Mutex::default(),
        }))
    }

    /// The state, after whatever has expired is gone.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire();
        self.tell(&mut state);
        state
    }

    /// Changes sessions and entries, and wakes all who watch what was changed.
    pub(crate) fn change<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let outcome = with(&mut state);
        self.tell(&mut state);
        outcome
    }

    /// Changes what the members can do.
    pub(crate) fn disturb(&self, with: impl FnOnce(&mut State)) {
        self.change(with);
        self.0.members.send_modify(|n| *n += 1);
    }

    fn tell(&self, state: &mut State) {
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

    /// Wakes whenever the entries of `election` change.
    pub(crate) fn changes(&self, election: &str) -> watch::Receiver<u64> {
        self.watched(election).subscribe()
    }

    /// Ends sessions on time for as long as the run goes on.
    pub(crate) async fn keep_time(self) {
        loop {
            let next = self.state().sessions.values().map(|session| session.expires).min();
            let (soonest, latest) =
                (Instant::now() + Duration::from_millis(1), Instant::now() + Duration::from_millis(200));
            // Not at once again: while nobody leads, nobody ends sessions that have run out.
            tokio::time::sleep_until(next.map_or(latest, |next| next.clamp(soonest, latest))).await;
        }
    }

    /// Waits until `member` does what it is asked, which a frozen one does later.
    pub(crate) async fn served_by(&self, member: usize) {
        let mut changes = self.0.members.subscribe();
        while self.state().members[member].frozen {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until `member` speaks for a quorum.
    pub(crate) async fn quorum_at(&self, member: usize) {
        let mut changes = self.0.members.subscribe();
        loop {
            {
                let state = self.state();
                let at = state.members[member];
                if !at.frozen && !at.cut_off && state.leader.is_some() {
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
        // Nobody ends sessions while nobody leads.
        if self.leader.is_none() {
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

    /// That much later by the leader's clock.
    fn after(&self, ttl: Duration) -> Instant {
        Instant::now() + ttl.div_f64(self.rate)
    }

    /// Gives a session its whole TTL again.
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

    /// Enters, or finds what the same request has entered before.
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
        let contest = self.elections.entry(election.to_owned()).or_default();
        if let Some(found) = contest.entries.iter().find(|e| e.session == session && e.nonce == nonce) {
            return Ok(*found);
        }
        self.revision = revision;
        contest.remember();
        let entry = Stored { session, nonce, revision };
        contest.entries.push(entry);
        self.changed.insert(election.to_owned());
        Ok(entry)
    }

    pub(crate) fn remove(&mut self, name: &str, is_it: impl Fn(&Stored) -> bool) {
        if self.elections.get_mut(name).is_some_and(|election| election.remove(is_it)) {
            self.changed.insert(name.to_owned());
        }
    }

    /// The entries of an election, the first of them its leader's.
    pub(crate) fn entries(&self, election: &str) -> &[Stored] {
        self.elections.get(election).map_or(&[], |election| &election.entries)
    }

    /// What a member that is `lag` behind shows, if it is not older than `not_before`.
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

    /// Somebody else leads, or the same anew; all sessions have their whole TTL again.
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

    /// Now and then cuts a member off from its peers just as it has answered a heartbeat.
    pub(crate) fn at_the_worst_moment(&mut self, member: usize) {
        if self.random.u32(..self.worst) > 0 || self.members.iter().any(|other| other.cut_off || other.frozen)
        {
            return;
        }
        self.cuts += 1;
        self.members[member].cut_off = true;
        if self.leader == Some(member) {
            let mut random = self.random.fork();
            self.elect(&mut random);
        }
    }

    /// Whatever was in the store is gone. It may count its changes from the start again.
    pub(crate) fn wipe(&mut self, counts_anew: bool) {
        self.sessions.clear();
        self.changed.extend(std::mem::take(&mut self.elections).into_keys());
        self.withdrawn.clear();
        if counts_anew {
            self.revision = 0;
        }
    }

    /// Everything works again.
    pub(crate) fn mend(&mut self, random: &mut Rng) {
        self.members = [Member::default(); MEMBERS];
        self.elect(random);
    }
}

impl Election {
    fn remember(&mut self) {
        let now = Instant::now();
        let entries = self.entries.clone();
        self.past.push((now, entries));
        self.past.retain(|(until, _)| now.duration_since(*until) < MOST_LAG);
    }

    /// Whether there was one.
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

pub(crate) fn refused(what: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{what}: the connection was reset"))
}

pub(crate) fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry does not exist")
}
