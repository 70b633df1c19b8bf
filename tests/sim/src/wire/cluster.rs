//! Three members, and the state that a quorum of them has agreed on.
//!
//! The agreed state changes at one instant. The knowledge of a single member may be stale: the term, the leader, recent grants and
//! writes, and that it was deposed itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::proto::PbResponseHeader;
use fastrand::Rng;
use tokio::sync::watch;

use super::{lessor::Lessor, store::Store};

pub(super) const MEMBERS: usize = 3;

/// etcd's election timeout: a follower without messages from a leader starts an election after this time, and a leader without a
/// quorum steps down.
pub(super) const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Notified when anything has changed.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Simulated time, as of this step of the run.
    pub(super) now: Duration,
    pub(super) store: Store,
    pub(super) term: u64,
    /// The member that a quorum has elected, whether or not it works.
    pub(super) leader: Option<usize>,
    /// Since when the leader has been without a quorum, if it is.
    leaderless_since: Option<Duration>,
    pub(super) members: [Member; MEMBERS],
    pub(super) random: Rng,
    /// The number of requests, and a digest of their order and time.
    pub(super) events: u64,
    pub(super) digest: u64,
    pub(super) open_watches: i64,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) up: bool,
    /// Does nothing until it thaws, and then applies the requests that have arrived.
    pub(super) frozen: bool,
    /// Has no connection to the other members. Clients reach it.
    pub(super) cut_off: bool,
    /// Its disk stalls: it takes no part in decisions, and answers from memory.
    pub(super) stalled: bool,
    /// How much later than others it learns of decisions.
    pub(super) lag: Duration,
    /// The term of the last decision that it knows of.
    pub(super) term: u64,
    /// A newer term and its leader, and when it learns of them.
    pending_term: Option<(Duration, u64, usize)>,
    /// The leader, as far as it knows.
    pub(super) follows: Option<usize>,
    /// Since when it has had no leader.
    pub(super) no_leader_since: Option<Duration>,
    /// It was deposed, and does not know it until then.
    pub(super) believes_until: Option<Duration>,
    /// Its count of leases, for the time in which it leads or believes that it does.
    pub(super) lessor: Lessor,
}

