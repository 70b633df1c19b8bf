//! One watch of all deletions below the prefix, which serves all waiting candidates of a backend.
//!
//! It reports every deletion after the revision at which etcd has established it, in the order of revisions, and all
//! of one revision in one message. (That is why it does not ask for fragments: etcd can split those in the middle of a
//! revision.) It stays open, so that its start never lies in the past, where etcd would serve it from a loop that runs
//! every 100 ms (hazard E15).
//!
//! A candidate reads its position at some revision, and subscribes a moment later. What was deleted in between is
//! looked up among the recent deletions. When those do not reach back to that revision, the subscription is lost, and
//! the candidate reads again.
//!
//! # What a candidate may conclude
//!
//! A subscription reports the deletions of its keys since the read: none of them is missing, and none is older. So a
//! candidate that reads its own entry and one other ahead of it, and then learns that the other was deleted, and its
//! own was not, leads. One gap is known: etcd before 3.4.34 and 3.5.16 can lose one event at a compaction of exactly
//! its revision (etcd-io/etcd#18089). If that is the deletion of the own entry, which only an operator or a stalled etcd
//! leader (etcd-io/etcd#15247) causes, the candidate leads until it reads its entry. It does so once the watch of its own entry
//! is established.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use smallvec::SmallVec;

use crate::transport::watch::Notifier;

/// The keys of one subscription.
pub(crate) type WatchedKeys = SmallVec<[Arc<str>; 3]>;

/// How many deletions are remembered for subscriptions that come after them.
const MAX_RECENT: usize = 8192;

/// The subscriptions to deletions, and the recent deletions.
#[derive(Default)]
pub(crate) struct Informer {
    // Ordered, so that a simulated run is reproducible.
    subscribers: BTreeMap<i64, Subscriber>,
    by_key: HashMap<Arc<str>, SmallVec<[i64; 2]>>,
    /// Keys and the revisions of their deletion, the oldest first.
    recent: VecDeque<(Box<[u8]>, i64)>,
    /// All deletions after this revision are among the recent ones. `None` until the watch is established.
    complete_after: Option<i64>,
}

struct Subscriber {
    keys: WatchedKeys,
    after: i64,
    notifier: Notifier,
}

impl Informer {
    /// Adds a subscription to the deletion of `keys` after the revision `after`.
    pub(crate) fn subscribe(&mut self, id: i64, keys: WatchedKeys, after: i64, notifier: Notifier) {
        if self.complete_after.is_some_and(|complete_after| after < complete_after) {
            // Dropping the notifier reports a lost subscription.
            return;
        }
        let mut bits = 0;
        for (key, _) in self.recent.iter().rev().take_while(|(_, revision)| *revision > after) {
            bits |= bits_of(&keys, key);
        }
        if bits != 0 {
            notifier.deleted(bits);
        }
        for key in &keys {
            self.by_key.entry(Arc::clone(key)).or_default().push(id);
        }
        self.subscribers.insert(id, Subscriber { keys, after, notifier });
    }

    /// Removes a subscription. Returns how many keys it had, if it existed.
    pub(crate) fn unsubscribe(&mut self, id: i64) -> Option<usize> {
        let subscriber = self.subscribers.remove(&id)?;
        for key in &subscriber.keys {
            if let Some(ids) = self.by_key.get_mut(key) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        Some(subscriber.keys.len())
    }

    pub(crate) fn get(&self, id: i64) -> Option<&Notifier> {
        self.subscribers.get(&id).map(|subscriber| &subscriber.notifier)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }

    /// The watch is established, and reports all deletions after `revision`.
    pub(crate) fn established(&mut self, revision: i64) {
        self.complete_after = Some(revision);
        let too_early = self.subscribers.iter().filter(|(_, subscriber)| subscriber.after < revision);
        for id in too_early.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.unsubscribe(id);
        }
    }

    /// Reports the deletions of one message, each with its revision.
    pub(crate) fn deliver<'a>(&mut self, deleted: impl Iterator<Item = (&'a [u8], i64)>) {
        // A candidate must not see the deletion of its predecessor before that of its own entry in the same message.
        let mut found: BTreeMap<i64, u8> = BTreeMap::new();
        for (key, revision) in deleted {
            self.remember(key, revision);
            let ids = str::from_utf8(key).ok().and_then(|key| self.by_key.get(key));
            for id in ids.into_iter().flatten() {
                if let Some(subscriber) = self.subscribers.get(id).filter(|one| revision > one.after) {
                    *found.entry(*id).or_default() |= bits_of(&subscriber.keys, key);
                }
            }
        }
        for (id, bits) in found {
            if let Some(subscriber) = self.subscribers.get(&id) {
                subscriber.notifier.deleted(bits);
            }
        }
    }

    fn remember(&mut self, key: &[u8], revision: i64) {
        if self.recent.len() == MAX_RECENT
            && let Some((_, forgotten)) = self.recent.pop_front()
        {
            self.complete_after = self.complete_after.max(Some(forgotten));
        }
        self.recent.push_back((key.into(), revision));
    }
}

