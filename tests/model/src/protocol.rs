//! The protocol: what can happen in a state, and what comes of it.
//!
//! What only loses time is left out where it makes nothing worse: an entry is made, a session is opened and a
//! confirming read is answered in one step, and etcd takes a keepalive as soon as it is sent, for later would leave
//! less of the window. What is left apart are the steps between which something can come: a heartbeat and its
//! answer, an answer and its confirmation, a check and the write after it, the end of a term, of its work, and of
//! its entry.

use stateright::{Model, Property};

use crate::{
    etcd,
    rules::{Rule, Store},
    state::{Asked, Beat, CANDIDATES, Candidate, DRIFT, Phase, Session, State, Unconfirmed, Wrong},
    zookeeper,
};

/// The protocol over one store, whole or with one rule broken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) store: Store,
    pub(crate) broken: Option<Rule>,
}

/// One step. The number is that of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A tick of the store's clock; the slow clock misses it, or does not.
    Tick {
        missed: bool,
    },
    /// Opens a session, if there is none, and makes an entry.
    Enter(usize),
    /// Learns that nobody is before it.
    Win(usize),
    /// Gives up a session whose window has closed, or that it knows to have ended.
    GiveUp(usize),
    /// Closes the session in the store: its work has stopped.
    Close(usize),
    Resign(usize),
    /// Removes its entry: its work has stopped.
    Leave(usize),
    /// Asks whether it leads, to write next.
    Check(usize),
    Write(usize),
    /// The store ends a session that has run out.
    Expire(usize),
    Etcd(etcd::Step),
    Zookeeper(zookeeper::Step),
}

use Step::*;

