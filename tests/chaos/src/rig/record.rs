//! What all candidates have told, and the register that they write to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tenure::{BootClock, Clock as _, Fence, FencingToken};
use tenure_testkit::history::{Event, EventKind};

use crate::line::Line;

/// The history, and who led when for the last time. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    registers: BTreeMap<String, Fence>,
    /// By place and election: when its candidate was last seen to lead.
    led: BTreeMap<(usize, String), u64>,
    missed: u64,
    /// Errors of campaigns: nothing here is for good.
    refused: BTreeSet<String>,
}

impl Record {
    /// Takes what the candidate at `place` has told.
    pub(crate) fn take(&self, place: usize, line: Line) {
        let mut state = self.lock();
        match line {
            Line::Saw(event) => {
                if let EventKind::Leads { .. } | EventKind::Worked = event.kind {
                    let last = state.led.entry((place, event.election.clone())).or_default();
                    *last = event.at.max(*last);
                }
                state.events.push(event);
            }
            Line::Write { election, token } => {
                let Some(fenced) = FencingToken::new(token) else { return };
                let register = state.registers.entry(election.clone()).or_default();
                let kind =
                    if register.admit(fenced).is_ok() { EventKind::Accepted } else { EventKind::Refused };
                let at = BootClock.now().as_nanos();
                state.events.push(Event { at, election, token, kind });
            }
            Line::Missed { .. } => state.missed += 1,
            Line::Refused(error) => {
                println!("the candidate at place {place} was refused: {error}");
                state.refused.insert(error);
            }
        }
    }

    /// When the candidate at `place` was last seen to lead in `election`.
    pub(crate) fn last_led(&self, place: usize, election: &str) -> u64 {
        self.lock().led.get(&(place, election.to_owned())).copied().unwrap_or(0)
    }

    /// When anybody was last seen to lead in `election`.
    pub(crate) fn last_leader(&self, election: &str) -> u64 {
        let state = self.lock();
        let led = state.led.iter().filter(|((_, of), _)| of == election);
        led.map(|(_, at)| *at).max().unwrap_or(0)
    }

    /// The whole history.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// How many were elected too late to lead.
    pub(crate) fn missed(&self) -> u64 {
        self.lock().missed
    }

    /// Why campaigns were refused.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.lock().refused.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
