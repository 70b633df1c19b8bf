//! Three members and what a quorum of them has agreed on.
//!
//! Whatever is agreed on is one state, changed at one instant. What a single member knows may be old:
//! which term it is, who leads, what was granted or written lately, and that it leads no more itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::proto::PbResponseHeader;
use fastrand::Rng;
use tokio::sync::watch;

use super::{lessor::Lessor, store::Store};

pub(super) const MEMBERS: usize = 3;

/// etcd's election timeout: a follower that hears nothing for so long looks for another leader, and a
/// leader that hears no quorum steps down.
pub(super) const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Woken when anything has changed.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Simulated time, as of this step of the run.
    pub(super) now: Duration,
    pub(super) store: Store,
    pub(super) term: u64,
    /// Who leads by the word of a quorum, able to or not.
    pub(super) leader: Option<usize>,
    /// Since when the leader has been without a quorum, if it is.
    leaderless_since: Option<Duration>,
    pub(super) members: [Member; MEMBERS],
    pub(super) random: Rng,
    /// How many requests were served, and a digest of which and when: the same in the same run.
    pub(super) events: u64,
    pub(super) digest: u64,
    pub(super) open_watches: i64,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) up: bool,
    /// Does nothing until it thaws, and then carries out what was asked of it meanwhile.
    pub(super) frozen: bool,
    /// Hears nothing of the other members. Clients reach it.
    pub(super) cut_off: bool,
    /// Writes to its disk do not return: it takes no part in any decision, and answers from memory.
    pub(super) stalled: bool,
    /// How much later than others it learns of what was decided.
    pub(super) lag: Duration,
    /// The term of the last decision that it knows of.
    pub(super) term: u64,
    /// A newer one, and when it learns of it.
    coming: Option<(Duration, u64, usize)>,
    /// Who leads, as far as it knows.
    pub(super) follows: Option<usize>,
    /// Since when it has heard of no leader.
    pub(super) deaf_since: Option<Duration>,
    /// It led, and does not know until then that it leads no more.
    pub(super) believes_until: Option<Duration>,
    /// What it grants by when it leads, or believes to.
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
            coming: None,
            follows: Some(0),
            deaf_since: None,
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

    /// Changes something, and wakes whoever waits for a change.
    pub(super) fn change<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let outcome = with(&mut self.read());
        self.0.changed.send_modify(|n| *n += 1);
        outcome
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Waits until `it` is so.
    pub(super) async fn until(&self, it: impl Fn(&State) -> bool) {
        let mut changes = self.changes();
        while !it(&self.read()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Lets time go on; called once in every step of the run.
    pub(super) fn advance(&self, now: Duration) {
        let tidied = {
            let mut state = self.read();
            state.now = now;
            state.tidy()
        };
        if tidied {
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
    /// Whether a decision asked for at `member` can be made.
    pub(super) fn quorum_at(&self, member: usize) -> bool {
        self.members[member].works() && self.has_quorum()
    }

    /// Whether there is a leader that most members hear.
    pub(super) fn has_quorum(&self) -> bool {
        let working = self.members.iter().filter(|member| member.works()).count();
        working > MEMBERS / 2 && self.leader.is_some_and(|leader| self.members[leader].works())
    }

    /// Whether `member` leads, or believes that it does.
    pub(super) fn thinks_to_lead(&self, member: usize) -> bool {
        let at = &self.members[member];
        at.up && (self.leader == Some(member) || at.believes_until.is_some_and(|until| self.now < until))
    }

    /// Whether `member` knows that there is no leader.
    pub(super) fn knows_no_leader(&self, member: usize, since: Duration) -> bool {
        let deaf_since = self.members[member].deaf_since;
        !self.thinks_to_lead(member) && deaf_since.is_some_and(|deaf| self.now >= deaf + since)
    }

    /// What `member` puts at the head of an answer that is of `revision`.
    pub(super) fn header(&self, member: usize, revision: i64) -> Option<PbResponseHeader> {
        let raft_term = self.members[member].term;
        Some(PbResponseHeader { cluster_id: 1, member_id: member as u64 + 1, revision, raft_term })
    }

    /// What `member` knows of is older than this.
    pub(super) fn seen_by(&self, member: usize) -> Duration {
        let at = &self.members[member];
        let late = self.now.saturating_sub(at.lag);
        at.deaf_since.map_or(late, |deaf| late.min(deaf))
    }

    pub(super) fn revision_at(&self, member: usize) -> i64 {
        self.store.revision_seen(self.seen_by(member))
    }

    /// A decision was made through `member`: it knows of all that was decided before.
    pub(super) fn caught_up(&mut self, member: usize) {
        let (term, leader) = (self.term, self.leader);
        let at = &mut self.members[member];
        at.term = term;
        at.follows = leader;
        at.coming = None;
        // etcd steps down (`updateLeadership`) before it applies anything of a later term, and names a term once it has.
        at.believes_until = None;
    }

    /// Notes that `what` was asked at `member`.
    pub(super) fn note(&mut self, member: usize, what: &str) {
        self.events += 1;
        let words = [self.now.as_nanos() as u64, member as u64, self.store.revision as u64];
        let bytes = words.into_iter().flat_map(u64::to_le_bytes).chain(what.bytes());
        self.digest = bytes.fold(self.digest ^ 0xcbf2_9ce4_8422_2325, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// What happens by itself as time goes on. True when something did.
    fn tidy(&mut self) -> bool {
        let (now, quorum) = (self.now, self.has_quorum());
        let mut changed = false;
        for member in 0..MEMBERS {
            let hears = self.quorum_at(member);
            let at = &mut self.members[member];
            if let Some((when, term, leader)) = at.coming
                && when <= now
                && at.works()
            {
                (at.term, at.follows, at.coming, at.believes_until) = (term, Some(leader), None, None);
                changed = true;
            }
            match at.deaf_since {
                Some(_) if hears => at.deaf_since = None,
                None if !hears => at.deaf_since = Some(now),
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

    /// Somebody leads, by the votes of whoever is able to vote.
    pub(super) fn elect(&mut self) {
        let able: Vec<usize> = (0..MEMBERS).filter(|member| self.members[*member].works()).collect();
        if let Some(former) = self.leader.take() {
            let at = &mut self.members[former];
            // Whose disk stalls or who is frozen learns of it when that is over; who is cut off steps down by itself.
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
            self.members[member].coming = Some((self.now + late, self.term, leader));
        }
        self.caught_up(leader);
        // Whoever leads gives every lease its whole TTL anew.
        let (now, leases) = (self.now, &self.store.leases);
        self.members[leader].lessor.promote(now, leases);
    }

    /// The leader ends leases that have run out, twice a second.
    fn expire(&mut self) -> bool {
        let Some(leader) = self.leader else { return false };
        let expired = self.members[leader].lessor.expired(self.now);
        self.revoke_all(&expired);
        !expired.is_empty()
    }

    /// Ends leases in the order in which they were granted: their ids are drawn by lot.
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

    /// Whatever a member suffers from is over.
    pub(super) fn mend(&mut self, member: usize) {
        let now = self.now;
        let thaws = self.members[member].frozen;
        let at = &mut self.members[member];
        (at.frozen, at.cut_off, at.stalled, at.lag) = (false, false, false, Duration::ZERO);
        if at.believes_until.is_some() {
            // It reads what it was asked before what its peers have to tell.
            let late = if thaws { self.random.u64(20..400) } else { self.random.u64(1..50) };
            at.believes_until = Some(now + Duration::from_millis(late));
        }
        if let Some(leader) = self.leader
            && self.members[member].term < self.term
        {
            let late = Duration::from_millis(self.random.u64(20..500));
            self.members[member].coming = Some((now + late, self.term, leader));
        }
    }
}
