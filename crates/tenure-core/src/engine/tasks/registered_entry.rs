//! The entries of a session that exist in the store.

use std::{collections::BTreeMap, sync::Arc};

use crate::{spi::Entry, sync::Flag};

/// An entry that exists in the store.
#[derive(Debug)]
pub(crate) struct RegisteredEntry {
    /// Its number within its session.
    pub(crate) number: u64,
    pub(crate) entry: Entry,
    /// Set when a confirming read did not find the entry.
    pub(crate) missing: Flag,
}

/// The entries of one session that exist in the store.
#[derive(Debug, Default)]
pub(crate) struct RegisteredEntries {
    // In order, so that a simulated run is reproducible.
    by_number: BTreeMap<u64, Arc<RegisteredEntry>>,
    /// The number of the latest entry.
    last_number: u64,
}

impl RegisteredEntries {
    pub(crate) fn add(&mut self, entry: Entry) -> Arc<RegisteredEntry> {
        self.last_number += 1;
        let entry = Arc::new(RegisteredEntry { number: self.last_number, entry, missing: Flag::new() });
        self.by_number.insert(entry.number, Arc::clone(&entry));
        entry
    }

    pub(crate) fn remove(&mut self, entry: &RegisteredEntry) {
        self.by_number.remove(&entry.number);
    }

    /// The oldest entry that no confirming read has missed.
    pub(crate) fn first_present(&self) -> Option<Arc<RegisteredEntry>> {
        self.by_number.values().find(|entry| !entry.missing.is_set()).cloned()
    }
}
