//! The recipe over a store that can compare and swap, and the effect of each step.
//!
//! What cannot cause a violation is left out, or made one step with what it belongs to:
//!
//! - A read and the swap that relies on it are one step, because a swap of a record that has changed since has no effect. Where
//!   the sender cannot know whether it was executed, the swap is *delayed*: it has its version and body from when it was sent, and is
//!   executed at any later time or never.
//! - A stale read returns any earlier state of its record. So a candidate may learn at any time that its slot has been the head, or that
//!   there is no slot of its request, and a challenger that a session is absent. What a swap guards has no effect in the model.
//! - The clocks of those who lead are as slow, and those of challengers as fast, as the drift bound allows. With any other rates
//!   windows close earlier and waits end later, which the model contains: nobody has to act as soon as it may.
//! - Nothing has to happen, so that any process may be paused or crash at any time.

use super::{
    rules::Rule,
    state::{
        Candidate, Delayed, EPOCH_TOKENS, Election, Nonce, Phase, SHORT_TTL, Session, Slot, State, Swap, TTL,
        Timer, Unanswered,
    },
    steps::{Delivery, Step},
};

/// Which swaps may be delayed, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delays {
    None,
    /// Those that enter, sent when the store has stopped replicating.
    EnterAcrossFailover,
    All,
}

/// The recipe with all rules or with one disabled, and how much can happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    pub(crate) candidates: usize,
    pub(crate) delays: Delays,
    /// Whether the store may lose its latest writes, once.
    pub(crate) failover: bool,
    pub(crate) disabled: Option<Rule>,
}

use Step::*;

impl Recipe {
    pub(crate) fn is_disabled(&self, rule: Rule) -> bool {
        self.disabled == Some(rule)
    }

    /// The ticks for which a session swap opens its owner's window. By its slow clock that is `TTL · (1 − drift)`.
    fn credit(&self, ttl: u8) -> u8 {
        ttl + u8::from(self.is_disabled(Rule::DeadlineWithDrift))
    }

    /// The ticks for which a challenger waits. By its fast clock that is `TTL · (1 + drift)`.
    pub(crate) fn wait(&self, ttl: u8) -> u8 {
        ttl - u8::from(self.is_disabled(Rule::WaitWithDrift))
    }

    /// Whether the store executes a swap with the epoch that its sender knew.
    pub(crate) fn accepts(&self, sent: u8, epoch: u8) -> bool {
        sent == epoch || self.is_disabled(Rule::ObserveEpoch)
    }

    /// Whether a delayed swap was sent in an epoch that has ended.
    fn is_refused(&self, sent: u8, epoch: u8) -> bool {
        !self.accepts(sent, epoch) && !self.is_disabled(Rule::EpochInsideSwap)
    }

    pub(crate) fn can_win(&self, state: &State, candidate: &Candidate) -> bool {
        let in_new_epoch = candidate.epoch > 0 || candidate.token >= EPOCH_TOKENS;
        let may_overlap = in_new_epoch && self.awaits_lost_entries() && state.since_failover < self.wait(TTL);
        candidate.phase == Phase::Waiting && candidate.token > 0 && candidate.window > 0 && !may_overlap
    }

    fn awaits_lost_entries(&self) -> bool {
        !self.is_disabled(Rule::WaitForLostEntries) && self.restarts_timers()
    }

    fn restarts_timers(&self) -> bool {
        !self.is_disabled(Rule::EpochRestartsTimers) && !self.is_disabled(Rule::ObserveEpoch)
    }

    /// Whether a wait goes on although the beat with which it began has gone.
    fn keeps_outdated_timers(&self) -> bool {
        self.is_disabled(Rule::FreshReadStartsTimer) || self.is_disabled(Rule::NewBeatRestartsTimer)
    }

