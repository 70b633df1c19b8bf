//! The slot of an elector in each election.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
};

use tokio::sync::Semaphore;

use super::term::Term;
use crate::{ElectionName, sync::Mutex};

/// The elections in which an elector takes part.
#[derive(Debug, Default)]
pub(crate) struct Elections(Mutex<HashMap<ElectionName, ElectionSlot>>);

/// The place of one elector in an election: it has at most one candidate there at a time.
#[derive(Debug, Default)]
struct ElectionSlot {
    /// Has one permit, which the candidate holds.
    semaphore: Weak<Semaphore>,
    /// The latest term.
    term: Weak<Term>,
}

impl ElectionSlot {
    fn is_unused(&self) -> bool {
        self.semaphore.strong_count() == 0 && self.term.strong_count() == 0
    }
}

impl Elections {
    /// The semaphore whose one permit admits a candidate to `election`.
    pub(crate) fn semaphore(&self, election: &ElectionName) -> Arc<Semaphore> {
        self.with_slot(election, |slot| {
            slot.semaphore.upgrade().unwrap_or_else(|| {
                let semaphore = Arc::new(Semaphore::new(1));
                slot.semaphore = Arc::downgrade(&semaphore);
                semaphore
            })
        })
    }

    /// Records `term` as the latest one in its election.
    pub(crate) fn set_term(&self, term: &Arc<Term>) {
        self.with_slot(term.election(), |slot| slot.term = Arc::downgrade(term));
    }

    /// The latest term in `election`; it may have ended.
    pub(crate) fn term(&self, election: &ElectionName) -> Option<Arc<Term>> {
        let elections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        elections.get(election)?.term.upgrade()
    }

    fn with_slot<T>(&self, election: &ElectionName, change: impl FnOnce(&mut ElectionSlot) -> T) -> T {
        let mut elections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = elections.get_mut(election) {
            return change(slot);
        }
        // Only when the map would grow: with thousands of elections a scan at each call would be most of the work.
        if elections.len() == elections.capacity() {
            elections.retain(|_, slot| !slot.is_unused());
        }
        change(elections.entry(election.clone()).or_default())
    }
}
