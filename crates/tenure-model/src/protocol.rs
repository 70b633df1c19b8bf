//! The protocol: what can happen in a state, and what comes of it.
//!
//! What only loses time is left out where it makes nothing worse: an entry is made, a session is opened and a
//! confirming read is answered in one step, and etcd takes a keepalive as soon as it is sent, for later would leave
//! less of the window. What is left apart are the steps between which something can come: a heartbeat and its
//! answer, an answer and its confirmation, a check and the write after it, the end of a term, of its work, and of
//! its entry.

use stateright::{Model, Property};

use crate::{
    rules::{Rule, Store},
    state::{Asked, Beat, CANDIDATES, Candidate, DRIFT, Phase, State, TTL, Unconfirmed, Wrong},
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
    /// Closes the session in the store.
    Close(usize),
    Resign(usize),
    /// Removes its entry: its work has stopped.
    Leave(usize),
    /// Asks whether it leads, to write next.
    Check(usize),
    Write(usize),
    SendHeartbeat(usize),
    /// The heartbeat is lost, or its answer.
    LoseHeartbeat(usize),
    /// The store carries it out.
    TakeHeartbeat(usize),
    /// etcd: a deposed leader answers it. ZooKeeper: the follower takes it that is cut off.
    TakeHeartbeatAstray(usize),
    /// The answer comes.
    HearAnswer(usize),
    /// etcd: the confirming read is answered, by a quorum or by the deposed leader.
    Read {
        candidate: usize,
        astray: bool,
    },
    /// The store ends a session that has run out.
    Expire(usize),
    /// etcd: another member leads, and gives each lease its whole TTL; the one before knows nothing of it.
    ChangeLeader,
    /// etcd: the deposed leader hears that it is none.
    HearOfNewLeader,
    /// ZooKeeper: the follower is cut off, and forgets of whom it has heard.
    CutFollower,
    /// ZooKeeper: the follower is one again.
    MendFollower,
    /// ZooKeeper: the candidate connects to the leader, or to the follower.
    Move(usize),
}

use Step::*;

