//! The watches that a stream carries.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use smallvec::SmallVec;

use crate::{
    transport::watch::subscriber::{Hearer, Signal},
    transport::watch::target::{Heard, Target},
    transport::watch::watcher::NOW,
};

/// A watch, and who hears of it.
pub(crate) struct Watch {
    pub(crate) target: Target,
    /// The first revision that it is told of.
    pub(crate) from: i64,
    pub(crate) hearer: Hearer,
    /// Whether that was to be whichever comes next.
    pub(crate) from_now: bool,
    /// Whether it is part of the common watch.
    pub(crate) in_common: bool,
}

impl Watch {
    pub(crate) fn of(target: Target, from: i64, hearer: Hearer) -> Self {
        Self { target, from, hearer, from_now: from == NOW, in_common: false }
    }

    /// Tells whoever watches what the end of these keys means, each with the revision of its end; whether the watch has had its word.
    pub(crate) fn hears<'a>(&self, ended: impl Iterator<Item = (&'a [u8], i64)>) -> bool {
        match self.target.heard(ended) {
            Heard::Nothing => return false,
            Heard::Look => self.hearer.over(),
            Heard::LookLater => self.hearer.tell(Signal::look_later),
            Heard::Turn if self.from_now && !self.hearer.is_proven() => self.hearer.over(),
            Heard::Turn => self.hearer.tell(Signal::turn),
        }
        true
    }
}

/// All watches of a stream, by their ids.
#[derive(Default)]
pub(crate) struct Open {
    // In an order, so that a simulated run is the same every time.
    watches: BTreeMap<i64, Watch>,
    /// How many watch ends alone.
    alone: usize,
    /// Those in the common watch, by the keys whose ends they are told of.
    by_key: HashMap<Arc<str>, SmallVec<[i64; 2]>>,
}

impl Open {
    pub(crate) fn insert(&mut self, id: i64, watch: Watch) {
        if watch.in_common {
            for key in watch.target.ends() {
                self.by_key.entry(Arc::clone(key)).or_default().push(id);
            }
        } else if watch.target.is_of_ends() {
            self.alone += 1;
        }
        self.watches.insert(id, watch);
    }

    pub(crate) fn remove(&mut self, id: i64) -> Option<Watch> {
        let watch = self.watches.remove(&id)?;
        if watch.in_common {
            for key in watch.target.ends() {
                if let Some(ids) = self.by_key.get_mut(key) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        self.by_key.remove(key);
                    }
                }
            }
            if self.by_key.is_empty() {
                // There may have been thousands.
                self.by_key = HashMap::new();
            }
        } else if watch.target.is_of_ends() {
            self.alone -= 1;
        }
        Some(watch)
    }

    /// Takes all of them.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Watch> + use<> {
        std::mem::take(self).watches.into_values()
    }

    pub(crate) fn get(&self, id: i64) -> Option<&Watch> {
        self.watches.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&i64, &Watch)> {
        self.watches.iter()
    }

    pub(crate) fn first(&self) -> Option<i64> {
        self.watches.keys().next().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// How many watch ends, each with a watch of its own.
    pub(crate) fn alone(&self) -> usize {
        self.alone
    }

    /// Whether the common watch tells anybody anything.
    pub(crate) fn needs_common(&self) -> bool {
        !self.by_key.is_empty()
    }

    /// Those in the common watch that are told of this key's end.
    pub(crate) fn of(&self, key: &[u8]) -> &[i64] {
        let ids = str::from_utf8(key).ok().and_then(|key| self.by_key.get(key));
        ids.map_or(&[], SmallVec::as_slice)
    }

    /// The ids of all in the common watch.
    pub(crate) fn in_common(&self) -> Vec<i64> {
        self.watches.iter().filter(|(_, watch)| watch.in_common).map(|(id, _)| *id).collect()
    }
}
