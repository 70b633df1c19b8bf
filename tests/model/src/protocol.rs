//! The protocol: the steps that are possible in a state, and their effects.
//!
//! Delays that cannot cause a violation are left out: creating an entry, opening a session and answering a confirming read are one step
//! each, and etcd processes a keepalive when it is sent, because a later time would shorten the window. Steps are separate where
//! something can come between them: a heartbeat and its answer, an answer and its confirmation, a check and the write after it, and
//! the end of a term, of its work, and of its entry.

use stateright::{Model, Property};

use crate::{
    etcd,
    rules::{Rule, Store},
    state::{
        CANDIDATES, Candidate, DRIFT, Heartbeat, Phase, SentHeartbeat, Session, State, Unconfirmed, Violation,
    },
    zookeeper,
};

/// The protocol over one store, with all rules or with one disabled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) store: Store,
    pub(crate) disabled: Option<Rule>,
}

/// One step. The number identifies a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A tick of the store's clock, which the slow clock may miss. ZooKeeper's leader may stall before its ping.
    Tick {
        missed: bool,
        stalled: bool,
    },
    /// Opens a session, if there is none, and creates an entry.
    Enter(usize),
    /// Learns that its entry is the first.
    Win(usize),
    /// Gives up a session whose window has closed or that has ended.
    GiveUp(usize),
    /// Closes the session in the store, after its work has stopped.
    Close(usize),
    Resign(usize),
    /// Removes its entry, after its work has stopped.
    Leave(usize),
    /// Checks its leadership; the write follows.
    Check(usize),
    Write(usize),
    /// The store ends an expired session.
    Expire(usize),
    Etcd(etcd::Step),
    Zookeeper(zookeeper::Step),
}

use Step::*;

impl Protocol {
    pub(crate) fn is_disabled(&self, rule: Rule) -> bool {
        self.disabled == Some(rule)
    }

    /// Whether the candidate is reduced to what others can observe of it: see [`zookeeper`].
    fn is_abstract(&self, number: usize) -> bool {
        self.store == Store::Zookeeper && number > 0
    }

    /// The ticks that a heartbeat sent now adds to the deadline.
    fn credit(&self) -> u8 {
        let ttl = self.store.ttl();
        if self.is_disabled(Rule::AllowForDrift) { ttl } else { ttl - DRIFT }
    }

    /// Whether the candidate may assume to lead.
    pub(crate) fn is_valid(&self, candidate: &Candidate) -> bool {
        candidate.phase == Phase::Leads && (candidate.ticks_left > 0 || self.is_disabled(Rule::CheckClock))
    }

    /// Whether its work may still act, even if it was cancelled.
    pub(crate) fn can_work(&self, candidate: &Candidate) -> bool {
        matches!(candidate.phase, Phase::Leads | Phase::Stopping)
            && (candidate.ticks_left > 0 || self.is_disabled(Rule::DropWorkAtDeadline))
    }

    fn can_win(&self, state: &State, candidate: &Candidate) -> bool {
        let entry = candidate.session.entry;
        if candidate.phase != Phase::Waiting || candidate.ticks_left == 0 || entry == 0 {
            return false;
        }
        if self.is_disabled(Rule::ReadOnWinning) {
            return state.entry_before(entry) != candidate.predecessor || state.first_entry() == entry;
        }
        state.first_entry() == entry
    }

    /// Extends a deadline by a confirmed heartbeat that was sent `age` ticks ago.
    pub(crate) fn renew(&self, state: &mut State, number: usize, age: u8) {
        let credit = self.credit().saturating_sub(age);
        let candidate = &mut state.candidates[number];
        if candidate.ticks_left == 0 {
            if !self.is_disabled(Rule::NeverReopenWindow) || credit == 0 {
                return;
            }
            if candidate.phase == Phase::Leads {
                state.violation = Some(Violation::ValidAfterInvalid);
            }
        }
        candidate.ticks_left = candidate.ticks_left.max(credit);
    }

    /// A term begins.
    fn lead(state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.phase = Phase::Leads;
        if candidate.token <= state.highest_token {
            state.violation = Some(Violation::StaleToken);
        }
        state.highest_token = state.highest_token.max(candidate.token);
    }

