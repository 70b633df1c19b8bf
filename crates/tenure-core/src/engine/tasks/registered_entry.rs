//! The entries of a session that exist in the store.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    spi::Entry,
    sync::atomic::{AtomicBool, Ordering},
};

/// The number of a candidate within its elector, counted from 1, and of its entry: it has one entry at a time.
pub(crate) type CandidateNumber = u64;

/// An entry that exists in the store.
#[derive(Debug)]
pub(crate) struct RegisteredEntry {
    pub(crate) number: CandidateNumber,
    pub(crate) entry: Entry,
    /// Set when a confirming read did not find the entry.
    missing: AtomicBool,
}

impl RegisteredEntry {
    /// Whether a confirming read did not find the entry.
    pub(crate) fn is_missing(&self) -> bool {
        self.missing.load(Ordering::Acquire)
    }

    pub(crate) fn set_missing(&self) {
        self.missing.store(true, Ordering::Release);
    }
}

/// The entries of one session that exist in the store.
#[derive(Debug, Default)]
pub(crate) struct RegisteredEntries {
    // In order, so that a simulated run is reproducible.
    by_number: BTreeMap<CandidateNumber, Arc<RegisteredEntry>>,
}

impl RegisteredEntries {
    pub(crate) fn add(&mut self, number: CandidateNumber, entry: Entry) -> Arc<RegisteredEntry> {
        let entry = Arc::new(RegisteredEntry { number, entry, missing: AtomicBool::new(false) });
        self.by_number.insert(number, Arc::clone(&entry));
        entry
    }

    pub(crate) fn remove(&mut self, entry: &RegisteredEntry) {
        self.by_number.remove(&entry.number);
    }

    /// The entry of the earliest candidate that no confirming read has missed.
    pub(crate) fn first_present(&self) -> Option<Arc<RegisteredEntry>> {
        self.by_number.values().find(|entry| !entry.is_missing()).cloned()
    }
}
