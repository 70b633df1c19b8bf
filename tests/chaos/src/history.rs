//! The history that all candidates report, and the register that they write to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tenure::{BootClock, Clock as _, Fence, FencingToken};
use tenure_testkit::history::{Event, EventKind};

use crate::message::Message;

/// The events of a run, and when each candidate was last observed to lead. Clones share their state.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    registers: BTreeMap<String, Fence>,
    /// When the candidate in a slot was last observed to lead an election.
    last_led: BTreeMap<(usize, String), u64>,
    elected_too_late: u64,
    /// Errors of campaigns. No campaign should fail here.
    failures: BTreeSet<String>,
}

impl History {
    /// Records a message of the candidate in `slot`.
    pub(crate) fn record(&self, slot: usize, message: Message) {
        let mut state = self.lock();
        match message {
            Message::Event(event) => {
                if let EventKind::Leads { .. } | EventKind::Worked = event.kind {
                    let last = state.last_led.entry((slot, event.election.clone())).or_default();
                    *last = event.at.max(*last);
                }
                state.events.push(event);
            }
            Message::Write { election, token } => {
                let Some(fenced) = FencingToken::new(token) else { return };
                let register = state.registers.entry(election.clone()).or_default();
                let what =
                    if register.admit(fenced).is_ok() { EventKind::Accepted } else { EventKind::Refused };
                let at = BootClock.now().as_nanos();
                state.events.push(Event { at, election, token, kind: what });
            }
            Message::ElectedTooLate { .. } => state.elected_too_late += 1,
            Message::CampaignFailed(error) => {
                println!("a campaign of the candidate in slot {slot} failed: {error}");
                state.failures.insert(error);
            }
        }
    }

    /// When the candidate in `slot` was last observed to lead `election`; zero if never.
    pub(crate) fn last_led(&self, slot: usize, election: &str) -> u64 {
        self.lock().last_led.get(&(slot, election.to_owned())).copied().unwrap_or(0)
    }

    /// When any candidate was last observed to lead `election`; zero if never.
    pub(crate) fn last_led_by_any(&self, election: &str) -> u64 {
        let state = self.lock();
        let led = state.last_led.iter().filter(|((_, of), _)| of == election);
        led.map(|(_, at)| *at).max().unwrap_or(0)
    }

    /// All events.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// How many candidates were elected after their term was over.
    pub(crate) fn elected_too_late(&self) -> u64 {
        self.lock().elected_too_late
    }

    /// The distinct errors of campaigns.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.lock().failures.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
