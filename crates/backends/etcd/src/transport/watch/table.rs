//! The watches that a stream carries.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use smallvec::SmallVec;

use crate::transport::watch::{
    subscriber::{Subscriber, WatchSignal},
    target::{EventMeaning, START_NOW, WatchTarget},
};

/// A watch, and who is notified of it.
pub(crate) struct Watch {
    pub(crate) target: WatchTarget,
    /// The first revision that it reports.
    pub(crate) start_revision: i64,
    pub(crate) subscriber: Subscriber,
    /// Whether it was requested from [`START_NOW`] on.
    pub(crate) starts_now: bool,
    /// Whether the prefix watch serves it.
    pub(crate) in_prefix_watch: bool,
}

impl Watch {
    pub(crate) fn new(target: WatchTarget, start_revision: i64, subscriber: Subscriber) -> Self {
        let starts_now = start_revision == START_NOW;
        Self { target, start_revision, subscriber, starts_now, in_prefix_watch: false }
    }

    /// Notifies the subscriber of these deleted keys, each with the revision of its deletion. Returns whether the
    /// watch is closed by that.
    pub(crate) fn notify_deleted<'a>(&self, deleted: impl Iterator<Item = (&'a [u8], i64)>) -> bool {
        match self.target.interpret(deleted) {
            EventMeaning::Irrelevant => return false,
            EventMeaning::ReadAgain => self.subscriber.close(),
            EventMeaning::ReadAgainLater => self.subscriber.signal(WatchSignal::read_again_later),
            EventMeaning::BecameLeader if self.starts_now && !self.subscriber.has_read_since() => {
                self.subscriber.close();
            }
            EventMeaning::BecameLeader => self.subscriber.signal(WatchSignal::became_leader),
        }
        true
    }
}

/// All watches of a stream, by id.
#[derive(Default)]
pub(crate) struct WatchTable {
    // Ordered, so that a simulated run is reproducible.
    watches: BTreeMap<i64, Watch>,
    /// How many deletion watches are not served by the prefix watch.
    individual_deletions: usize,
    /// The watches that the prefix watch serves, by the keys whose deletion they wait for.
    prefix_watched_keys: HashMap<Arc<str>, SmallVec<[i64; 2]>>,
}

impl WatchTable {
    pub(crate) fn insert(&mut self, id: i64, watch: Watch) {
        if watch.in_prefix_watch {
            for key in watch.target.deletion_keys() {
                self.prefix_watched_keys.entry(Arc::clone(key)).or_default().push(id);
            }
        } else if watch.target.is_deletion() {
            self.individual_deletions += 1;
        }
        self.watches.insert(id, watch);
    }

    pub(crate) fn remove(&mut self, id: i64) -> Option<Watch> {
        let watch = self.watches.remove(&id)?;
        if watch.in_prefix_watch {
            for key in watch.target.deletion_keys() {
                if let Some(ids) = self.prefix_watched_keys.get_mut(key) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        self.prefix_watched_keys.remove(key);
                    }
                }
            }
            if self.prefix_watched_keys.is_empty() {
                // Frees the memory: there may have been thousands.
                self.prefix_watched_keys = HashMap::new();
            }
        } else if watch.target.is_deletion() {
            self.individual_deletions -= 1;
        }
        Some(watch)
    }

    /// Removes all watches.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Watch> + use<> {
        std::mem::take(self).watches.into_values()
    }

    pub(crate) fn get(&self, id: i64) -> Option<&Watch> {
        self.watches.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&i64, &Watch)> {
        self.watches.iter()
    }

    pub(crate) fn first_id(&self) -> Option<i64> {
        self.watches.keys().next().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// How many deletion watches are not served by the prefix watch.
    pub(crate) fn individual_deletions(&self) -> usize {
        self.individual_deletions
    }

    /// Whether the prefix watch serves any watch.
    pub(crate) fn uses_prefix_watch(&self) -> bool {
        !self.prefix_watched_keys.is_empty()
    }

    /// The ids of the watches that the prefix watch serves and that wait for the deletion of `key`.
    pub(crate) fn prefix_watched(&self, key: &[u8]) -> &[i64] {
        let ids = str::from_utf8(key).ok().and_then(|key| self.prefix_watched_keys.get(key));
        ids.map_or(&[], SmallVec::as_slice)
    }

    /// The ids of all watches that the prefix watch serves.
    pub(crate) fn prefix_watched_ids(&self) -> Vec<i64> {
        self.watches.iter().filter(|(_, watch)| watch.in_prefix_watch).map(|(id, _)| *id).collect()
    }
}
