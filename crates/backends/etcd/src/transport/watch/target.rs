//! What is watched, and what the events of a watch mean.
//!
//! The second candidate in the queue becomes leader when the leader's entry is deleted, provided that its own entry
//! still exists. Two separate watches cannot prove this, because nothing orders their events against each other. The
//! events of *one* watch are ordered by revision, so one watch covers both keys ([`Succession`]): a candidate that
//! receives the deletion of the leader's entry, and not of its own, still had its entry when the leader left. Three
//! conditions apply:
//!
//! - The leader's entry must be deleted at a later revision than the one that created the own entry. A lagging member
//!   can report the deletion of an earlier entry under the same key, when the watch moved to it from another member,
//!   or when its state was replaced (etcd before 3.4.38 and 3.5.22 rewinds the watch then). After the creation of the
//!   own entry that key can be deleted only once while it is ahead.
//! - A watch that started at [`START_NOW`] decides nothing until a read that followed its creation has completed,
//!   because it does not report what happened before.
//! - A watch that started too late, or whose stream broke, signals "read again" like any other.
//!
//! One gap is known: etcd before 3.4.34 and 3.5.16 can lose one event at a compaction of exactly its revision (issue
//! 18089). If that is the deletion of the own entry, which only an operator or a stalled etcd leader (issue 15247)
//! causes, the candidate leads until it reads its entry. It does so once its watch is established: immediately, or
//! within half a second where many candidates become leader at the same time.

use std::sync::Arc;

use etcd_client::{WatchFilterType, WatchOptions};

/// The start revision of a watch that reports only what happens after it was established.
pub(crate) const START_NOW: i64 = 0;

/// The first watch id of this client. etcd's own ids start at zero, and -1 means none.
pub(crate) const FIRST_WATCH_ID: i64 = 1;

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WatchTarget {
    /// The deletion of a key.
    Deletion(Arc<str>),
    /// The same, where reading again is less urgent.
    DistantDeletion(Arc<str>),
    /// Any change of a key.
    Key(Arc<str>),
    /// Any change below a prefix.
    Prefix(Arc<str>),
    /// The deletion of the only entry ahead, or of the own entry.
    Succession(Box<Succession>),
}

/// The two keys that decide whether the second candidate becomes leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Succession {
    pub(crate) own: Arc<str>,
    pub(crate) leader: Arc<str>,
    /// The revision that created the own entry.
    pub(crate) own_create_revision: i64,
}

impl WatchTarget {
    /// Whether only deletions are watched.
    pub(crate) fn is_deletion(&self) -> bool {
        matches!(self, Self::Deletion(_) | Self::DistantDeletion(_) | Self::Succession(_))
    }

    /// The keys whose deletion is watched.
    pub(crate) fn deletion_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let (first, second) = match self {
            Self::Deletion(key) | Self::DistantDeletion(key) => (Some(key), None),
            Self::Succession(succession) => (Some(&succession.own), Some(&succession.leader)),
            Self::Key(_) | Self::Prefix(_) => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The key and the options of a watch under this id, from this revision on.
    pub(crate) fn options(&self, id: i64, start_revision: i64) -> (&str, WatchOptions) {
        let options = WatchOptions::new().with_watch_id(id).with_start_revision(start_revision);
        match self {
            Self::Deletion(key) | Self::DistantDeletion(key) => {
                (key, options.with_filters([WatchFilterType::NoPut]))
            }
            Self::Key(key) => (key, options),
            Self::Prefix(prefix) => (prefix, options.with_prefix()),
            // Keys between the two are reported as well, and ignored.
            Self::Succession(succession) => {
                let Succession { own, leader, .. } = &**succession;
                let (first, last) = if own < leader { (own, leader) } else { (leader, own) };
                // The first key after `last`.
                let options = options.with_range(format!("{last}\0"));
                (first, options.with_filters([WatchFilterType::NoPut]))
            }
        }
    }

    /// What the deletion of these keys means to the watcher. Each has the revision of its deletion.
    pub(crate) fn interpret<'a>(&self, deleted: impl Iterator<Item = (&'a [u8], i64)>) -> EventMeaning {
        let succession = match self {
            Self::Succession(succession) => &**succession,
            Self::DistantDeletion(_) => return EventMeaning::ReadAgainLater,
            _ => return EventMeaning::ReadAgain,
        };
        let mut meaning = EventMeaning::Irrelevant;
        for (key, _) in deleted.filter(|(_, revision)| *revision > succession.own_create_revision) {
            if key == succession.own.as_bytes() {
                return EventMeaning::ReadAgain;
            }
            if key == succession.leader.as_bytes() {
                meaning = EventMeaning::BecameLeader;
            }
        }
        meaning
    }
}

/// What events mean to the watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventMeaning {
    /// They are about other keys.
    Irrelevant,
    ReadAgain,
    /// Read again after a short delay.
    ReadAgainLater,
    /// The only candidate ahead has left, and the own entry still existed then.
    BecameLeader,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn succession(own: &str, leader: &str, own_create_revision: i64) -> WatchTarget {
        let (own, leader) = (own.into(), leader.into());
        WatchTarget::Succession(Box::new(Succession { own, leader, own_create_revision }))
    }

    /// Hazard G13: a candidate whose own entry was deleted does not lead, also when one message reports both
    /// deletions.
    #[test]
    fn a_candidate_becomes_leader_only_while_its_own_entry_exists() {
        let target = succession("e/5", "e/9", 90);
        let interpret = |keys: &[&str]| target.interpret(keys.iter().map(|key| (key.as_bytes(), 100)));
        assert_eq!(interpret(&["e/7", "e/9"]), EventMeaning::BecameLeader);
        assert_eq!(interpret(&["e/6", "e/7"]), EventMeaning::Irrelevant);
        assert_eq!(interpret(&["e/5"]), EventMeaning::ReadAgain);
        assert_eq!(interpret(&["e/9", "e/5"]), EventMeaning::ReadAgain);
        assert_eq!(interpret(&["e/5", "e/9"]), EventMeaning::ReadAgain);
        let deletion = WatchTarget::Deletion("e/5".into());
        assert_eq!(deletion.interpret(std::iter::empty()), EventMeaning::ReadAgain);
    }

    /// Hazard G13: a lagging member reports the deletion of an earlier entry of today's leader, under the same key.
    #[test]
    fn the_deletion_of_an_earlier_entry_of_the_leader_makes_no_leader() {
        let target = succession("e/5", "e/9", 90);
        let interpret =
            |key: &'static str, revision| target.interpret([(key.as_bytes(), revision)].into_iter());
        assert_eq!(interpret("e/9", 60), EventMeaning::Irrelevant);
        assert_eq!(interpret("e/5", 60), EventMeaning::Irrelevant);
        assert_eq!(interpret("e/9", 91), EventMeaning::BecameLeader);
        assert_eq!(interpret("e/5", 91), EventMeaning::ReadAgain);
    }

    /// The range of a succession watch contains both keys, whichever is first.
    #[test]
    fn a_succession_watch_covers_both_keys() {
        for (own, leader) in [("e/5", "e/9"), ("e/9", "e/5")] {
            let target = succession(own, leader, 2);
            let (first, options) = target.options(FIRST_WATCH_ID, 7);
            assert_eq!(first, "e/5");
            assert!(format!("{options:?}").contains(&format!("{:?}", b"e/9\0".to_vec())), "{options:?}");
        }
    }
}
