//! Heartbeats on ZooKeeper: writes, each proven by later ones.
//!
//! Only the heartbeats of the first candidate are modelled: its clock may be slow, and it may be connected to a follower, which reports
//! touched sessions to the leader when the leader pings it. The others enter, wait, lead and vanish at any time, which is all
//! that the first can observe of them. Any candidate that breaks a promise can be taken as the first.

use crate::{
    protocol::Protocol,
    rules::Rule,
    state::{DuePing, Heartbeat, Phase, Route, SentHeartbeat, State, Unconfirmed},
};

/// One step, of the first candidate or between it and the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Sends a heartbeat.
    Send,
    /// Reads, which touches the session, and is answered at once by its server, even one that is cut off.
    Read,
    /// The heartbeat or its answer is lost.
    Lose,
    /// The leader commits it.
    Commit,
    /// The follower answers it although it is cut off, as it answers a ping.
    AnswerWhileCutOff,
    /// The answer arrives.
    Answer,
    /// The first unproven heartbeat is forgotten, so that any later one can be the one that is proven next.
    Forget,
    /// The leader sends a ping that is overdue.
    Ping,
    /// The follower receives a ping, and reports touched sessions.
    ReportTouches,
    /// The leader receives the report.
    ReceiveReport,
    /// The follower is cut off from the leader; messages between them are lost.
    CutOff,
    /// The follower rejoins, and closes its clients' connections.
    Restore,
    /// The candidate reconnects to the other server.
    Move,
}

use Step::*;

/// The largest number of unanswered pings; then the follower considers the leader dead. More would change nothing, because a heartbeat
/// is useless after so many ticks.
const MAX_PINGS: u8 = 3;

/// Whether time can pass, and whether the leader can stall before the ping that it sends in each tick.
pub(crate) fn ticks(state: &State) -> &'static [bool] {
    let route = &state.route;
    if !route.via_follower || route.cut_off {
        &[false]
    } else if route.pings < MAX_PINGS {
        &[false, true]
    } else {
        &[]
    }
}

/// The leader pings the follower, unless it stalls.
pub(crate) fn tick(state: &mut State, stalled: bool) {
    let route = &mut state.route;
    match stalled {
        true if route.due_ping == DuePing::None => route.due_ping = DuePing::Due,
        true => {}
        false if route.via_follower && !route.cut_off => ping(route),
        false => {}
    }
}

fn ping(route: &mut Route) {
    route.pings += 1;
    route.due_ping = DuePing::None;
}

pub(crate) fn steps(protocol: &Protocol, state: &State) -> Vec<Step> {
    let (candidate, route) = (&state.candidates[0], &state.route);
    let session_exists = candidate.session.expires.is_some();
    let is_connected = !(route.via_follower && route.cut_off);
    let mut steps = Vec::new();
    let mut can = |step: Step, now: bool| {
        if now {
            steps.push(step);
        }
    };
    match candidate.heartbeat {
        Heartbeat::None => {
            can(Send, candidate.phase != Phase::Out && candidate.ticks_left > 0);
            can(Read, session_exists && candidate.ticks_left > 0 && candidate.unconfirmed.is_none());
        }
        Heartbeat::SentHeartbeat(_) => {
            can(Commit, is_connected && session_exists);
            can(AnswerWhileCutOff, !is_connected && protocol.is_disabled(Rule::HeartbeatByWrite));
        }
        Heartbeat::Committed { .. } => can(Answer, is_connected),
        Heartbeat::Renewed { .. } => {}
    }
    can(Lose, candidate.heartbeat != Heartbeat::None);
    can(Forget, candidate.unconfirmed.is_some());
    can(Ping, is_connected && route.due_ping != DuePing::None && route.pings < MAX_PINGS);
    can(ReportTouches, is_connected && route.pings > 0);
    can(ReceiveReport, is_connected && route.touch_reported);
    can(if route.cut_off { Restore } else { CutOff }, true);
    // A session can be resumed only at a server that is not cut off.
    can(Move, session_exists && (route.via_follower || !route.cut_off));
    steps
}