    pub(crate) fn apply(&self, state: &mut State, step: Step) {
        let epoch = state.epoch;
        match step {
            Tick => self.tick(state),
            Open(number) => {
                let beat = state.next_nonce();
                let candidate = &mut state.candidates[number];
                (candidate.phase, candidate.epoch, candidate.window) = (Phase::Out, epoch, self.credit(TTL));
                state.store.sessions[number] = Session::Active { beat, ttl: TTL };
            }
            Beat(number, delivery) => self.beat(state, number, delivery),
            Answer(number) => {
                let Some(Unanswered { age, .. }) = state.candidates[number].unanswered.take() else { return };
                let age = if self.is_disabled(Rule::DeadlineFromRequestStart) { 0 } else { age };
                self.open_window(state, number, age);
            }
            Enter(number, delivery) => {
                let request = match state.candidates[number].phase {
                    Phase::Waiting => state.candidates[number].request,
                    _ => state.next_nonce(),
                };
                state.candidates[number].phase = Phase::Waiting;
                state.candidates[number].request = request;
                self.enter(state, number, request, delivery);
            }
            Win(number) => {
                let candidate = &mut state.candidates[number];
                candidate.phase = Phase::Leads;
                state.stale_token = candidate.token <= state.highest_token;
                state.highest_token = state.highest_token.max(candidate.token);
            }
            Stop(number) => state.candidates[number].phase = Phase::Leaving,
            Withdraw(number, delivery) => self.withdraw(state, number, delivery),
            BeginWait(number) => {
                let age = state.store.timers[number].map_or(0, |timer| timer.age);
                let current = !self.is_disabled(Rule::FreshReadStartsTimer);
                state.store.timers[number] = Some(Timer { age, current });
            }
            End(number, delivery) => self.swap_session(state, number, Session::Ended, epoch, delivery),
            EndAbsent(number) => self.put_session(state, number, Session::Ended),
            Purge(number, delivery) => {
                let mut queue = state.store.queue().to_vec();
                queue.retain(|slot| slot.candidate != number);
                let body = self.record(state, queue, epoch);
                self.swap_election(state, body, epoch, delivery);
            }
            Collect(number) => self.put_session(state, number, Session::Absent),
            Execute => self.execute(state),
            Lose => state.delayed = None,
            StopReplication => {
                let mut replica = state.store.clone();
                if self.restarts_timers() {
                    replica.timers = Default::default();
                }
                state.replica = Some(replica);
            }
            Failover => {
                let Some(replica) = state.replica.take() else { return };
                state.store = replica;
                state.epoch = 1;
            }
            CreditEarlierBeat(number) => {
                state.candidates[number].unanswered = None;
                self.open_window(state, number, 0);
            }
            ShortenTtl(number) => {
                let beat = state.next_nonce();
                self.put_session(state, number, Session::Active { beat, ttl: SHORT_TTL });
            }
            ConcludeFromRead(number) => conclude(state, number),
            EnterAfterWithdrawal(number) => {
                let request = state.next_nonce();
                self.enter(state, number, request, Delivery::Prompt);
            }
        }
    }

    fn tick(&self, state: &mut State) {
        for candidate in &mut state.candidates {
            candidate.window = candidate.window.saturating_sub(1);
            candidate.unanswered = candidate.unanswered.and_then(|unanswered| {
                let age = unanswered.age + 1;
                (age < TTL).then_some(Unanswered { age, ..unanswered })
            });
        }
        for store in [Some(&mut state.store), state.replica.as_mut()].into_iter().flatten() {
            for timer in store.timers.iter_mut().flatten() {
                timer.age = (timer.age + 1).min(TTL);
            }
        }
        if state.epoch > 0 {
            state.since_failover = (state.since_failover + 1).min(TTL);
        }
    }

    /// A session swap was done that its owner had sent `age` ticks ago. A leader whose window has closed does not lead again.
    fn open_window(&self, state: &mut State, number: usize, age: u8) {
        let Session::Active { ttl, .. } = state.store.sessions[number] else { return };
        let candidate = &mut state.candidates[number];
        if candidate.phase != Phase::Leads || candidate.window > 0 {
            candidate.window = candidate.window.max(self.credit(ttl).saturating_sub(age));
        }
    }

    fn beat(&self, state: &mut State, number: usize, delivery: Delivery) {
        let beat = state.next_nonce();
        let ttl = match state.store.sessions[number] {
            Session::Active { ttl, .. } => ttl,
            _ => TTL,
        };
        let epoch = state.candidates[number].epoch;
        self.swap_session(state, number, Session::Active { beat, ttl }, epoch, delivery);
        match delivery {
            Delivery::Prompt => {
                state.candidates[number].unanswered = None;
                self.open_window(state, number, 0);
            }
            Delivery::Delayed => state.candidates[number].unanswered = Some(Unanswered { age: 0, beat }),
        }
    }

    fn enter(&self, state: &mut State, number: usize, request: Nonce, delivery: Delivery) {
        let mut queue = state.store.queue().to_vec();
        queue.push(Slot { candidate: number, request });
        let epoch = state.candidates[number].epoch;
        let body = self.record(state, queue, epoch);
        self.swap_election(state, body, epoch, delivery);
    }

    fn withdraw(&self, state: &mut State, number: usize, delivery: Delivery) {
        let (request, epoch) = (state.candidates[number].request, state.candidates[number].epoch);
        let mut queue = state.store.queue().to_vec();
        queue.retain(|slot| slot.request != request || slot.candidate != number);
        let has_slot = queue.len() < state.store.queue().len();
        let needless = match state.store.election {
            None => self.is_disabled(Rule::CreateOnWithdrawal),
            Some(_) => !has_slot && self.is_disabled(Rule::BumpOnWithdrawal),
        };
        if !needless {
            let body = self.record(state, queue, epoch);
            self.swap_election(state, body, epoch, delivery);
        }
        if delivery == Delivery::Prompt && state.candidates[number].phase == Phase::Leaving {
            conclude(state, number);
        }
    }