impl Protocol {
    fn is_broken(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    /// How much a heartbeat is worth that has just been sent.
    fn credit(&self) -> u8 {
        if self.is_broken(Rule::AllowForDrift) { TTL } else { TTL - DRIFT }
    }

    /// Whether the candidate may assume to lead.
    pub(crate) fn is_valid(&self, candidate: &Candidate) -> bool {
        candidate.phase == Phase::Leads && (candidate.left > 0 || self.is_broken(Rule::CompareTheClock))
    }

    /// Whether its work can act, though it may have been told to stop.
    pub(crate) fn can_work(&self, candidate: &Candidate) -> bool {
        matches!(candidate.phase, Phase::Leads | Phase::Stopping)
            && (candidate.left > 0 || self.is_broken(Rule::DropWork))
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
    fn renew(&self, state: &mut State, number: usize, age: u8) {
        let credit = self.credit().saturating_sub(age);
        let candidate = &mut state.candidates[number];
        if candidate.left == 0 {
            if !self.is_broken(Rule::CloseForGood) || credit == 0 {
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
            candidate.session.expires = Some(TTL);
            candidate.left = self.credit();
        }
        candidate.session.entry = new;
        if !(self.is_broken(Rule::NewTokens) && candidate.token > 0) {
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
        if !self.is_broken(Rule::NewTokens) {
            candidate.token = 0;
        }
    }

    fn forget_session(state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        candidate.left = 0;
        candidate.beat = Beat::None;
        candidate.unconfirmed = None;
    }

    fn end_in_store(state: &mut State, number: usize) {
        let session = &mut state.candidates[number].session;
        (session.expires, session.entry) = (None, 0);
        (session.at_follower, session.touched) = (false, false);
    }

    fn tick(&self, state: &mut State, missed: bool) {
        for (number, candidate) in state.candidates.iter_mut().enumerate() {
            let session = &mut candidate.session;
            // The follower tells the leader of whom it has heard, once a tick.
            if session.touched && session.expires.is_some() {
                session.expires = Some(TTL);
            }
            session.touched = false;
            session.expires = session.expires.map(|left| left.saturating_sub(1));
            candidate.steady = candidate.steady.saturating_sub(1);
            if number == 0 && missed {
                candidate.steady = TTL - 1;
                continue;
            }
            candidate.left = candidate.left.saturating_sub(1);
            self.age(candidate);
        }
    }

    /// A tick of the candidate's clock. What is worth nothing any more is forgotten.
    fn age(&self, candidate: &mut Candidate) {
        let older = |age: u8| Some(age + 1).filter(|age| *age < self.credit());
        let asked = |Asked { age, mark }| older(age).map(|age| Asked { age, mark });
        candidate.beat = match candidate.beat {
            Beat::None => Beat::None,
            Beat::Asked(sent) => asked(sent).map_or(Beat::None, Beat::Asked),
            Beat::Answered(sent) => asked(sent).map_or(Beat::None, Beat::Answered),
        };
        let gap = true;
        candidate.unconfirmed =
            candidate.unconfirmed.and_then(|sent| older(sent.age).map(|age| Unconfirmed { age, gap }));
    }

    fn send_heartbeat(&self, candidate: &mut Candidate) {
        let mark = match (self.store, candidate.unconfirmed) {
            (Store::Etcd, _) | (_, None) => false,
            (_, Some(_)) if self.is_broken(Rule::KeepTheGap) => true,
            (_, Some(earlier)) if self.is_broken(Rule::CountTheGapFromTheAnswer) => earlier.age > 0,
            (_, Some(earlier)) => earlier.gap,
        };
        candidate.beat = Beat::Asked(Asked { age: 0, mark });
    }

    /// The heartbeat that the store takes.
    fn asked(candidate: &Candidate) -> Asked {
        match candidate.beat {
            Beat::Asked(sent) => sent,
            _ => Asked { age: 0, mark: false },
        }
    }

    fn take_heartbeat(&self, candidate: &mut Candidate) {
        let sent = Self::asked(candidate);
        if candidate.session.at_follower {
            candidate.session.touched = true;
        } else {
            candidate.session.expires = Some(TTL);
        }
        candidate.beat = Beat::Answered(sent);
    }

    fn take_astray(&self, candidate: &mut Candidate) {
        let sent = Self::asked(candidate);
        // The deposed leader says in which term it believes itself.
        let mark = match self.store {
            Store::Etcd => !self.is_broken(Rule::NameTheTerm),
            Store::Zookeeper => sent.mark,
        };
        candidate.beat = Beat::Answered(Asked { mark, ..sent });
    }

    fn hear_answer(&self, state: &mut State, number: usize) {
        let candidate = &mut state.candidates[number];
        let Beat::Answered(sent) = candidate.beat else { return };
        let age = if self.is_broken(Rule::CountFromTheSending) { 0 } else { sent.age };
        candidate.beat = Beat::None;
        if self.is_broken(Rule::Confirm) {
            return self.renew(state, number, age);
        }
        let answered = Some(Unconfirmed { age, gap: false });
        match candidate.unconfirmed {
            Some(earlier) if sent.mark => {
                candidate.unconfirmed = answered;
                self.renew(state, number, earlier.age);
            }
            Some(_) => {}
            None => candidate.unconfirmed = answered,
        }
    }

    fn read(&self, state: &mut State, number: usize, astray: bool) {
        let candidate = &mut state.candidates[number];
        let Beat::Answered(Asked { age, mark: old_term }) = candidate.beat else { return };
        let age = if self.is_broken(Rule::CountFromTheSending) { 0 } else { age };
        candidate.beat = Beat::None;
        // A deposed leader has all entries that it ever had.
        let (found, same_term) = match astray {
            true => (true, old_term),
            false => (candidate.session.entry > 0, !old_term),
        };
        if !found {
            return Self::forget_session(state, number);
        }
        if same_term || self.is_broken(Rule::CompareEpochs) {
            self.renew(state, number, age);
        }
    }

    fn change_leader(state: &mut State) {
        state.astray = true;
        for candidate in &mut state.candidates {
            candidate.session.expires = candidate.session.expires.map(|_| TTL);
            if let Beat::Answered(sent) = &mut candidate.beat {
                sent.mark = true;
            }
        }
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
        let beats = candidate.phase != Phase::Out && candidate.left > 0;
        let reaches = lasts && !(session.at_follower && state.astray);
        let lost_ways = match self.store {
            Store::Etcd => state.astray,
            Store::Zookeeper => session.at_follower && state.astray && self.is_broken(Rule::BeatByWriting),
        };
        match candidate.beat {
            Beat::None if self.store == Store::Etcd => {
                can(TakeHeartbeat(number), beats && reaches);
                can(TakeHeartbeatAstray(number), beats && lost_ways);
            }
            Beat::None => can(SendHeartbeat(number), beats),
            Beat::Asked(_) => {
                can(TakeHeartbeat(number), reaches);
                can(TakeHeartbeatAstray(number), lost_ways);
            }
            Beat::Answered(_) if self.store == Store::Zookeeper || self.is_broken(Rule::Confirm) => {
                can(HearAnswer(number), true);
            }
            Beat::Answered(_) => {
                can(Read { candidate: number, astray: false }, true);
                let astray = state.astray && self.is_broken(Rule::ReadFromAQuorum);
                can(Read { candidate: number, astray: true }, astray);
            }
        }
        can(LoseHeartbeat(number), candidate.beat != Beat::None);
        // A session is resumed where there is one, and nowhere that is cut off.
        let moves = self.store == Store::Zookeeper && lasts && (session.at_follower || !state.astray);
        can(Move(number), moves && !session.touched);
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
                if !self.is_broken(Rule::StopBeforeClosing) || state.candidates[number].phase == Phase::Out {
                    self.stand_down(state, number);
                    Self::forget_session(state, number);
                }
            }
            Resign(number) => state.candidates[number].phase = Phase::Stopping,
            Leave(number) => {
                state.candidates[number].session.entry = 0;
                if !self.is_broken(Rule::StopBeforeLeaving) {
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
            SendHeartbeat(number) => self.send_heartbeat(&mut state.candidates[number]),
            LoseHeartbeat(number) => state.candidates[number].beat = Beat::None,
            TakeHeartbeat(number) => self.take_heartbeat(&mut state.candidates[number]),
            TakeHeartbeatAstray(number) => self.take_astray(&mut state.candidates[number]),
            HearAnswer(number) => self.hear_answer(state, number),
            Read { candidate, astray } => self.read(state, candidate, astray),
            Expire(number) => Self::end_in_store(state, number),
            ChangeLeader => Self::change_leader(state),
            HearOfNewLeader | MendFollower => state.astray = false,
            CutFollower => {
                state.astray = true;
                state.candidates.iter_mut().for_each(|candidate| candidate.session.touched = false);
            }
            Move(number) => {
                let session = &mut state.candidates[number].session;
                session.at_follower = !session.at_follower;
            }
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
        steps.push(Tick { missed: false });
        if state.candidates[0].steady == 0 {
            steps.push(Tick { missed: true });
        }
        for number in 0..CANDIDATES {
            self.steps_of(state, number, steps);
        }
        match self.store {
            Store::Etcd => {
                steps.push(ChangeLeader);
                steps.extend(state.astray.then_some(HearOfNewLeader));
            }
            Store::Zookeeper => steps.push(if state.astray { MendFollower } else { CutFollower }),
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
            Property::sometimes("a heartbeat is answered by who should not", |_: &Self, state: &State| {
                state.astray
                    && state.candidates.iter().any(|candidate| {
                        matches!(candidate.beat, Beat::Asked(_) | Beat::Answered(_))
                            && candidate.phase == Phase::Leads
                    })
            }),
        ]
    }
}