    fn enter(&self, state: &mut State, number: usize) {
        let new = state.next_token();
        let first = state.first_entry();
        let before = state.entry_before(new);
        let candidate = &mut state.candidates[number];
        if candidate.session.expires.is_none() {
            candidate.session.expires = Some(self.store.ttl());
            candidate.ticks_left = self.credit();
        }
        candidate.session.entry = new;
        if !(self.is_disabled(Rule::UniqueTokens) && candidate.token > 0) {
            candidate.token = new;
        }
        candidate.phase = Phase::Waiting;
        if self.is_disabled(Rule::ReadOnWinning) {
            candidate.predecessor = before;
        }
        if first == 0 || self.is_disabled(Rule::ReadOnEntering) {
            Self::lead(state, number);
        }
    }

    /// Leaves the election; the session and the entry stay in the store.
    fn leave_election(&self, state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.phase = Phase::Out;
        candidate.predecessor = 0;
        if !self.is_disabled(Rule::UniqueTokens) {
            candidate.token = 0;
        }
    }

    pub(crate) fn forget_session(state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.ticks_left = 0;
        candidate.heartbeat = Heartbeat::None;
        candidate.unconfirmed = None;
    }

    fn end_in_store(state: &mut State, number: usize) {
        state.candidates[number].session = Session { expires: None, entry: 0 };
    }

    fn tick(&self, state: &mut State, missed: bool, stalled: bool) {
        if self.store == Store::Zookeeper {
            zookeeper::tick(state, stalled);
        }
        for (number, candidate) in state.candidates.iter_mut().enumerate() {
            if self.is_abstract(number) {
                continue;
            }
            candidate.session.expires =
                candidate.session.expires.map(|ticks_left| ticks_left.saturating_sub(1));
            candidate.ticks_until_skew = candidate.ticks_until_skew.saturating_sub(1);
            if number == 0 && missed {
                candidate.ticks_until_skew = self.store.ttl() - 1;
                continue;
            }
            candidate.ticks_left = candidate.ticks_left.saturating_sub(1);
            self.age(candidate);
        }
    }

    /// A tick of the candidate's clock. Heartbeats that can no longer extend the deadline are dropped.
    fn age(&self, candidate: &mut Candidate) {
        let older = |age: u8| Some(age + 1).filter(|age| *age < self.credit());
        let later = |sent: SentHeartbeat| older(sent.age).map(|age| SentHeartbeat { age, ..sent });
        let heartbeat = match candidate.heartbeat {
            Heartbeat::None => None,
            Heartbeat::Renewed { age, old_term } => {
                older(age).map(|age| Heartbeat::Renewed { age, old_term })
            }
            Heartbeat::SentHeartbeat(sent) => later(sent).map(Heartbeat::SentHeartbeat),
            Heartbeat::Committed { sent, pings_ahead } => {
                later(sent).map(|sent| Heartbeat::Committed { sent, pings_ahead })
            }
        };
        candidate.heartbeat = heartbeat.unwrap_or(Heartbeat::None);
        let gap = true;
        candidate.unconfirmed = candidate
            .unconfirmed
            .and_then(|sent| older(sent.age).map(|age| Unconfirmed { age, gap, ..sent }));
    }

    fn steps_of(&self, state: &State, number: usize, steps: &mut Vec<Step>) {
        let candidate = &state.candidates[number];
        let session = &candidate.session;
        let session_exists = session.expires.is_some();
        let mut can = |step: Step, now: bool| {
            if now {
                steps.push(step);
            }
        };
        if self.is_abstract(number) {
            can(Enter(number), !session_exists);
            can(Win(number), self.can_win(state, candidate));
            can(Expire(number), session_exists);
            return;
        }
        match candidate.phase {
            Phase::Out => {
                can(Enter(number), !session_exists || (candidate.ticks_left > 0 && session.entry == 0));
                can(Close(number), session_exists && candidate.ticks_left == 0);
            }
            Phase::Waiting => {
                can(Win(number), self.can_win(state, candidate));
                can(GiveUp(number), candidate.ticks_left == 0);
            }
            Phase::Leads => {
                can(GiveUp(number), candidate.ticks_left == 0);
                can(Resign(number), candidate.ticks_left > 0);
                can(Check(number), number == 0 && self.is_valid(candidate) && candidate.write_token == 0);
            }
            Phase::Stopping => {
                can(Leave(number), true);
                can(Close(number), true);
                can(GiveUp(number), candidate.ticks_left == 0);
            }
        }
        can(Write(number), candidate.write_token > 0);
        can(Expire(number), session.expires == Some(0));
    }

