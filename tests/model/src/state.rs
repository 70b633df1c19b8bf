//! A state of the model. All times are relative to it, so that there are finitely many states.

use std::fmt;

/// Three candidates: a leader, its successor, and one between or behind them.
pub(crate) const CANDIDATES: usize = 3;
/// The drift allowance, in ticks: a slow clock misses one tick in each TTL.
pub(crate) const DRIFT: u8 = 1;

/// A fencing token; zero is none. Only the order of tokens matters, so that they are renumbered from one.
pub(crate) type Token = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Does not take part.
    Out,
    /// Has an entry, with others ahead of it.
    Waiting,
    Leads,
    /// Has resigned or lost leadership, but its work has not stopped yet.
    Stopping,
}

/// A heartbeat in progress. `age` is the time since it was sent, in ticks of the candidate's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Heartbeat {
    None,
    /// etcd: answered by the leader or by a deposed one; the confirming read follows. `old_term`: the store's term has changed since.
    Renewed {
        age: u8,
        old_term: bool,
    },
    /// ZooKeeper: sent.
    SentHeartbeat(SentHeartbeat),
    /// ZooKeeper: committed by the leader. The answer is on its way to the follower, behind this many pings.
    Committed {
        sent: SentHeartbeat,
        pings_ahead: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SentHeartbeat {
    pub(crate) age: u8,
    /// Whether its answer counts for the proof of the unconfirmed heartbeat.
    pub(crate) counts: bool,
}

/// ZooKeeper: an answered heartbeat that later ones will prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Unconfirmed {
    pub(crate) age: u8,
    /// Whether a tick has passed since its answer.
    pub(crate) gap: bool,
    /// How many later heartbeats have counted.
    pub(crate) counted: u8,
}

/// ZooKeeper: a ping that the leader should have sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum DuePing {
    #[default]
    None,
    /// The leader has stalled since the ping was due.
    Due,
    /// The leader has run again for long enough to commit one write. It sends the ping before it commits another.
    AfterCommit,
}

/// A candidate, as it sees itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub(crate) phase: Phase,
    pub(crate) token: Token,
    /// Ticks of its own clock until its deadline.
    pub(crate) ticks_left: u8,
    /// Ticks until its clock may miss one again.
    pub(crate) ticks_until_skew: u8,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) unconfirmed: Option<Unconfirmed>,
    /// The token of a write whose check has succeeded. Only the first candidate can pause between check and write; the others write as
    /// soon as they lead.
    pub(crate) write_token: Token,
    /// The entry that it has seen ahead of its own; used only when a rule is disabled.
    pub(crate) predecessor: Token,
    pub(crate) session: Session,
}

/// A session, as the store sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Session {
    /// Ticks until it may expire; `None` when there is no session.
    pub(crate) expires: Option<u8>,
    /// The entry under it; zero for none.
    pub(crate) entry: Token,
}

/// ZooKeeper: the connection of the first candidate to the leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    /// Through the follower.
    pub(crate) via_follower: bool,
    /// The follower is cut off from the other servers.
    pub(crate) cut_off: bool,
    /// The follower has a touch of the session that it has not reported yet.
    pub(crate) touch_pending: bool,
    /// The report is on its way to the leader.
    pub(crate) touch_reported: bool,
    /// The leader's pings that are on their way to the follower. It answers each with the touched sessions.
    pub(crate) pings: u8,
    pub(crate) due_ping: DuePing,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) candidates: [Candidate; CANDIDATES],
    /// etcd: whether a deposed leader still answers.
    pub(crate) deposed: bool,
    pub(crate) route: Route,
    /// The highest token that has led, and that the resource has seen.
    pub(crate) highest_token: Token,
    /// A violation; such a state has no successors.
    pub(crate) violation: Option<Violation>,
}

/// A violation that only a step shows, not the state after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Violation {
    /// S2: a term has begun with a token that is not higher than an earlier one.
    StaleToken,
    /// S2: the resource has accepted a write of an earlier term after one of a later term.
    StaleWrite,
    /// A check can succeed after one has failed.
    ValidAfterInvalid,
}

impl State {
    /// The initial state: no candidate takes part.
    pub(crate) fn first() -> Self {
        let session = Session { expires: None, entry: 0 };
        let candidate = Candidate {
            phase: Phase::Out,
            token: 0,
            ticks_left: 0,
            ticks_until_skew: 0,
            heartbeat: Heartbeat::None,
            unconfirmed: None,
            write_token: 0,
            predecessor: 0,
            session,
        };
        Self {
            candidates: [candidate; CANDIDATES],
            deposed: false,
            route: Route::default(),
            highest_token: 0,
            violation: None,
        }
    }

    /// A token higher than all others.
    pub(crate) fn next_token(&self) -> Token {
        self.tokens().max().unwrap_or(0) + 1
    }

    /// The lowest entry.
    pub(crate) fn first_entry(&self) -> Token {
        let entries = self.candidates.iter().map(|candidate| candidate.session.entry);
        entries.filter(|entry| *entry > 0).min().unwrap_or(0)
    }

    /// The entry just before this one.
    pub(crate) fn entry_before(&self, token: Token) -> Token {
        let entries = self.candidates.iter().map(|candidate| candidate.session.entry);
        entries.filter(|entry| *entry < token).max().unwrap_or(0)
    }

    fn tokens(&self) -> impl Iterator<Item = Token> {
        let of_candidates = self.candidates.iter().flat_map(|candidate| {
            [candidate.token, candidate.write_token, candidate.predecessor, candidate.session.entry]
        });
        of_candidates.chain([self.highest_token])
    }

    /// Renumbers the tokens, and sorts the candidates with exact clocks, which are interchangeable.
    pub(crate) fn normalised(mut self) -> Self {
        let mut tokens: Vec<Token> = self.tokens().filter(|token| *token > 0).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let renumber = |token: &mut Token| {
            if *token > 0 {
                *token = tokens.partition_point(|other| other < token) as Token + 1;
            }
        };
        for candidate in &mut self.candidates {
            renumber(&mut candidate.token);
            renumber(&mut candidate.write_token);
            renumber(&mut candidate.predecessor);
            renumber(&mut candidate.session.entry);
        }
        renumber(&mut self.highest_token);
        self.candidates[1..].sort_unstable();
        self
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for candidate in &self.candidates {
            writeln!(f, "{candidate:?}")?;
        }
        let Self { deposed, route, highest_token, violation, .. } = self;
        write!(f, "deposed {deposed}, {route:?}, newest token {highest_token}, {violation:?}")
    }
}
