//! The latest term in each election, for the threads of the application.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
};

use super::term::Term;
use crate::{ElectionName, sync::Mutex};

/// The elections in which an elector leads or has led.
#[derive(Debug, Default)]
pub(crate) struct Elections(Mutex<HashMap<ElectionName, Weak<Term>>>);

impl Elections {
    /// Records `term` as the latest one in its election.
    pub(crate) fn set_term(&self, term: &Arc<Term>) {
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only when the map would grow: with thousands of elections a scan at each call would be most of the work.
        if terms.len() == terms.capacity() && !terms.contains_key(term.election()) {
            terms.retain(|_, term| term.strong_count() > 0);
        }
        terms.insert(term.election().clone(), Arc::downgrade(term));
    }

    /// The latest term in `election`; it may have ended.
    pub(crate) fn term(&self, election: &ElectionName) -> Option<Arc<Term>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(election)?.upgrade()
    }
}