    fn apply(&self, state: &mut State, step: Step) {
        match step {
            Tick { missed, stalled } => self.tick(state, missed, stalled),
            Enter(number) => self.enter(state, number),
            Win(number) => Self::lead(state, number),
            GiveUp(number) => {
                self.leave_election(state, number);
                Self::forget_session(state, number);
            }
            Close(number) => {
                Self::end_in_store(state, number);
                if !self.is_disabled(Rule::StopWorkBeforeClosing)
                    || state.candidates[number].phase == Phase::Out
                {
                    self.leave_election(state, number);
                    Self::forget_session(state, number);
                }
            }
            Resign(number) => state.candidates[number].phase = Phase::Stopping,
            Leave(number) => {
                state.candidates[number].session.entry = 0;
                if !self.is_disabled(Rule::StopWorkBeforeLeaving) {
                    self.leave_election(state, number);
                }
            }
            Check(number) => state.candidates[number].write_token = state.candidates[number].token,
            Write(number) => {
                let token = std::mem::take(&mut state.candidates[number].write_token);
                if token < state.highest_token && self.is_disabled(Rule::Fence) {
                    state.violation = Some(Violation::StaleWrite);
                }
            }
            Expire(number) => {
                Self::end_in_store(state, number);
                if self.is_abstract(number) {
                    self.leave_election(state, number);
                    Self::forget_session(state, number);
                }
            }
            Etcd(step) => etcd::apply(self, state, step),
            Zookeeper(step) => zookeeper::apply(self, state, step),
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        let stalls: &[bool] = match self.store {
            Store::Etcd => &[false],
            Store::Zookeeper => zookeeper::ticks(state),
        };
        for &stalled in stalls {
            steps.push(Tick { missed: false, stalled });
            let may_miss = state.candidates[0].ticks_until_skew == 0;
            steps.extend(may_miss.then_some(Tick { missed: true, stalled }));
        }
        for number in 0..CANDIDATES {
            self.steps_of(state, number, steps);
        }
        match self.store {
            Store::Etcd => steps.extend(etcd::steps(self, state).into_iter().map(Etcd)),
            Store::Zookeeper => steps.extend(zookeeper::steps(self, state).into_iter().map(Zookeeper)),
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        self.apply(&mut next, step);
        Some(next.normalised()).filter(|next| next != state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("S1: one leads at a time", |model: &Self, state: &State| {
                state.candidates.iter().filter(|candidate| model.is_valid(candidate)).count() <= 1
            }),
            Property::always("S2: each term's token is higher than any before", |_: &Self, state: &State| {
                state.violation != Some(Violation::StaleToken)
            }),
            Property::always(
                "S2: no earlier term's write after a later term's",
                |_: &Self, state: &State| state.violation != Some(Violation::StaleWrite),
            ),
            Property::always("S3: no work beside another leader", |model: &Self, state: &State| {
                !state.candidates.iter().enumerate().any(|(leads, leader)| {
                    model.is_valid(leader)
                        && state
                            .candidates
                            .iter()
                            .enumerate()
                            .any(|(works, worker)| works != leads && model.can_work(worker))
                })
            }),
            Property::always("no check says yes after one said no", |_: &Self, state: &State| {
                state.violation != Some(Violation::ValidAfterInvalid)
            }),
            // These check that the model is not vacuous.
            Property::sometimes("a late write is about to be refused", |_: &Self, state: &State| {
                state
                    .candidates
                    .iter()
                    .any(|candidate| candidate.write_token > 0 && candidate.write_token < state.highest_token)
            }),
            Property::sometimes(
                "a leader's session has expired, and it is about to write",
                |_: &Self, state: &State| {
                    state.candidates.iter().any(|candidate| {
                        candidate.write_token > 0
                            && candidate.session.expires.is_none()
                            && candidate.ticks_left == 0
                    })
                },
            ),
            Property::sometimes(
                "another leads while one is between its check and its write",
                |_: &Self, state: &State| {
                    let led = state.candidates[0].write_token;
                    led > 0
                        && state.candidates[1..]
                            .iter()
                            .any(|candidate| candidate.phase == Phase::Leads && candidate.token > led)
                },
            ),
        ]
    }
}
