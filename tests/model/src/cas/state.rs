//! A state of the model. Times are relative to it, and nonces and tokens are renumbered, so that there are finitely many states.

use std::fmt;

/// The most candidates of a model. A process that opens another session is another candidate.
pub(crate) const CANDIDATES: usize = 3;
/// The TTL in ticks of real time, and the shortest TTL in a record of a session whose TTL has changed.
pub(crate) const TTL: u8 = 2;
pub(crate) const SHORT_TTL: u8 = 1;
/// The lowest token of the second epoch: what the recipe calls `epoch << 40`.
pub(crate) const EPOCH_TOKENS: Token = 64;

/// A fencing token; zero is none.
pub(crate) type Token = u8;
/// Identifies the body of a record, or a request to enter; zero is none. Only equality matters.
pub(crate) type Nonce = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Has no session yet.
    New,
    /// Has a session, and does not take part.
    Out,
    /// Has sent a request to enter, which may not have been executed yet.
    Waiting,
    Leads,
    /// Withdraws its request. Its work has stopped.
    Leaving,
}

/// A candidate, as it sees itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub(crate) phase: Phase,
    /// The epoch in which it opened its session.
    pub(crate) epoch: u8,
    /// The token of its request, once some state of the record has had the request's slot as its head; it may learn that at any time.
    pub(crate) token: Token,
    /// Ticks until its window closes.
    pub(crate) window: u8,
    /// The ticks since the beat was sent that has not been answered yet.
    pub(crate) unanswered: Option<Unanswered>,
    /// Its request to enter.
    pub(crate) request: Nonce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Unanswered {
    pub(crate) age: u8,
    pub(crate) beat: Nonce,
}

/// The record of a candidate's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Session {
    Absent,
    Active {
        beat: Nonce,
        /// Only when the TTL may change.
        ttl: u8,
    },
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) candidate: usize,
    pub(crate) request: Nonce,
}

/// The election record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Election {
    pub(crate) nonce: Nonce,
    pub(crate) token: Token,
    pub(crate) queue: Vec<Slot>,
}

/// A challenger's wait for a session to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Timer {
    pub(crate) age: u8,
    /// Whether the record still has the beat with which the wait began.
    pub(crate) current: bool,
}

/// All records, and for each session the wait of the challenger that has waited longest. Which process that is does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) election: Option<Election>,
    pub(crate) sessions: [Session; CANDIDATES],
    pub(crate) timers: [Option<Timer>; CANDIDATES],
}

/// A swap of one record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Swap {
    Session { owner: usize, expected: Session, body: Session },
    Election { expected: Option<Election>, body: Election },
}

/// A swap that has been sent and not executed, although its sender may have given it up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Delayed {
    pub(crate) swap: Swap,
    pub(crate) epoch: u8,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) candidates: [Candidate; CANDIDATES],
    pub(crate) store: Store,
    pub(crate) delayed: Option<Delayed>,
    /// What a failover restores, once the store has stopped replicating its writes.
    pub(crate) replica: Option<Store>,
    pub(crate) epoch: u8,
    /// The ticks since the failover, as far as they matter.
    pub(crate) since_failover: u8,
    /// The highest token that has led.
    pub(crate) highest_token: Token,
    /// S2: a term has begun with a token that is not higher than an earlier one. Such a state has no successors.
    pub(crate) stale_token: bool,
}

impl Store {
    pub(crate) fn queue(&self) -> &[Slot] {
        self.election.as_ref().map_or(&[], |election| &election.queue)
    }

    fn position(&self, candidate: usize) -> usize {
        let position = self.queue().iter().position(|slot| slot.candidate == candidate);
        position.unwrap_or(CANDIDATES)
    }

    fn reorder(&mut self, order: &[usize; CANDIDATES]) {
        self.sessions = order.map(|old| self.sessions[old]);
        self.timers = order.map(|old| self.timers[old]);
        if let Some(election) = &mut self.election {
            election.reorder(order);
        }
    }
}

impl Election {
    fn reorder(&mut self, order: &[usize; CANDIDATES]) {
        for slot in &mut self.queue {
            slot.candidate = place(order, slot.candidate);
        }
    }
}

/// Where `order` has put a candidate.
fn place(order: &[usize; CANDIDATES], candidate: usize) -> usize {
    order.iter().position(|old| *old == candidate).unwrap_or(candidate)
}

impl State {
    /// The initial state: nobody has a session, and there is no record.
    pub(crate) fn first() -> Self {
        let candidate =
            Candidate { phase: Phase::New, epoch: 0, token: 0, window: 0, unanswered: None, request: 0 };
        let store =
            Store { election: None, sessions: [Session::Absent; CANDIDATES], timers: [None; CANDIDATES] };
        Self {
            candidates: [candidate; CANDIDATES],
            store,
            delayed: None,
            replica: None,
            epoch: 0,
            since_failover: 0,
            highest_token: 0,
            stale_token: false,
        }
    }

    /// A nonce that nothing else has.
    pub(crate) fn next_nonce(&mut self) -> Nonce {
        let mut highest = 0;
        self.visit_nonces(&mut |_, nonce| highest = highest.max(*nonce));
        highest + 1
    }

