//! All elections of a store whose names begin with a prefix: read once, or polled.
//!
//! [`read`] is one reading. A [`Poller`] reads again and again, and yields a [`Snapshot`] at every change: what was read
//! last, the changes of leader that it has seen, and whether the store answers. Both are limited in number, and say so.

mod history;
mod poller;
mod read;

use std::time::SystemTime;

use tenure::{Candidate, ElectionName};
use tokio::time::Instant;

pub(crate) use history::History;
pub(crate) use poller::Poller;
pub(crate) use read::{Reading, read};

/// How much of a reading is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) elections: usize,
    /// How many candidates of an election, the leader included. All are counted.
    pub(crate) candidates: usize,
    /// How much of a candidate's value.
    pub(crate) value_bytes: usize,
}

impl Limits {
    /// For so many elections.
    pub(crate) fn of(elections: usize) -> Self {
        Self { elections, candidates: 100, value_bytes: 1024 }
    }
}

/// An election, as it was read last.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    pub(crate) name: ElectionName,
    /// The candidates in queue order, the leader first; at most [`Limits::candidates`]. Empty while nobody leads.
    pub(crate) candidates: Vec<Candidate>,
    /// The number of all candidates.
    pub(crate) candidate_count: usize,
}

impl Election {
    pub(crate) fn leader(&self) -> Option<&Candidate> {
        self.candidates.first()
    }

    /// How many candidates wait behind the leader.
    pub(crate) fn waiting(&self) -> usize {
        self.candidate_count.saturating_sub(1)
    }
}

/// Whether both are the same term, or both are none.
pub(crate) fn is_same_term(a: Option<&Candidate>, b: Option<&Candidate>) -> bool {
    let term = |leader: &Candidate| (leader.session.clone(), leader.token);
    a.map(term) == b.map(term)
}

/// An election, and since when its leader has been seen.
#[derive(Clone, Debug)]
pub(crate) struct TrackedElection {
    pub(crate) election: Election,
    /// When this leader, or the lack of one, was first seen.
    pub(crate) since: Instant,
    /// The same by the time of day.
    pub(crate) since_time: SystemTime,
    /// Whether its start was observed. Otherwise it may have begun long before.
    pub(crate) start_observed: bool,
}

/// A change of leader.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// When it was seen.
    pub(crate) time: SystemTime,
    pub(crate) election: ElectionName,
    /// The id and token of the new leader.
    pub(crate) leader: Option<Term>,
    /// Those of the leader before.
    pub(crate) previous: Option<Term>,
}

/// Who leads, and with which token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) id: String,
    pub(crate) token: Option<u64>,
}

impl Term {
    pub(crate) fn of(leader: &Candidate) -> Self {
        Self { id: leader.id.clone(), token: leader.token.map(tenure::FencingToken::get) }
    }
}

/// What is known of the elections below a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// When the elections were read; `None` until they were.
    pub(crate) read_at: Option<SystemTime>,
    /// In the order of their names. Those that had a leader since the beginning stay when they have no candidate any more.
    pub(crate) elections: Vec<TrackedElection>,
    /// How many elections have a candidate. More than `elections` if there are too many to read.
    pub(crate) total: usize,
    /// Whether only the first of them were read.
    pub(crate) is_truncated: bool,
    /// The last changes of leader, the newest first. Changes between two readings are seen as one.
    pub(crate) changes: Vec<Change>,
    /// Why nothing newer was read.
    pub(crate) outage: Option<Outage>,
}

/// The store does not answer, or refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outage {
    /// Since when there was no answer.
    pub(crate) since: Instant,
    /// The last error, if a request has failed already.
    pub(crate) error: Option<String>,
}