/// The bit of `key` among `keys`.
fn bits_of(keys: &[Arc<str>], key: &[u8]) -> u8 {
    keys.iter().position(|one| one.as_bytes() == key).map_or(0, |index| 1 << index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::watch::{Subscription, tests::subscription};

    /// Subscribes to two keys.
    fn subscribe(informer: &mut Informer, id: i64, keys: [&str; 2], after: i64) -> Subscription {
        let (subscription, notifier) = subscription();
        informer.subscribe(id, keys.into_iter().map(Arc::from).collect(), after, notifier);
        subscription
    }

    fn deliver(informer: &mut Informer, deleted: &[(&str, i64)]) {
        informer.deliver(deleted.iter().map(|(key, revision)| (key.as_bytes(), *revision)));
    }

    fn state(subscription: &Subscription) -> (bool, bool, bool) {
        (subscription.is_deleted(0), subscription.is_deleted(1), subscription.is_lost())
    }

    /// An informer that is established at revision 100.
    fn established() -> Informer {
        let mut informer = Informer::default();
        informer.established(100);
        informer
    }

    /// Hazard E15: a subscription that comes after a deletion learns of it, without a watch that starts in the past.
    #[test]
    fn a_late_subscription_learns_what_happened_since_its_read() {
        let mut informer = established();
        deliver(&mut informer, &[("own", 101), ("other", 102)]);
        deliver(&mut informer, &[("leader", 103)]);
        assert_eq!(state(&subscribe(&mut informer, 4, ["own", "leader"], 100)), (true, true, false));
        assert_eq!(state(&subscribe(&mut informer, 8, ["own", "leader"], 102)), (false, true, false));
        assert_eq!(state(&subscribe(&mut informer, 12, ["own", "leader"], 103)), (false, false, false));
    }

    /// Hazard G13: what the informer may have missed is read again.
    #[test]
    fn a_subscription_that_is_older_than_the_informer_is_lost() {
        let mut informer = Informer::default();
        let early = subscribe(&mut informer, 4, ["own", "leader"], 99);
        let in_time = subscribe(&mut informer, 8, ["own", "leader"], 100);
        informer.established(100);
        assert_eq!(state(&early), (false, false, true));
        assert_eq!(state(&in_time), (false, false, false));
        assert!(state(&subscribe(&mut informer, 12, ["own", "leader"], 99)).2);
        for n in 0..=MAX_RECENT {
            deliver(&mut informer, &[("other", 101 + i64::try_from(n).unwrap())]);
        }
        assert!(state(&subscribe(&mut informer, 16, ["own", "leader"], 100)).2, "one deletion is forgotten");
        assert_eq!(state(&subscribe(&mut informer, 20, ["own", "leader"], 101)), (false, false, false));
    }

    /// Hazard G13: a lagging member reports the deletion of an earlier entry under the same key.
    #[test]
    fn deletions_before_the_read_are_not_reported() {
        let mut informer = established();
        let subscribed = subscribe(&mut informer, 4, ["own", "leader"], 105);
        deliver(&mut informer, &[("leader", 104), ("own", 105)]);
        assert_eq!(state(&subscribed), (false, false, false));
        deliver(&mut informer, &[("elsewhere", 106), ("leader", 107)]);
        assert_eq!(state(&subscribed), (false, true, false));
    }

    /// Hazard G13: a candidate whose entry was deleted in the same message as the leader's must not lead.
    #[test]
    fn both_deletions_of_a_message_are_reported_together() {
        let mut informer = established();
        for deleted in [[("own", 101), ("leader", 101)], [("leader", 102), ("own", 102)]] {
            let subscribed = subscribe(&mut informer, 4, ["own", "leader"], deleted[0].1 - 1);
            deliver(&mut informer, &deleted);
            assert_eq!(state(&subscribed), (true, true, false));
        }
    }

    #[test]
    fn nothing_is_kept_of_a_subscription_that_ended() {
        let mut informer = established();
        let subscribed = subscribe(&mut informer, 4, ["own", "leader"], 100);
        let other = subscribe(&mut informer, 8, ["other", "leader"], 100);
        assert_eq!((informer.unsubscribe(4), informer.unsubscribe(4)), (Some(2), None));
        assert!(subscribed.is_lost() && informer.by_key.len() == 2);
        deliver(&mut informer, &[("leader", 101)]);
        assert_eq!(state(&other), (false, true, false));
        informer.unsubscribe(8);
        assert!(informer.is_empty() && informer.by_key.is_empty());
    }
}