pub(crate) fn apply(protocol: &Protocol, state: &mut State, step: Step) {
    match step {
        Send => send(protocol, state),
        Read => read(protocol, state),
        Lose => state.candidates[0].heartbeat = Heartbeat::None,
        Commit => commit(protocol, state),
        AnswerWhileCutOff => {
            if let Heartbeat::SentHeartbeat(sent) = state.candidates[0].heartbeat {
                answered(protocol, state, sent);
            }
        }
        Answer => answer(protocol, state),
        Forget => state.candidates[0].unconfirmed = None,
        Ping => ping(&mut state.route),
        ReportTouches => report_touches(state, 1),
        ReceiveReport => receive_report(protocol, state),
        CutOff => {
            let via_follower = state.route.via_follower;
            state.route = Route { cut_off: true, via_follower, ..Route::default() };
            // The answers of committed heartbeats are lost.
            if via_follower && !matches!(state.candidates[0].heartbeat, Heartbeat::SentHeartbeat(_)) {
                state.candidates[0].heartbeat = Heartbeat::None;
            }
        }
        Restore => {
            if state.route.via_follower {
                connect(protocol, state, false);
            }
            state.route = Route::default();
        }
        Move => {
            let cut_off = state.route.cut_off;
            connect(protocol, state, !state.route.via_follower);
            state.route.cut_off = cut_off;
        }
    }
}

fn send(protocol: &Protocol, state: &mut State) {
    let candidate = &mut state.candidates[0];
    let counts = match candidate.unconfirmed {
        None => false,
        Some(_) if protocol.is_disabled(Rule::KeepHeartbeatGap) => true,
        Some(earlier) if protocol.is_disabled(Rule::MeasureGapFromAnswer) => earlier.age > 0,
        Some(earlier) => earlier.gap,
    };
    candidate.heartbeat = Heartbeat::SentHeartbeat(SentHeartbeat { age: 0, counts });
}

fn read(protocol: &Protocol, state: &mut State) {
    if !state.route.via_follower {
        touch(protocol, state);
    } else if !state.route.cut_off {
        state.route.touch_pending = true;
    }
    state.candidates[0].unconfirmed = Some(Unconfirmed { age: 0, gap: false, counted: 0 });
}

/// A connection keeps the order of messages.
fn commit(protocol: &Protocol, state: &mut State) {
    let Heartbeat::SentHeartbeat(sent) = state.candidates[0].heartbeat else { return };
    if state.route.via_follower {
        receive_report(protocol, state);
        state.route.touch_pending = true;
        match state.route.due_ping {
            DuePing::None => {}
            DuePing::Due => state.route.due_ping = DuePing::AfterCommit,
            DuePing::AfterCommit => ping(&mut state.route),
        }
    } else {
        state.candidates[0].session.expires = Some(protocol.store.ttl());
    }
    state.candidates[0].heartbeat = Heartbeat::Committed { sent, pings_ahead: state.route.pings };
}

fn answer(protocol: &Protocol, state: &mut State) {
    let Heartbeat::Committed { sent, pings_ahead } = state.candidates[0].heartbeat else { return };
    report_touches(state, pings_ahead);
    answered(protocol, state, sent);
}

fn report_touches(state: &mut State, pings: u8) {
    if pings == 0 {
        return;
    }
    let route = &mut state.route;
    route.pings -= pings;
    route.touch_reported |= std::mem::take(&mut route.touch_pending);
    if let Heartbeat::Committed { pings_ahead, .. } = &mut state.candidates[0].heartbeat {
        *pings_ahead = pings_ahead.saturating_sub(pings);
    }
}

fn receive_report(protocol: &Protocol, state: &mut State) {
    if std::mem::take(&mut state.route.touch_reported) {
        touch(protocol, state);
    }
}

fn touch(protocol: &Protocol, state: &mut State) {
    let session = &mut state.candidates[0].session;
    session.expires = session.expires.map(|_| protocol.store.ttl());
}

/// The session is resumed over another connection, which always reaches the leader.
fn connect(protocol: &Protocol, state: &mut State, via_follower: bool) {
    state.candidates[0].heartbeat = Heartbeat::None;
    state.route = Route { via_follower, ..Route::default() };
    touch(protocol, state);
}

/// A heartbeat is answered. It may complete the proof of an earlier one, and waits for its own.
fn answered(protocol: &Protocol, state: &mut State, sent: SentHeartbeat) {
    let candidate = &mut state.candidates[0];
    let age = if protocol.is_disabled(Rule::DeadlineFromRequestStart) { 0 } else { sent.age };
    candidate.heartbeat = Heartbeat::None;
    if protocol.is_disabled(Rule::ConfirmHeartbeats) {
        return protocol.renew(state, 0, age);
    }
    let needed = if protocol.is_disabled(Rule::CountSecondHeartbeat) {
        1
    } else if protocol.is_disabled(Rule::CountLaterHeartbeats) {
        2
    } else {
        3
    };
    let answered = Some(Unconfirmed { age, gap: false, counted: 0 });
    match &mut candidate.unconfirmed {
        Some(earlier) if sent.counts => {
            earlier.counted += 1;
            if earlier.counted == needed {
                let age = earlier.age;
                candidate.unconfirmed = answered;
                protocol.renew(state, 0, age);
            }
        }
        Some(_) => {}
        None => candidate.unconfirmed = answered,
    }
}
