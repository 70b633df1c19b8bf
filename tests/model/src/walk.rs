//! Random walks through a model, from its initial state.

use std::{sync::Mutex, thread};

use stateright::Expectation;

use crate::explorable::{Explorable, Violation};

/// The steps of all walks together, and of each.
pub(crate) const STEPS: u64 = 20_000_000;
const STEPS_OF_WALK: u64 = 200;

/// The violation that a walk has found, if any. Each walk depends on its number only.
pub(crate) fn find_violation<M: Explorable>(model: &M, threads: usize) -> Option<Violation<M>> {
    let found = Mutex::new(None);
    thread::scope(|scope| {
        for first in 0..threads as u64 {
            let found = &found;
            scope.spawn(move || {
                for seed in (first..STEPS / STEPS_OF_WALK).step_by(threads) {
                    let violation = walk(model, seed);
                    let mut found = found.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if violation.is_some() {
                        *found = violation;
                    }
                    if found.is_some() {
                        return;
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn walk<M: Explorable>(model: &M, seed: u64) -> Option<Violation<M>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut state = random.choice(model.init_states())?;
    let mut properties = model.properties();
    properties.retain(|property| property.expectation == Expectation::Always);
    let (mut possible, mut steps) = (Vec::new(), Vec::new());
    while (steps.len() as u64) < STEPS_OF_WALK {
        possible.clear();
        model.actions(&state, &mut possible);
        let step = random.choice(possible.iter().cloned())?;
        steps.push(step.clone());
        let Some(next) = model.next_state(&state, step) else { continue };
        state = next;
        if let Some(failed) = properties.iter().find(|property| !(property.condition)(model, &state)) {
            return Some((failed.name, steps));
        }
    }
    None
}
