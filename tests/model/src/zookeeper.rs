//! Heartbeats on ZooKeeper: writes, each confirmed by a later one.
//!
//! Only the first candidate's are told in full: its clock may be slow, and it may be connected to a follower, which
//! tells the leader of whom it has heard when the leader asks. The others come, wait, lead, and vanish at any
//! moment, which is all that the first can notice of them: whoever breaks a promise may be taken for the first.

use crate::{
    protocol::Protocol,
    rules::Rule,
    state::{Asked, Beat, Phase, Route, State, Unconfirmed},
};

/// One step, of the first candidate or between it and the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Sends a heartbeat.
    Send,
    /// The heartbeat or its answer is lost.
    Lose,
    /// The leader carries it out.
    Decide,
    /// The follower answers it though it is cut off: a ping, which nobody else hears of.
    AnswerAstray,
    /// The answer comes.
    Answer,
    /// The sync after it is answered.
    Sync,
    /// The follower hears the leader's question, and tells of whom it has heard.
    Tell,
    /// The leader hears it.
    Hear,
    /// The follower is cut off from the leader: what is under way between them is lost.
    Cut,
    /// It is a follower again, and closes its clients' connections.
    Mend,
    /// Connects to the follower, or to the leader.
    Move,
}

use Step::*;

/// How many questions can be under way before the follower takes the leader for dead. More would be of no use: in
/// so many ticks a heartbeat is worth nothing any more.
const MOST_QUESTIONS: u8 = 3;

/// Whether time can pass: the leader asks in each tick.
pub(crate) fn can_tick(state: &State) -> bool {
    !state.route.by_follower || state.route.cut || state.route.questions < MOST_QUESTIONS
}

/// The leader asks the follower of whom it has heard.
pub(crate) fn tick(state: &mut State) {
    if state.route.by_follower && !state.route.cut {
        state.route.questions += 1;
    }
}

pub(crate) fn steps(protocol: &Protocol, state: &State) -> Vec<Step> {
    let (candidate, route) = (&state.candidates[0], &state.route);
    let lasts = candidate.session.expires.is_some();
    let reaches = !(route.by_follower && route.cut);
    let mut steps = Vec::new();
    let mut can = |step: Step, now: bool| {
        if now {
            steps.push(step);
        }
    };
    match candidate.beat {
        Beat::None => can(Send, candidate.phase != Phase::Out && candidate.left > 0),
        Beat::Asked(_) => {
            can(Decide, reaches && lasts);
            can(AnswerAstray, !reaches && protocol.is_broken(Rule::HeartbeatByWrite));
        }
        Beat::Decided { .. } => can(Answer, reaches),
        _ => can(Sync, reaches && lasts),
    }
    can(Lose, candidate.beat != Beat::None);
    can(Tell, reaches && route.questions > 0);
    can(Hear, reaches && route.told);
    can(if route.cut { Mend } else { Cut }, true);
    // A session is resumed where there is one, and nowhere that is cut off.
    can(Move, lasts && (route.by_follower || !route.cut));
    steps
}

pub(crate) fn apply(protocol: &Protocol, state: &mut State, step: Step) {
    match step {
        Send => send(protocol, state),
        Lose => state.candidates[0].beat = Beat::None,
        Decide => decide(protocol, state),
        AnswerAstray => {
            if let Beat::Asked(sent) = state.candidates[0].beat {
                answered(protocol, state, sent);
            }
        }
        Answer => answer(protocol, state),
        Sync => {
            if let Beat::Syncing(sent) = state.candidates[0].beat {
                hear(protocol, state);
                answered(protocol, state, sent);
            }
        }
        Tell => tell(state, 1),
        Hear => hear(protocol, state),
        Cut => {
            let by_follower = state.route.by_follower;
            state.route = Route { cut: true, by_follower, ..Route::default() };
            // What the leader has carried out by now is answered to nobody.
            if by_follower && !matches!(state.candidates[0].beat, Beat::Asked(_)) {
                state.candidates[0].beat = Beat::None;
            }
        }
        Mend => {
            if state.route.by_follower {
                connect(protocol, state, false);
            }
            state.route = Route::default();
        }
        Move => {
            let cut = state.route.cut;
            connect(protocol, state, !state.route.by_follower);
            state.route.cut = cut;
        }
    }
}

fn send(protocol: &Protocol, state: &mut State) {
    let candidate = &mut state.candidates[0];
    let late_enough = match candidate.unconfirmed {
        None => false,
        Some(_) if protocol.is_broken(Rule::KeepHeartbeatGap) => true,
        Some(earlier) if protocol.is_broken(Rule::CountTheGapFromTheAnswer) => earlier.age > 0,
        Some(earlier) => earlier.gap,
    };
    candidate.beat = Beat::Asked(Asked { age: 0, late_enough });
}

/// On one connection everything comes in the order in which it was sent.
fn decide(protocol: &Protocol, state: &mut State) {
    let Beat::Asked(sent) = state.candidates[0].beat else { return };
    if state.route.by_follower {
        hear(protocol, state);
        state.route.heard = true;
    } else {
        state.candidates[0].session.expires = Some(protocol.store.ttl());
    }
    state.candidates[0].beat = Beat::Decided { sent, behind: state.route.questions };
}

fn answer(protocol: &Protocol, state: &mut State) {
    let Beat::Decided { sent, behind } = state.candidates[0].beat else { return };
    tell(state, behind);
    if protocol.is_broken(Rule::SyncAfterWriting) {
        answered(protocol, state, sent);
    } else {
        state.candidates[0].beat = Beat::Syncing(sent);
    }
}

fn tell(state: &mut State, questions: u8) {
    if questions == 0 {
        return;
    }
    let route = &mut state.route;
    route.questions -= questions;
    route.told |= std::mem::take(&mut route.heard);
    if let Beat::Decided { behind, .. } = &mut state.candidates[0].beat {
        *behind = behind.saturating_sub(questions);
    }
}

fn hear(protocol: &Protocol, state: &mut State) {
    if std::mem::take(&mut state.route.told) {
        touch(protocol, state);
    }
}

fn touch(protocol: &Protocol, state: &mut State) {
    let session = &mut state.candidates[0].session;
    session.expires = session.expires.map(|_| protocol.store.ttl());
}

/// The session is resumed over another connection: the leader hears of that in any case.
fn connect(protocol: &Protocol, state: &mut State, by_follower: bool) {
    state.candidates[0].beat = Beat::None;
    state.route = Route { by_follower, ..Route::default() };
    touch(protocol, state);
}

/// A heartbeat has its answer; it may confirm the one before, and waits to be confirmed.
fn answered(protocol: &Protocol, state: &mut State, sent: Asked) {
    let candidate = &mut state.candidates[0];
    let age = if protocol.is_broken(Rule::DeadlineFromRequestStart) { 0 } else { sent.age };
    candidate.beat = Beat::None;
    if protocol.is_broken(Rule::ConfirmHeartbeats) {
        return protocol.renew(state, 0, age);
    }
    let answered = Some(Unconfirmed { age, gap: false });
    match candidate.unconfirmed {
        Some(earlier) if sent.late_enough => {
            candidate.unconfirmed = answered;
            protocol.renew(state, 0, earlier.age);
        }
        Some(_) => {}
        None => candidate.unconfirmed = answered,
    }
}
