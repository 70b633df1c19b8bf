//! The entries of a session that exist in the store.

use std::{collections::BTreeMap, sync::Arc};

use once_cell::race::OnceBox;

use super::candidate_value::EntryValue;
use crate::{spi::Entry, sync::Flag};

/// The number of an entry within its session, counted from 1.
pub(crate) type EntryId = u64;

/// An entry that exists in the store.
#[derive(Debug)]
pub(crate) struct RegisteredEntry {
    pub(crate) id: EntryId,
    pub(crate) entry: Entry,
    /// Set when a confirming read did not find the entry.
    pub(crate) missing: Flag,
    /// Created when a value is set: few entries need it.
    value: OnceBox<EntryValue>,
}

impl RegisteredEntry {
    /// The values that were set for this entry.
    pub(crate) fn value(&self) -> &EntryValue {
        self.value.get_or_init(|| Box::new(EntryValue::new()))
    }
}

/// The entries of one session that exist in the store.
#[derive(Debug, Default)]
pub(crate) struct RegisteredEntries {
    // In order, so that a simulated run is reproducible.
    by_id: BTreeMap<EntryId, Arc<RegisteredEntry>>,
    /// The id of the latest entry.
    last_id: EntryId,
}

impl RegisteredEntries {
    pub(crate) fn add(&mut self, entry: Entry) -> Arc<RegisteredEntry> {
        self.last_id += 1;
        let entry = Arc::new(RegisteredEntry {
            id: self.last_id,
            entry,
            missing: Flag::new(),
            value: OnceBox::new(),
        });
        self.by_id.insert(entry.id, Arc::clone(&entry));
        entry
    }

    pub(crate) fn remove(&mut self, entry: &RegisteredEntry) {
        self.by_id.remove(&entry.id);
    }

    /// The oldest entry that no confirming read has missed.
    pub(crate) fn first_present(&self) -> Option<Arc<RegisteredEntry>> {
        self.by_id.values().find(|entry| !entry.missing.is_set()).cloned()
    }
}
