//! Heartbeats on etcd: a keepalive, and a read that confirms it.

use crate::{
    protocol::Protocol,
    rules::Rule,
    state::{Beat, Phase, State},
};

/// One step; the number is that of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A keepalive is sent, and the leader carries it out at once: later would leave less of the window.
    Keep(usize),
    /// The deposed leader takes it.
    KeepAstray(usize),
    /// The keepalive or its answer is lost.
    Lose(usize),
    /// The answer has come, and the read that was sent then is answered.
    Read(usize),
    /// The deposed leader answers the read.
    ReadAstray(usize),
    /// Another member leads, and gives each lease its whole TTL; the one before knows nothing of it.
    ChangeLeader,
    /// The deposed leader hears that it is none.
    HearOfNewLeader,
}

use Step::*;

pub(crate) fn steps(protocol: &Protocol, state: &State) -> Vec<Step> {
    let mut steps = vec![ChangeLeader];
    steps.extend(state.deposed.then_some(HearOfNewLeader));
    for (number, candidate) in state.candidates.iter().enumerate() {
        match candidate.beat {
            Beat::None if candidate.phase != Phase::Out && candidate.left > 0 => {
                steps.extend(candidate.session.expires.map(|_| Keep(number)));
                steps.extend(state.deposed.then_some(KeepAstray(number)));
            }
            Beat::None => {}
            _ => {
                steps.extend([Lose(number), Read(number)]);
                let astray = state.deposed && protocol.is_broken(Rule::ReadFromAQuorum);
                steps.extend(astray.then_some(ReadAstray(number)));
            }
        }
    }
    steps
}

pub(crate) fn apply(protocol: &Protocol, state: &mut State, step: Step) {
    match step {
        Keep(number) => {
            let candidate = &mut state.candidates[number];
            candidate.session.expires = Some(protocol.store.ttl());
            candidate.beat = Beat::Kept { age: 0, old_term: false };
        }
        KeepAstray(number) => {
            // It says in which term it believes itself.
            let old_term = !protocol.is_broken(Rule::NameTheTerm);
            state.candidates[number].beat = Beat::Kept { age: 0, old_term };
        }
        Lose(number) => state.candidates[number].beat = Beat::None,
        Read(number) => {
            let found = state.candidates[number].session.entry > 0;
            confirm(protocol, state, number, found, false);
        }
        // It has all entries that it ever had.
        ReadAstray(number) => confirm(protocol, state, number, true, true),
        ChangeLeader => {
            state.deposed = true;
            for candidate in &mut state.candidates {
                candidate.session.expires = candidate.session.expires.map(|_| protocol.store.ttl());
                if let Beat::Kept { old_term, .. } = &mut candidate.beat {
                    *old_term = true;
                }
            }
        }
        HearOfNewLeader => state.deposed = false,
    }
}

/// The read that is to confirm a keepalive is answered, in an old term or in this one.
fn confirm(protocol: &Protocol, state: &mut State, number: usize, found: bool, read_in_old_term: bool) {
    let Beat::Kept { age, old_term } = state.candidates[number].beat else { return };
    state.candidates[number].beat = Beat::None;
    let age = if protocol.is_broken(Rule::DeadlineFromRequestStart) { 0 } else { age };
    if protocol.is_broken(Rule::ConfirmHeartbeats) {
        protocol.renew(state, number, age);
    } else if !found {
        Protocol::forget_session(state, number);
    } else if old_term == read_in_old_term || protocol.is_broken(Rule::CompareEpochs) {
        protocol.renew(state, number, age);
    }
}
