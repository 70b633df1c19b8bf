//! What there is at one moment: all times are relative to it, so that there are finitely many moments.

use std::fmt;

/// Three candidates: one that leads, one that follows it, and one between or behind them.
pub(crate) const CANDIDATES: usize = 3;
/// How much of a TTL is given up for clocks that run slow, in ticks: the slow one misses one tick of each TTL.
pub(crate) const DRIFT: u8 = 1;

/// A fencing token; zero is none. Only the order of tokens counts, so they are renumbered from one.
pub(crate) type Token = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Stands in no election.
    Out,
    /// Has an entry, and others are before it.
    Waiting,
    Leads,
    /// Leads no more, and its work has not stopped yet.
    Stopping,
}

/// A heartbeat under way, and how many ticks of its candidate's clock ago it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Beat {
    None,
    /// etcd: carried out, or what a deposed leader took for that; next comes the confirming read. Whether the
    /// store's term is another by now than that in which it was answered.
    Kept {
        age: u8,
        old_term: bool,
    },
    /// ZooKeeper: on its way to the server.
    Asked(Asked),
    /// ZooKeeper: the leader has carried it out, and the answer is on its way to the follower, behind so many of the
    /// leader's questions of whom the follower has heard.
    Decided {
        sent: Asked,
        behind: u8,
    },
    /// ZooKeeper: answered, and a sync is on its way to the leader.
    Syncing(Asked),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Asked {
    pub(crate) age: u8,
    /// Whether it was sent late enough to confirm the one before.
    pub(crate) late_enough: bool,
}

/// ZooKeeper: an answered heartbeat that a later one will confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Unconfirmed {
    pub(crate) age: u8,
    /// Whether a tick has passed since its answer.
    pub(crate) gap: bool,
}

/// A candidate, as it sees itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub(crate) phase: Phase,
    pub(crate) token: Token,
    /// How many ticks of its own clock there are to its deadline.
    pub(crate) left: u8,
    /// After how many ticks its clock may miss one again.
    pub(crate) steady: u8,
    pub(crate) beat: Beat,
    pub(crate) unconfirmed: Option<Unconfirmed>,
    /// With which token it is about to write: a check has said yes. Only the first candidate waits between the
    /// two; the others write as soon as they lead.
    pub(crate) writing: Token,
    /// Whose entry it saw before its own; only where a rule is broken.
    pub(crate) predecessor: Token,
    pub(crate) session: Session,
}

/// A session, as the store sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Session {
    /// In how many ticks it may expire; `None` when there is none.
    pub(crate) expires: Option<u8>,
    /// The entry under it; zero when there is none.
    pub(crate) entry: Token,
}

/// ZooKeeper: how the first candidate reaches the leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    /// Over the follower.
    pub(crate) by_follower: bool,
    /// The follower hears nobody, and nobody hears it.
    pub(crate) cut: bool,
    /// The follower has heard of the session since it last told the leader.
    pub(crate) heard: bool,
    /// It has told the leader, who has not heard it yet.
    pub(crate) told: bool,
    /// How many of the leader's questions of whom the follower has heard are on their way to it.
    pub(crate) questions: u8,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) candidates: [Candidate; CANDIDATES],
    /// etcd: whether there is a deposed leader that answers still.
    pub(crate) deposed: bool,
    pub(crate) route: Route,
    /// The highest token that has led, and that the resource has seen.
    pub(crate) newest: Token,
    /// Nothing comes after this.
    pub(crate) wrong: Option<Wrong>,
}

/// What no state shows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wrong {
    /// S2: a term has begun whose token is no higher than an earlier one's.
    StaleToken,
    /// S2: the resource has taken a write of an earlier term after one of a later term.
    StaleWrite,
    /// A check could say yes after one had said no.
    YesAfterNo,
}

impl State {
    /// Nobody stands in the election, and nothing has happened.
    pub(crate) fn first() -> Self {
        let session = Session { expires: None, entry: 0 };
        let candidate = Candidate {
            phase: Phase::Out,
            token: 0,
            left: 0,
            steady: 0,
            beat: Beat::None,
            unconfirmed: None,
            writing: 0,
            predecessor: 0,
            session,
        };
        Self {
            candidates: [candidate; CANDIDATES],
            deposed: false,
            route: Route::default(),
            newest: 0,
            wrong: None,
        }
    }

    /// A token that is higher than all.
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
            [candidate.token, candidate.writing, candidate.predecessor, candidate.session.entry]
        });
        of_candidates.chain([self.newest])
    }

    /// Renumbers the tokens, and puts the candidates whose clocks are exact in an order: they are all alike.
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
            renumber(&mut candidate.writing);
            renumber(&mut candidate.predecessor);
            renumber(&mut candidate.session.entry);
        }
        renumber(&mut self.newest);
        self.candidates[1..].sort_unstable();
        self
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for candidate in &self.candidates {
            writeln!(f, "{candidate:?}")?;
        }
        let Self { deposed, route, newest, wrong, .. } = self;
        write!(f, "deposed {deposed}, {route:?}, newest token {newest}, {wrong:?}")
    }
}
