//! Heartbeats on etcd: a keepalive, and a read that confirms it.

use crate::{
    protocol::Protocol,
    rules::Rule,
    state::{Heartbeat, Phase, State},
};

/// One step. The number identifies a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A keepalive is sent, and the leader processes it at once; a later time would shorten the window.
    Keepalive(usize),
    /// A keepalive is sent, and the deposed leader answers it.
    KeepaliveAtDeposed(usize),
    /// The keepalive or its answer is lost.
    Lose(usize),
    /// The answer has arrived, and the confirming read is answered.
    Read(usize),
    /// The deposed leader answers the confirming read.
    ReadAtDeposed(usize),
    /// Another member is elected, and gives each lease its whole TTL. The previous leader does not know it.
    ChangeLeader,
    /// The deposed leader learns of the new one.
    LearnOfNewLeader,
}

use Step::*;

pub(crate) fn steps(protocol: &Protocol, state: &State) -> Vec<Step> {
    let mut steps = vec![ChangeLeader];
    steps.extend(state.deposed.then_some(LearnOfNewLeader));
    for (number, candidate) in state.candidates.iter().enumerate() {
        match candidate.heartbeat {
            Heartbeat::None if candidate.phase != Phase::Out && candidate.ticks_left > 0 => {
                steps.extend(candidate.session.expires.map(|_| Keepalive(number)));
                steps.extend(state.deposed.then_some(KeepaliveAtDeposed(number)));
            }
            Heartbeat::None => {}
            _ => {
                steps.extend([Lose(number), Read(number)]);
                let astray = state.deposed && protocol.is_disabled(Rule::QuorumRead);
                steps.extend(astray.then_some(ReadAtDeposed(number)));
            }
        }
    }
    steps
}

pub(crate) fn apply(protocol: &Protocol, state: &mut State, step: Step) {
    match step {
        Keepalive(number) => {
            let candidate = &mut state.candidates[number];
            candidate.session.expires = Some(protocol.store.ttl());
            candidate.heartbeat = Heartbeat::Renewed { age: 0, old_term: false };
        }
        KeepaliveAtDeposed(number) => {
            // Its answer has the term that it knows.
            let old_term = !protocol.is_disabled(Rule::ReportTerm);
            state.candidates[number].heartbeat = Heartbeat::Renewed { age: 0, old_term };
        }
        Lose(number) => state.candidates[number].heartbeat = Heartbeat::None,
        Read(number) => {
            let found = state.candidates[number].session.entry > 0;
            confirm(protocol, state, number, found, false);
        }
        // It still has the entry.
        ReadAtDeposed(number) => confirm(protocol, state, number, true, true),
        ChangeLeader => {
            state.deposed = true;
            for candidate in &mut state.candidates {
                candidate.session.expires = candidate.session.expires.map(|_| protocol.store.ttl());
                if let Heartbeat::Renewed { old_term, .. } = &mut candidate.heartbeat {
                    *old_term = true;
                }
            }
        }
        LearnOfNewLeader => state.deposed = false,
    }
}

/// The confirming read is answered, in an old term or in the current one.
fn confirm(protocol: &Protocol, state: &mut State, number: usize, found: bool, read_in_old_term: bool) {
    let Heartbeat::Renewed { age, old_term } = state.candidates[number].heartbeat else { return };
    state.candidates[number].heartbeat = Heartbeat::None;
    let age = if protocol.is_disabled(Rule::DeadlineFromRequestStart) { 0 } else { age };
    if protocol.is_disabled(Rule::ConfirmHeartbeats) {
        protocol.renew(state, number, age);
    } else if !found {
        Protocol::forget_session(state, number);
    } else if old_term == read_in_old_term || protocol.is_disabled(Rule::CompareEpochs) {
        protocol.renew(state, number, age);
    }
}