impl Cluster {
    pub(super) fn new(mut random: Rng, mut rate: impl FnMut() -> f64) -> Self {
        let members = std::array::from_fn(|_| Member {
            up: true,
            frozen: false,
            cut_off: false,
            stalled: false,
            lag: Duration::ZERO,
            term: 2,
            pending_term: None,
            follows: Some(0),
            no_leader_since: None,
            believes_until: None,
            lessor: Lessor::new(rate()),
        });
        let state = State {
            now: Duration::ZERO,
            store: Store::new(),
            term: 2,
            leader: Some(0),
            leaderless_since: None,
            members,
            random: random.fork(),
            events: 0,
            digest: 0,
            open_watches: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: watch::Sender::new(0) }))
    }

    pub(super) fn read(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and notifies its watchers.
    pub(super) fn change<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let outcome = with(&mut self.read());
        self.0.changed.send_modify(|n| *n += 1);
        outcome
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Waits until `it` holds.
    pub(super) async fn wait_until(&self, it: impl Fn(&State) -> bool) {
        let mut changes = self.changes();
        while !it(&self.read()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Advances time; called once in every step of the run.
    pub(super) fn advance(&self, now: Duration) {
        let changed = {
            let mut state = self.read();
            state.now = now;
            state.apply_timeouts()
        };
        if changed {
            self.0.changed.send_modify(|n| *n += 1);
        }
    }
}

impl Member {
    /// Whether it can take part in a decision.
    fn works(&self) -> bool {
        self.up && !self.frozen && !self.cut_off && !self.stalled
    }
}

impl State {
    /// Whether a decision requested at `member` can be made.
    pub(super) fn quorum_at(&self, member: usize) -> bool {
        self.members[member].works() && self.has_quorum()
    }

    /// Whether there is a leader with a quorum.
    pub(super) fn has_quorum(&self) -> bool {
        let working = self.members.iter().filter(|member| member.works()).count();
        working > MEMBERS / 2 && self.leader.is_some_and(|leader| self.members[leader].works())
    }

    /// Whether `member` leads, or believes that it does.
    pub(super) fn believes_to_lead(&self, member: usize) -> bool {
        let at = &self.members[member];
        at.up
            && (self.leader == Some(member)
                || at.believes_until.is_some_and(|wait_until| self.now < wait_until))
    }

    /// Whether `member` knows that there is no leader.
    pub(super) fn knows_no_leader(&self, member: usize, since: Duration) -> bool {
        let no_leader_since = self.members[member].no_leader_since;
        !self.believes_to_lead(member) && no_leader_since.is_some_and(|deaf| self.now >= deaf + since)
    }

    /// The header of an answer of `member` at `revision`.
    pub(super) fn header(&self, member: usize, revision: i64) -> Option<PbResponseHeader> {
        let raft_term = self.members[member].term;
        Some(PbResponseHeader { cluster_id: 1, member_id: member as u64 + 1, revision, raft_term })
    }

    /// The time up to which `member` knows all decisions.
    pub(super) fn seen_by(&self, member: usize) -> Duration {
        let at = &self.members[member];
        let late = self.now.saturating_sub(at.lag);
        at.no_leader_since.map_or(late, |deaf| late.min(deaf))
    }

    pub(super) fn revision_at(&self, member: usize) -> i64 {
        self.store.revision_seen(self.seen_by(member))
    }

    /// A decision was made through `member`, so that it knows all earlier ones.
    pub(super) fn catch_up(&mut self, member: usize) {
        let (term, leader) = (self.term, self.leader);
        let at = &mut self.members[member];
        at.term = term;
        at.follows = leader;
        at.pending_term = None;
        // etcd steps down (`updateLeadership`) before it applies anything of a later term, and names a term once it has.
        at.believes_until = None;
    }

    /// Counts a request `what` at `member`.
    pub(super) fn note(&mut self, member: usize, what: &str) {
        self.events += 1;
        let words = [self.now.as_nanos() as u64, member as u64, self.store.revision as u64];
        let bytes = words.into_iter().flat_map(u64::to_le_bytes).chain(what.bytes());
        self.digest = bytes.fold(self.digest ^ 0xcbf2_9ce4_8422_2325, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// Applies everything that is due at this time. Returns whether anything was.
    fn apply_timeouts(&mut self) -> bool {
        let (now, quorum) = (self.now, self.has_quorum());
        let mut changed = false;
        for member in 0..MEMBERS {
            let notices_change = self.quorum_at(member);
            let at = &mut self.members[member];
            if let Some((when, term, leader)) = at.pending_term
                && when <= now
                && at.works()
            {
                (at.term, at.follows, at.pending_term, at.believes_until) = (term, Some(leader), None, None);
                changed = true;
            }
            match at.no_leader_since {
                Some(_) if notices_change => at.no_leader_since = None,
                None if !notices_change => at.no_leader_since = Some(now),
                _ => continue,
            }
            changed = true;
        }
        if quorum {
            self.leaderless_since = None;
            return self.expire() || changed;
        }
        let since = *self.leaderless_since.get_or_insert(now);
        if now >= since + ELECTION_TIMEOUT && self.random.u8(..50) == 0 {
            self.elect();
            changed = true;
        }
        changed
    }

    /// Elects a leader among the members that work.
    pub(super) fn elect(&mut self) {
        let able: Vec<usize> = (0..MEMBERS).filter(|member| self.members[*member].works()).collect();
        if let Some(former) = self.leader.take() {
            let at = &mut self.members[former];
            // A member that is stalled or frozen learns of it when that ends; one that is cut off steps down by itself.
            at.believes_until = if at.works() || !at.up {
                None
            } else if at.stalled || at.frozen {
                Some(Duration::MAX)
            } else {
                Some(self.now + ELECTION_TIMEOUT / 2)
            };
        }
        if able.len() <= MEMBERS / 2 {
            return;
        }
        let leader = able[self.random.usize(..able.len())];
        self.term += 1;
        self.leader = Some(leader);
        self.leaderless_since = None;
        for member in able {
            let late = Duration::from_millis(self.random.u64(5..200)) + self.members[member].lag;
            self.members[member].believes_until = None;
            self.members[member].pending_term = Some((self.now + late, self.term, leader));
        }
        self.catch_up(leader);
        // A new leader gives every lease its whole TTL.
        let (now, leases) = (self.now, &self.store.leases);
        self.members[leader].lessor.promote(now, leases);
    }

    /// The leader revokes expired leases, twice a second.
    fn expire(&mut self) -> bool {
        let Some(leader) = self.leader else { return false };
        let expired = self.members[leader].lessor.expired(self.now);
        self.revoke_all(&expired);
        !expired.is_empty()
    }

    /// Revokes leases in the order in which they were granted, because their ids are random.
    pub(super) fn revoke_all(&mut self, leases: &[i64]) {
        let mut known: Vec<(u64, i64)> = leases
            .iter()
            .filter_map(|lease| self.store.leases.get(lease).map(|granted| (granted.nth, *lease)))
            .collect();
        known.sort_unstable();
        for (_, lease) in known {
            drop(self.store.revoke(self.now, lease));
        }
    }

    /// Ends the faults of a member.
    pub(super) fn restore(&mut self, member: usize) {
        let now = self.now;
        let thaws = self.members[member].frozen;
        let at = &mut self.members[member];
        (at.frozen, at.cut_off, at.stalled, at.lag) = (false, false, false, Duration::ZERO);
        if at.believes_until.is_some() {
            // It processes waiting client requests before the messages of its peers.
            let late = if thaws { self.random.u64(20..400) } else { self.random.u64(1..50) };
            at.believes_until = Some(now + Duration::from_millis(late));
        }
        if let Some(leader) = self.leader
            && self.members[member].term < self.term
        {
            let late = Duration::from_millis(self.random.u64(20..500));
            self.members[member].pending_term = Some((now + late, self.term, leader));
        }
    }
}
