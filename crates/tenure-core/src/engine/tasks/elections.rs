//! The latest term in each election, and the values of an elector's candidates there, for the threads of the application.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
};

use super::{candidate_entry::CandidateEntry, entry_value::CandidateValue, term::Term};
use crate::{
    ElectionName,
    sync::{Mutex, MutexGuard},
};

/// The elections in which an elector takes part.
#[derive(Debug, Default)]
pub(crate) struct Elections(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    by_name: HashMap<ElectionName, ElectionSlot>,
    /// The number of the value that was set last.
    last_value: u64,
}

/// The place of one elector in an election: it has at most one candidate there at a time.
#[derive(Debug, Default)]
struct ElectionSlot {
    /// The latest term.
    term: Weak<Term>,
    /// The entry of the candidate that waits.
    waiting: Weak<CandidateEntry>,
    /// The value that was set for the elector's candidates.
    value: Option<Box<CandidateValue>>,
}

impl ElectionSlot {
    fn is_unused(&self) -> bool {
        self.term.strong_count() == 0 && self.waiting.strong_count() == 0 && self.value.is_none()
    }

    /// The entry of the elector's candidate.
    fn entry(&self) -> Option<Arc<CandidateEntry>> {
        self.waiting.upgrade().or_else(|| {
            let term = self.term.upgrade().filter(|term| term.reason().is_none())?;
            Some(Arc::new(term.candidate_entry()))
        })
    }
}

impl Elections {
    /// Records `term` as the latest one in its election.
    pub(crate) fn set_term(&self, term: &Arc<Term>) {
        self.slots().with_slot(term.election(), |slot| slot.term = Arc::downgrade(term));
    }

    /// The latest term in `election`; it may have ended.
    pub(crate) fn term(&self, election: &ElectionName) -> Option<Arc<Term>> {
        self.slots().by_name.get(election)?.term.upgrade()
    }

    /// A value that counts from now on, for one campaign.
    pub(crate) fn numbered(&self, value: Arc<[u8]>) -> CandidateValue {
        self.slots().numbered(value)
    }

    /// Sets the value of the elector's candidates in `election`. Returns the entry of the one that takes part, and the number of
    /// the value there: it has to be stored.
    pub(crate) fn set_value(
        &self,
        election: &ElectionName,
        value: Arc<[u8]>,
    ) -> Option<(Arc<CandidateEntry>, u64)> {
        let mut slots = self.slots();
        let numbered = slots.numbered(Arc::clone(&value));
        slots.with_slot(election, |slot| {
            slot.value = Some(Box::new(numbered));
            // Under the lock of the slots: entries get values in the order in which they were set.
            let entry = slot.entry()?;
            let number = entry.registered.value().set(value);
            Some((entry, number))
        })
    }

    /// The value for a new entry of a campaign that began with `own`: whichever was set last.
    pub(crate) fn latest_value(&self, election: &ElectionName, own: &CandidateValue) -> CandidateValue {
        let slots = self.slots();
        let set = slots.by_name.get(election).and_then(|slot| slot.value.as_deref());
        set.filter(|set| set.number > own.number).unwrap_or(own).clone()
    }

    /// Records the entry of a candidate, whose request had the value with this number. True when a later one was set
    /// meanwhile: it has to be stored.
    pub(crate) fn set_waiting(&self, entry: &Arc<CandidateEntry>, number: u64) -> bool {
        self.slots().with_slot(&entry.request.election, |slot| {
            slot.waiting = Arc::downgrade(entry);
            let later = slot.value.as_deref().filter(|set| set.number > number);
            later.map(|set| entry.registered.value().set(Arc::clone(&set.value))).is_some()
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn numbered(&mut self, value: Arc<[u8]>) -> CandidateValue {
        self.last_value += 1;
        CandidateValue { value, number: self.last_value }
    }

    fn with_slot<T>(&mut self, election: &ElectionName, change: impl FnOnce(&mut ElectionSlot) -> T) -> T {
        let slots = &mut self.by_name;
        if let Some(slot) = slots.get_mut(election) {
            return change(slot);
        }
        // Only when the map would grow: with thousands of elections a scan at each call would be most of the work.
        if slots.len() == slots.capacity() {
            slots.retain(|_, slot| !slot.is_unused());
        }
        change(slots.entry(election.clone()).or_default())
    }
}
