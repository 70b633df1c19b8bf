//! The entries of one session, one of which the read of each heartbeat looks for.
//!
//! A read that does not find it proves that the entry was deleted, by an operator or with the lease (hazards G12, E2).
//! Whoever waits for the entry or watches it is notified at once, and the next read looks for another entry.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tenure_core::internal::lock;

/// The entries of one session that exist, as far as it knows.
#[derive(Default)]
pub(crate) struct ProbeEntries {
    // Ordered, so that a simulated run is reproducible. A session has at most one entry under a key.
    entries: Mutex<BTreeMap<Arc<str>, OwnEntry>>,
}

struct OwnEntry {
    create_revision: i64,
    /// The nonce of the request that created it.
    nonce: u128,
    when_missing: Option<WhenMissing>,
}

type WhenMissing = Box<dyn FnOnce() + Send>;

/// The entry that a read has to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeEntry {
    pub(crate) key: Arc<str>,
    pub(crate) create_revision: i64,
}

impl ProbeEntries {
    /// Adds an entry that the store has created or found.
    pub(crate) fn add(&self, key: Arc<str>, create_revision: i64, nonce: u128) {
        let mut entries = lock(&self.entries);
        if entries.get(&key).is_none_or(|entry| entry.create_revision != create_revision) {
            entries.insert(key, OwnEntry { create_revision, nonce, when_missing: None });
        }
    }

    /// Removes an entry that is being deleted, or is gone.
    pub(crate) fn remove(&self, key: &str, create_revision: i64) {
        drop(self.take(key, |entry| entry.create_revision == create_revision));
    }

    /// Removes the entry of the request with this nonce.
    pub(crate) fn remove_request(&self, key: &str, nonce: u128) {
        drop(self.take(key, |entry| entry.nonce == nonce));
    }

    /// The entry that the next read has to find. `None` when the session has no entry.
    pub(crate) fn next(&self) -> Option<ProbeEntry> {
        let entries = lock(&self.entries);
        let (key, entry) = entries.first_key_value()?;
        Some(ProbeEntry { key: Arc::clone(key), create_revision: entry.create_revision })
    }

    /// Removes an entry that a read did not find, and notifies whoever depends on it.
    pub(crate) fn mark_missing(&self, probe: &ProbeEntry) {
        let missing = self.take(&probe.key, |entry| entry.create_revision == probe.create_revision);
        if let Some(notify) = missing.and_then(|entry| entry.when_missing) {
            notify();
        }
    }

    /// Calls `notify` once a read does not find the entry. Replaces what an earlier call has set for the entry, which has one
    /// waiter, and one watcher after that. Returns false, and never calls it, when the entry is not listed, perhaps because it was missing.
    pub(crate) fn when_missing(
        &self,
        key: &str,
        create_revision: i64,
        notify: impl FnOnce() + Send + 'static,
    ) -> bool {
        let mut entries = lock(&self.entries);
        let Some(entry) = entries.get_mut(key).filter(|entry| entry.create_revision == create_revision)
        else {
            return false;
        };
        entry.when_missing = Some(Box::new(notify));
        true
    }

    fn take(&self, key: &str, matches: impl FnOnce(&OwnEntry) -> bool) -> Option<OwnEntry> {
        let mut entries = lock(&self.entries);
        if !entries.get(key).is_some_and(matches) {
            return None;
        }
        entries.remove(key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    fn probe(key: &str, create_revision: i64) -> ProbeEntry {
        ProbeEntry { key: key.into(), create_revision }
    }

    /// Two entries, `a` of revision 5 and `b` of revision 6.
    fn two_entries() -> ProbeEntries {
        let entries = ProbeEntries::default();
        entries.add("b".into(), 6, 60);
        entries.add("a".into(), 5, 50);
        entries
    }

    /// Counts how often the entry is found missing.
    fn count_missing(entries: &ProbeEntries, key: &str, create_revision: i64) -> (bool, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let notify = move || {
            counter.fetch_add(1, Relaxed);
        };
        (entries.when_missing(key, create_revision, notify), count)
    }

    /// Hazards G12, E2.
    #[test]
    fn the_next_entry_is_probed_after_one_that_is_missing() {
        let entries = two_entries();
        let (_, a) = count_missing(&entries, "a", 5);
        let (_, b) = count_missing(&entries, "b", 6);
        assert_eq!(entries.next(), Some(probe("a", 5)));
        entries.mark_missing(&probe("a", 5));
        entries.mark_missing(&probe("a", 5));
        assert_eq!((a.load(Relaxed), b.load(Relaxed)), (1, 0), "once, and only what is missing");
        assert_eq!(entries.next(), Some(probe("b", 6)));
        entries.mark_missing(&probe("b", 6));
        assert_eq!(b.load(Relaxed), 1);
        assert_eq!(entries.next(), None);
    }

    /// Hazard G14: a read that was answered late, or a withdrawal that is repeated, concerns no later entry.
    #[test]
    fn what_concerns_an_earlier_entry_leaves_a_later_one_with_the_same_key() {
        let entries = ProbeEntries::default();
        entries.add("a".into(), 5, 50);
        let (_, earlier) = count_missing(&entries, "a", 5);
        entries.add("a".into(), 7, 70);
        let (_, later) = count_missing(&entries, "a", 7);
        entries.mark_missing(&probe("a", 5));
        entries.remove("a", 5);
        entries.remove_request("a", 50);
        assert!(!count_missing(&entries, "a", 5).0);
        assert_eq!(entries.next(), Some(probe("a", 7)));
        assert_eq!((earlier.load(Relaxed), later.load(Relaxed)), (0, 0));
        entries.remove_request("a", 70);
        assert_eq!(entries.next(), None);
    }

    #[test]
    fn an_entry_that_is_found_again_keeps_its_waiter() {
        let entries = two_entries();
        let (_, count) = count_missing(&entries, "a", 5);
        entries.add("a".into(), 5, 50);
        entries.mark_missing(&probe("a", 5));
        assert_eq!(count.load(Relaxed), 1);
    }

    #[test]
    fn the_deletion_of_an_entry_by_its_own_session_notifies_nobody() {
        let entries = two_entries();
        let (_, count) = count_missing(&entries, "a", 5);
        entries.remove("a", 5);
        entries.mark_missing(&probe("a", 5));
        assert_eq!(count.load(Relaxed), 0);
        assert!(!count_missing(&entries, "a", 5).0, "nobody waits for it any more");
    }
}