    /// Sorts the candidates, which are interchangeable.
    pub(crate) fn sort_candidates(&mut self) {
        let mut order: [usize; CANDIDATES] = std::array::from_fn(|number| number);
        order.sort_by_key(|&number| {
            let Candidate { phase, epoch, token, window, unanswered, .. } = self.candidates[number];
            let age = unanswered.map(|unanswered| unanswered.age);
            let session = match self.store.sessions[number] {
                Session::Absent => 0,
                Session::Active { ttl, .. } => ttl,
                Session::Ended => u8::MAX,
            };
            let replica = self.replica.as_ref().map(|replica| replica.position(number));
            let place = self.store.position(number);
            (place, phase, epoch, token, window, age, session, self.store.timers[number], replica)
        });
        if order.is_sorted() {
            return;
        }
        self.candidates = order.map(|old| self.candidates[old]);
        self.store.reorder(&order);
        if let Some(replica) = &mut self.replica {
            replica.reorder(&order);
        }
        match self.delayed.as_mut().map(|delayed| &mut delayed.swap) {
            None => {}
            Some(Swap::Session { owner, .. }) => *owner = place(&order, *owner),
            Some(Swap::Election { expected, body }) => {
                body.reorder(&order);
                if let Some(expected) = expected {
                    expected.reorder(&order);
                }
            }
        }
    }

    /// Renumbers nonces, of which only equality matters, and tokens, of which only the order within an epoch does.
    pub(crate) fn renumber(&mut self) {
        let mut seen: [Vec<Nonce>; 1 + 2 * CANDIDATES] = Default::default();
        self.visit_nonces(&mut |class, nonce| {
            let seen = &mut seen[class];
            let position = seen.iter().position(|other| other == nonce).unwrap_or_else(|| {
                seen.push(*nonce);
                seen.len() - 1
            });
            *nonce = position as Nonce + 1;
        });
        let mut tokens = Vec::new();
        self.visit_tokens(&mut |token| tokens.push(*token));
        tokens.sort_unstable();
        tokens.dedup();
        let of_second_epoch = tokens.partition_point(|token| *token < EPOCH_TOKENS);
        self.visit_tokens(&mut |token| {
            let rank = tokens.partition_point(|other| other < token);
            *token = match rank.checked_sub(of_second_epoch) {
                Some(rank) => EPOCH_TOKENS + rank as Token,
                None => rank as Token + 1,
            };
        });
    }

    /// Visits nonces in a fixed order. Nonces of different classes are never compared: those of the election record, of each session, and
    /// of each candidate's requests.
    fn visit_nonces(&mut self, visit: &mut impl FnMut(usize, &mut Nonce)) {
        let mut visit = |class: usize, nonce: &mut Nonce| {
            if *nonce > 0 {
                visit(class, nonce);
            }
        };
        let election = |election: &mut Election, visit: &mut dyn FnMut(usize, &mut Nonce)| {
            visit(0, &mut election.nonce);
            for slot in &mut election.queue {
                visit(1 + CANDIDATES + slot.candidate, &mut slot.request);
            }
        };
        let session = |owner: usize, session: &mut Session, visit: &mut dyn FnMut(usize, &mut Nonce)| {
            if let Session::Active { beat, .. } = session {
                visit(1 + owner, beat);
            }
        };
        for store in [Some(&mut self.store), self.replica.as_mut()].into_iter().flatten() {
            store.election.iter_mut().for_each(|record| election(record, &mut visit));
            for (owner, record) in store.sessions.iter_mut().enumerate() {
                session(owner, record, &mut visit);
            }
        }
        for (number, candidate) in self.candidates.iter_mut().enumerate() {
            visit(1 + CANDIDATES + number, &mut candidate.request);
            if let Some(unanswered) = &mut candidate.unanswered {
                visit(1 + number, &mut unanswered.beat);
            }
        }
        match self.delayed.as_mut().map(|delayed| &mut delayed.swap) {
            None => {}
            Some(Swap::Session { owner, expected, body }) => {
                session(*owner, expected, &mut visit);
                session(*owner, body, &mut visit);
            }
            Some(Swap::Election { expected, body }) => {
                expected.iter_mut().for_each(|record| election(record, &mut visit));
                election(body, &mut visit);
            }
        }
    }

    fn visit_tokens(&mut self, visit: &mut impl FnMut(&mut Token)) {
        let mut visit = |token: &mut Token| {
            if *token > 0 {
                visit(token);
            }
        };
        visit(&mut self.highest_token);
        self.candidates.iter_mut().for_each(|candidate| visit(&mut candidate.token));
        let delayed = match self.delayed.as_mut().map(|delayed| &mut delayed.swap) {
            Some(Swap::Election { expected, body }) => [expected.as_mut(), Some(body)],
            _ => [None, None],
        };
        let replica = self.replica.as_mut().and_then(|replica| replica.election.as_mut());
        let records = [self.store.election.as_mut(), replica].into_iter().chain(delayed).flatten();
        records.for_each(|record| visit(&mut record.token));
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, delayed, replica, epoch, since_failover, highest_token, stale_token, .. } = self;
        for (candidate, session) in self.candidates.iter().zip(store.sessions) {
            writeln!(f, "{candidate:?}, {session:?}")?;
        }
        writeln!(f, "{:?}, timers {:?}", store.election, store.timers)?;
        writeln!(f, "delayed {delayed:?}, replica {replica:?}, epoch {epoch} for {since_failover}")?;
        write!(f, "highest token {highest_token}, stale {stale_token}")
    }
}