impl Protocol {
    pub(crate) fn is_broken(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    /// Whether all that is told of the candidate is what others can notice: see [`zookeeper`].
    fn is_plain(&self, number: usize) -> bool {
        self.store == Store::Zookeeper && number > 0
    }

    /// How much a heartbeat is worth that has just been sent.
    fn credit(&self) -> u8 {
        let ttl = self.store.ttl();
        if self.is_broken(Rule::AllowForDrift) { ttl } else { ttl - DRIFT }
    }

    /// Whether the candidate may assume to lead.
    pub(crate) fn is_valid(&self, candidate: &Candidate) -> bool {
        candidate.phase == Phase::Leads && (candidate.left > 0 || self.is_broken(Rule::CheckClock))
    }

    /// Whether its work can act, though it may have been told to stop.
    pub(crate) fn can_work(&self, candidate: &Candidate) -> bool {
        matches!(candidate.phase, Phase::Leads | Phase::Stopping)
            && (candidate.left > 0 || self.is_broken(Rule::DropWorkAtDeadline))
    }

    fn can_win(&self, state: &State, candidate: &Candidate) -> bool {
        let entry = candidate.session.entry;
        if candidate.phase != Phase::Waiting || candidate.left == 0 || entry == 0 {
            return false;
        }
        if self.is_broken(Rule::LookOnWinning) {
            return state.entry_before(entry) != candidate.predecessor || state.first_entry() == entry;
        }
        state.first_entry() == entry
    }

    /// Moves a deadline for a heartbeat sent `age` ticks ago, now that it is confirmed.
    pub(crate) fn renew(&self, state: &mut State, number: usize, age: u8) {
        let credit = self.credit().saturating_sub(age);
        let candidate = &mut state.candidates[number];
        if candidate.left == 0 {
            if !self.is_broken(Rule::NeverReopenWindow) || credit == 0 {
                return;
            }
            if candidate.phase == Phase::Leads {
                state.wrong = Some(Wrong::YesAfterNo);
            }
        }
        candidate.left = candidate.left.max(credit);
    }

    /// A term begins.
    fn lead(state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.phase = Phase::Leads;
        if candidate.token <= state.newest {
            state.wrong = Some(Wrong::StaleToken);
        }
        state.newest = state.newest.max(candidate.token);
    }

    fn enter(&self, state: &mut State, number: usize) {
        let new = state.next_token();
        let first = state.first_entry();
        let before = state.entry_before(new);
        let candidate = &mut state.candidates[number];
        if candidate.session.expires.is_none() {
            candidate.session.expires = Some(self.store.ttl());
            candidate.left = self.credit();
        }
        candidate.session.entry = new;
        if !(self.is_broken(Rule::UniqueTokens) && candidate.token > 0) {
            candidate.token = new;
        }
        candidate.phase = Phase::Waiting;
        if self.is_broken(Rule::LookOnWinning) {
            candidate.predecessor = before;
        }
        if first == 0 || self.is_broken(Rule::LookOnEntering) {
            Self::lead(state, number);
        }
    }

    /// Stands no more; what is in the store stays there.
    fn stand_down(&self, state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.phase = Phase::Out;
        candidate.predecessor = 0;
        if !self.is_broken(Rule::UniqueTokens) {
            candidate.token = 0;
        }
    }

    pub(crate) fn forget_session(state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.left = 0;
        candidate.beat = Beat::None;
        candidate.unconfirmed = None;
    }

    fn end_in_store(state: &mut State, number: usize) {
        state.candidates[number].session = Session { expires: None, entry: 0 };
    }

    fn tick(&self, state: &mut State, missed: bool) {
        if self.store == Store::Zookeeper {
            zookeeper::tick(state);
        }
        for (number, candidate) in state.candidates.iter_mut().enumerate() {
            if self.is_plain(number) {
                continue;
            }
            candidate.session.expires = candidate.session.expires.map(|left| left.saturating_sub(1));
            candidate.steady = candidate.steady.saturating_sub(1);
            if number == 0 && missed {
                candidate.steady = self.store.ttl() - 1;
                continue;
            }
            candidate.left = candidate.left.saturating_sub(1);
            self.age(candidate);
        }
    }

    /// A tick of the candidate's clock. What is worth nothing any more is forgotten.
    fn age(&self, candidate: &mut Candidate) {
        let older = |age: u8| Some(age + 1).filter(|age| *age < self.credit());
        let later = |sent: Asked| older(sent.age).map(|age| Asked { age, ..sent });
        let beat = match candidate.beat {
            Beat::None => None,
            Beat::Kept { age, old_term } => older(age).map(|age| Beat::Kept { age, old_term }),
            Beat::Asked(sent) => later(sent).map(Beat::Asked),
            Beat::Decided { sent, behind } => later(sent).map(|sent| Beat::Decided { sent, behind }),
            Beat::Syncing(sent) => later(sent).map(Beat::Syncing),
        };
        candidate.beat = beat.unwrap_or(Beat::None);
        let gap = true;
        candidate.unconfirmed =
            candidate.unconfirmed.and_then(|sent| older(sent.age).map(|age| Unconfirmed { age, gap }));
    }

    fn steps_of(&self, state: &State, number: usize, steps: &mut Vec<Step>) {
        let candidate = &state.candidates[number];
        let session = &candidate.session;
        let lasts = session.expires.is_some();
        let mut can = |step: Step, now: bool| {
            if now {
                steps.push(step);
            }
        };
        if self.is_plain(number) {
            can(Enter(number), !lasts);
            can(Win(number), self.can_win(state, candidate));
            can(Expire(number), lasts);
            return;
        }
        match candidate.phase {
            Phase::Out => {
                can(Enter(number), !lasts || (candidate.left > 0 && session.entry == 0));
                can(Close(number), lasts && candidate.left == 0);
            }
            Phase::Waiting => {
                can(Win(number), self.can_win(state, candidate));
                can(GiveUp(number), candidate.left == 0);
            }
            Phase::Leads => {
                can(GiveUp(number), candidate.left == 0);
                can(Resign(number), candidate.left > 0);
                can(Check(number), number == 0 && self.is_valid(candidate) && candidate.writing == 0);
            }
            Phase::Stopping => {
                can(Leave(number), true);
                can(Close(number), true);
                can(GiveUp(number), candidate.left == 0);
            }
        }
        can(Write(number), candidate.writing > 0);
        can(Expire(number), session.expires == Some(0));
    }

    fn apply(&self, state: &mut State, step: Step) {
        match step {
            Tick { missed } => self.tick(state, missed),
            Enter(number) => self.enter(state, number),
            Win(number) => Self::lead(state, number),
            GiveUp(number) => {
                self.stand_down(state, number);
                Self::forget_session(state, number);
            }
            Close(number) => {
                Self::end_in_store(state, number);
                if !self.is_broken(Rule::StopWorkBeforeClosing)
                    || state.candidates[number].phase == Phase::Out
                {
                    self.stand_down(state, number);
                    Self::forget_session(state, number);
                }
            }
            Resign(number) => state.candidates[number].phase = Phase::Stopping,
            Leave(number) => {
                state.candidates[number].session.entry = 0;
                if !self.is_broken(Rule::StopWorkBeforeLeaving) {
                    self.stand_down(state, number);
                }
            }
            Check(number) => state.candidates[number].writing = state.candidates[number].token,
            Write(number) => {
                let token = std::mem::take(&mut state.candidates[number].writing);
                if token < state.newest && self.is_broken(Rule::Fence) {
                    state.wrong = Some(Wrong::StaleWrite);
                }
            }
            Expire(number) => {
                Self::end_in_store(state, number);
                if self.is_plain(number) {
                    self.stand_down(state, number);
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
        if state.wrong.is_some() {
            return;
        }
        if self.store == Store::Etcd || zookeeper::can_tick(state) {
            steps.push(Tick { missed: false });
            steps.extend((state.candidates[0].steady == 0).then_some(Tick { missed: true }));
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
                state.wrong != Some(Wrong::StaleToken)
            }),
            Property::always(
                "S2: no earlier term's write after a later term's",
                |_: &Self, state: &State| state.wrong != Some(Wrong::StaleWrite),
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
                state.wrong != Some(Wrong::YesAfterNo)
            }),
            // Nothing of this would show in a model in which nothing happens.
            Property::sometimes("a late write is about to be refused", |_: &Self, state: &State| {
                state
                    .candidates
                    .iter()
                    .any(|candidate| candidate.writing > 0 && candidate.writing < state.newest)
            }),
            Property::sometimes(
                "a leader's session has expired, and it is about to write",
                |_: &Self, state: &State| {
                    state.candidates.iter().any(|candidate| {
                        candidate.writing > 0 && candidate.session.expires.is_none() && candidate.left == 0
                    })
                },
            ),
            Property::sometimes(
                "another leads while one is between its check and its write",
                |_: &Self, state: &State| {
                    let led = state.candidates[0].writing;
                    led > 0
                        && state.candidates[1..]
                            .iter()
                            .any(|candidate| candidate.phase == Phase::Leads && candidate.token > led)
                },
            ),
        ]
    }
}
