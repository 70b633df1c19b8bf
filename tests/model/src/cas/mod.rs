//! The recipe for stores that can compare and swap: sessions and an election record, which candidates and challengers swap.
//!
//! Written from the recipe's rules, not from an implementation of them.

mod recipe;
mod rules;
mod state;
mod steps;

use stateright::{Model, Property};

pub(crate) use recipe::Recipe;
pub(crate) use rules::Rule;

use recipe::Delays;
use state::{Candidate, Phase, Session, State};
use steps::Step;

/// What can happen in each exhaustive search. A rule is disabled in each in turn, with or without a failover, until a property fails.
pub(crate) const SCOPES: [(&str, Recipe); 4] = [
    ("three candidates", Recipe { candidates: 3, delays: Delays::None, failover: false, disabled: None }),
    (
        "two candidates, a delayed swap",
        Recipe { candidates: 2, delays: Delays::All, failover: false, disabled: None },
    ),
    (
        "two candidates, a failover",
        Recipe { candidates: 2, delays: Delays::None, failover: true, disabled: None },
    ),
    (
        "two candidates, an enter delayed across a failover",
        Recipe { candidates: 2, delays: Delays::EnterAcrossFailover, failover: true, disabled: None },
    ),
];

/// What random walks cover: too much for an exhaustive search.
pub(crate) const WALKED: (&str, Recipe) = (
    "three candidates, a delayed swap, a failover",
    Recipe { candidates: 3, delays: Delays::All, failover: true, disabled: None },
);

fn leads(candidate: &Candidate) -> bool {
    candidate.phase == Phase::Leads && candidate.window > 0
}

/// Whether the queue has a slot of a request that was withdrawn, under a session that is live.
fn has_late_entry(state: &State) -> bool {
    state.store.queue().iter().any(|slot| {
        let candidate = &state.candidates[slot.candidate];
        candidate.request != slot.request
            && candidate.epoch == state.epoch
            && matches!(state.store.sessions[slot.candidate], Session::Active { .. })
    })
}

impl Model for Recipe {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if !state.stale_token {
            steps::steps(self, state, steps);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        self.apply(&mut next, step);
        self.normalise(&mut next);
        Some(next).filter(|next| next != state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("S1: one leads at a time", |_: &Self, state: &State| {
                state.candidates.iter().filter(|candidate| leads(candidate)).count() <= 1
            }),
            Property::always("S2: each term's token is higher than any before", |_: &Self, state: &State| {
                !state.stale_token
            }),
            Property::always("no slot of a withdrawn request", |_: &Self, state: &State| {
                !has_late_entry(state)
            }),
            // These check that the model is not vacuous.
            Property::sometimes("all candidates take part, and one leads", |model: &Self, state: &State| {
                state.store.queue().len() == model.candidates && state.candidates.iter().any(leads)
            }),
            Property::sometimes("one leads after a session was timed out", |_: &Self, state: &State| {
                state.candidates.iter().any(leads) && state.store.sessions.contains(&Session::Ended)
            }),
            Property::sometimes("the next is elected after a resignation", |_: &Self, state: &State| {
                let live =
                    |candidate: &usize| matches!(state.store.sessions[*candidate], Session::Active { .. });
                let is_next = |candidate: &Candidate| candidate.token > state.highest_token;
                state.highest_token > 0
                    && state.candidates.iter().any(is_next)
                    && (0..self::state::CANDIDATES).filter(live).count() > 1
                    && !state.store.sessions.contains(&Session::Ended)
            }),
        ];
        if self.failover {
            properties.push(Property::sometimes("one leads after a failover", |_: &Self, state: &State| {
                state.candidates.iter().any(|candidate| candidate.epoch > 0 && leads(candidate))
            }));
            properties.push(Property::sometimes(
                "one leads whose entry is lost",
                |_: &Self, state: &State| {
                    state.epoch > 0 && state.store.queue().is_empty() && state.candidates.iter().any(leads)
                },
            ));
        }
        properties
    }
}
