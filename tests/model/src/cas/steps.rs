//! The steps that are possible in a state.

use super::{
    recipe::{Delays, Recipe},
    rules::Rule,
    state::{Candidate, Phase, Session, State, Swap},
};

/// Whether a swap is executed and answered at once, or at any later time, when its sender may have given it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Prompt,
    Delayed,
}

/// One step. The number identifies a candidate or its session. Steps on other sessions are taken by any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A tick of real time.
    Tick,
    /// Creates its session.
    Open(usize),
    /// Swaps its session for one with a new beat.
    Beat(usize, Delivery),
    /// Learns that its latest beat was executed: by a late answer, or by a conflict and a fresh read.
    Answer(usize),
    /// Appends a slot to the queue.
    Enter(usize, Delivery),
    /// Learns that its slot is, or was, the head.
    Win(usize),
    /// Its work stops, or it gives up.
    Stop(usize),
    /// Removes its slot, or only changes the version.
    Withdraw(usize, Delivery),
    /// A fresh read of the session, with which a wait begins.
    BeginWait(usize),
    /// Swaps a session that has stood still for one that has ended.
    End(usize, Delivery),
    /// Swaps an absent session for one that has ended.
    EndAbsent(usize),
    /// Removes the slot of a session that has ended.
    Purge(usize, Delivery),
    /// Deletes a session that has ended.
    Collect(usize),
    /// The delayed swap is executed, if its version is still current.
    Execute,
    /// The delayed swap is lost.
    Lose,
    /// The store acknowledges writes from now on without replicating them.
    StopReplication,
    /// The replica takes over, with a higher epoch.
    Failover,
    /// Only with a rule disabled: takes an earlier beat, found after a conflict, for the one just sent.
    CreditEarlierBeat(usize),
    /// Only with a rule disabled: shortens the TTL of its session; the answer is lost.
    ShortenTtl(usize),
    /// Only with a rule disabled: a read shows no slot of its request, and it concludes that there will be none.
    ConcludeFromRead(usize),
    /// Only with a rule disabled: enters although its withdrawal has been concluded.
    EnterAfterWithdrawal(usize),
}

use Delivery::*;
use Step::*;

pub(crate) fn steps(recipe: &Recipe, state: &State, steps: &mut Vec<Step>) {
    steps.push(Tick);
    steps.extend(state.delayed.iter().flat_map(|_| [Execute, Lose]));
    if recipe.failover && state.epoch == 0 {
        steps.push(if state.replica.is_some() { Failover } else { StopReplication });
    }
    let opened = state.candidates.iter().filter(|candidate| candidate.phase != Phase::New).count();
    let next = state.candidates.iter().position(|candidate| candidate.phase == Phase::New);
    steps.extend(next.filter(|_| opened < recipe.candidates).map(Open));
    for (number, candidate) in state.candidates.iter().enumerate() {
        if candidate.phase != Phase::New {
            own_steps(recipe, state, number, candidate, steps);
            challengers_steps(recipe, state, number, steps);
        }
    }
}

/// The deliveries that a swap can have now.
fn deliveries(recipe: &Recipe, state: &State, enters: bool) -> &'static [Delivery] {
    let may_be_delayed = match recipe.delays {
        Delays::None => false,
        Delays::EnterAcrossFailover => enters && state.replica.is_some(),
        Delays::All => true,
    };
    if may_be_delayed && state.delayed.is_none() { &[Prompt, Delayed] } else { &[Prompt] }
}

fn own_steps(recipe: &Recipe, state: &State, number: usize, candidate: &Candidate, steps: &mut Vec<Step>) {
    let session = state.store.sessions[number];
    let live_beat = match session {
        Session::Active { beat, .. } => Some(beat),
        _ => None,
    };
    steps.extend(recipe.can_win(state, candidate).then_some(Win(number)));
    steps.extend(matches!(candidate.phase, Phase::Waiting | Phase::Leads).then_some(Stop(number)));
    let executed = candidate.unanswered.is_some_and(|unanswered| live_beat == Some(unanswered.beat));
    steps.extend(executed.then_some(Answer(number)));
    if executed && recipe.is_disabled(Rule::CreditFoundBeat) {
        steps.push(CreditEarlierBeat(number));
    }
    if candidate.phase == Phase::Leaving && recipe.is_disabled(Rule::ConcludeBySwap) {
        steps.push(ConcludeFromRead(number));
    }
    if !recipe.accepts(candidate.epoch, state.epoch) {
        return;
    }
    let revives = session == Session::Ended && recipe.is_disabled(Rule::EndIsPermanent);
    let has_lost = candidate.phase == Phase::Leads && candidate.window == 0;
    let has_slot = state.store.queue().iter().any(|slot| slot.candidate == number);
    if (live_beat.is_some() || revives) && !has_lost {
        steps.extend(deliveries(recipe, state, false).iter().map(|delivery| Beat(number, *delivery)));
    }
    let can_enter = candidate.phase == Phase::Out || (candidate.phase == Phase::Waiting && !has_slot);
    if can_enter {
        steps.extend(deliveries(recipe, state, true).iter().map(|delivery| Enter(number, *delivery)));
    }
    let leaves_early = candidate.phase == Phase::Leads && recipe.is_disabled(Rule::StopWorkBeforeLeaving);
    if candidate.phase == Phase::Leaving || leaves_early {
        steps.extend(deliveries(recipe, state, false).iter().map(|delivery| Withdraw(number, *delivery)));
    }
    if live_beat.is_some() && !has_lost && recipe.is_disabled(Rule::ImmutableTtl) {
        steps.push(ShortenTtl(number));
    }
    if candidate.phase == Phase::Out && recipe.is_disabled(Rule::NoEnterAfterWithdrawal) {
        steps.push(EnterAfterWithdrawal(number));
    }
}

/// What any process can do about a session and its slot.
fn challengers_steps(recipe: &Recipe, state: &State, number: usize, steps: &mut Vec<Step>) {
    let session = state.store.sessions[number];
    let timer = state.store.timers[number];
    let waited = timer.is_some_and(|timer| {
        let current = timer.current || recipe.is_disabled(Rule::FreshReadStartsTimer);
        matches!(session, Session::Active { ttl, .. } if current && timer.age >= recipe.wait(ttl))
    });
    let has_slot = state.store.queue().iter().any(|slot| slot.candidate == number);
    let can_look = matches!(session, Session::Active { .. })
        && timer.is_none_or(|timer| !timer.current && !recipe.is_disabled(Rule::FreshReadStartsTimer));
    steps.extend(can_look.then_some(BeginWait(number)));
    steps.extend((session == Session::Absent && has_slot).then_some(EndAbsent(number)));
    let deletable = session == Session::Ended
        || (matches!(session, Session::Active { .. }) && recipe.is_disabled(Rule::EndBeforeDelete));
    steps.extend(deletable.then_some(Collect(number)));
    let end_was_sent = state.delayed.as_ref().is_some_and(|delayed| {
        matches!(delayed.swap, Swap::Session { owner, body: Session::Ended, .. } if owner == number)
    });
    let purgeable = session == Session::Ended
        || recipe.is_disabled(Rule::AbsentIsNotEnded)
        || (waited && recipe.is_disabled(Rule::EndSessionBeforePurge))
        || (end_was_sent && recipe.is_disabled(Rule::ReadEndedBeforePurge));
    if waited {
        steps.extend(deliveries(recipe, state, false).iter().map(|delivery| End(number, *delivery)));
    }
    if has_slot && purgeable {
        steps.extend(deliveries(recipe, state, false).iter().map(|delivery| Purge(number, *delivery)));
    }
}