    /// The election record with another queue, as a process writes it that knows this epoch.
    fn record(&self, state: &mut State, queue: Vec<Slot>, epoch: u8) -> Election {
        let nonce = if self.is_disabled(Rule::NonceInBody) { 0 } else { state.next_nonce() };
        let old_token = state.store.election.as_ref().map_or(0, |election| election.token);
        let mut token = old_token;
        if queue.first().is_some_and(|head| Some(head) != state.store.queue().first()) {
            let read = if self.is_disabled(Rule::TokenFromSwappedRecord) { 0 } else { old_token };
            token = if self.is_disabled(Rule::RaiseToken) { read.max(1) } else { read + 1 };
            if !self.is_disabled(Rule::EpochInToken) && !self.is_disabled(Rule::ObserveEpoch) {
                token = token.max(epoch * EPOCH_TOKENS);
            }
        }
        Election { nonce, token, queue }
    }

    fn swap_session(&self, state: &mut State, owner: usize, body: Session, epoch: u8, delivery: Delivery) {
        match delivery {
            Delivery::Prompt => self.put_session(state, owner, body),
            Delivery::Delayed => {
                let swap = Swap::Session { owner, expected: state.store.sessions[owner], body };
                state.delayed = Some(Delayed { swap, epoch });
            }
        }
    }

    fn swap_election(&self, state: &mut State, body: Election, epoch: u8, delivery: Delivery) {
        match delivery {
            Delivery::Prompt => self.put_election(state, body),
            Delivery::Delayed => {
                let swap = Swap::Election { expected: state.store.election.clone(), body };
                state.delayed = Some(Delayed { swap, epoch });
            }
        }
    }

    fn execute(&self, state: &mut State) {
        let Some(Delayed { swap, epoch }) = state.delayed.take() else { return };
        if self.is_refused(epoch, state.epoch) {
            return;
        }
        match swap {
            Swap::Session { owner, expected, body } if state.store.sessions[owner] == expected => {
                self.put_session(state, owner, body);
            }
            Swap::Election { expected, body } if state.store.election == expected => {
                self.put_election(state, body);
            }
            _ => {}
        }
    }

    fn put_session(&self, state: &mut State, owner: usize, body: Session) {
        state.store.sessions[owner] = body;
        let timer = &mut state.store.timers[owner];
        *timer = timer.filter(|_| self.keeps_outdated_timers() && matches!(body, Session::Active { .. }));
        if let Some(timer) = timer {
            timer.current = false;
        }
    }

    /// Writes the record. Its head may learn its token from then on.
    fn put_election(&self, state: &mut State, body: Election) {
        if let Some(head) = body.queue.first() {
            let is_new = state.store.queue().first() != Some(head);
            let candidate = &mut state.candidates[head.candidate];
            if is_new && candidate.request == head.request && candidate.phase == Phase::Waiting {
                candidate.token = body.token;
                if self.is_disabled(Rule::CreditSessionSwapsOnly) {
                    candidate.window = self.credit(TTL);
                }
            }
        }
        state.store.election = Some(body);
    }

    /// Drops what has no effect any more, and gives equal states equal numbers.
    pub(crate) fn normalise(&self, state: &mut State) {
        for number in 0..state.candidates.len() {
            let is_executed_or_sent = |beat| {
                let live = |session: &Session| matches!(session, Session::Active { beat: other, .. } if *other == beat);
                let sent = state.delayed.as_ref().is_some_and(|delayed| {
                    matches!(&delayed.swap, Swap::Session { owner, body, .. } if *owner == number && live(body))
                });
                sent || live(&state.store.sessions[number])
            };
            let unanswered = state.candidates[number].unanswered;
            state.candidates[number].unanswered =
                unanswered.filter(|unanswered| is_executed_or_sent(unanswered.beat));
        }
        if state.delayed.as_ref().is_some_and(|delayed| self.is_dead(state, delayed)) {
            state.delayed = None;
        }
        if self.disabled.is_none() {
            state.sort_candidates();
        }
        state.renumber();
    }

    /// Whether a swap can never be executed any more. Without nonces, bodies can come back.
    fn is_dead(&self, state: &State, delayed: &Delayed) -> bool {
        if self.is_refused(delayed.epoch, state.epoch) {
            return true;
        }
        let mut stores = [Some(&state.store), state.replica.as_ref()].into_iter().flatten();
        match &delayed.swap {
            Swap::Session { owner, expected, .. } => !stores.any(|store| store.sessions[*owner] == *expected),
            Swap::Election { expected, .. } => {
                !self.is_disabled(Rule::NonceInBody) && !stores.any(|store| store.election == *expected)
            }
        }
    }
}

/// The candidate considers its withdrawal concluded.
fn conclude(state: &mut State, number: usize) {
    let candidate = &mut state.candidates[number];
    candidate.phase = Phase::Out;
    (candidate.request, candidate.token) = (0, 0);
}
