//! One watch of all deletions below the prefix, instead of a watch per key when very many keys are watched.
//!
//! When the holder of ten thousand elections leaves, etcd notifies ten thousand watches one by one, with a message
//! each, and searches again for each whose message does not fit into a stream's queue of 128. A single watch gets all
//! of it in one message. The cost is that the process then receives every deletion below its prefix, not only those
//! that it waits for. So there is no prefix watch while few keys are watched.
//!
//! # Why it reports as much as individual watches
//!
//! The events of one watch are ordered by revision. So a watch that has delivered everything up to a revision
//! delivers every later event. A watch that joins with a later start revision gets the events from there on, and none
//! before. One with an earlier start revision is late, as an individual watch would be that starts in the past, and
//! its waiter reads again ([`Watcher::watch`](crate::transport::watch::watcher::Watcher::watch)). One that starts now
//! is reported as established, and its waiter reads what happened before.

use std::time::Duration;

use etcd_client::{WatchFilterType, WatchOptions, WatchResponse};
use tokio::time::Instant;
use tracing::debug;

use crate::transport::watch::table::{Watch, WatchTable};

/// How long after a refusal the prefix watch is requested again. A refusal can end the stream, and then all waiters
/// read again.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_secs(3600);

/// Part of a refusal's text that a new login resolves.
const TRANSIENT_REFUSAL_TEXT: &str = "auth token";

/// The prefix watch of a stream.
pub(crate) struct PrefixWatch {
    /// How many individual deletion watches there have to be until it is requested.
    threshold: usize,
    state: State,
    /// Counts down. Ids of other watches count up from
    /// [`FIRST_WATCH_ID`](crate::transport::watch::target::FIRST_WATCH_ID).
    next_id: i64,
}

enum State {
    Inactive,
    /// Requested under this id.
    Requested(i64),
    Active {
        id: i64,
        /// All events up to this revision were delivered.
        delivered: i64,
        /// Whether any watch has joined.
        used: bool,
    },
    /// This etcd refused or cancelled it at that time.
    Refused(Instant),
}

/// Whether the prefix watch serves a new watch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Accepted,
    /// The watch would have started in the past.
    TooLate,
    /// The watch has to be opened individually.
    Rejected,
}

impl PrefixWatch {
    pub(crate) fn new(threshold: usize) -> Self {
        Self { threshold, state: State::Inactive, next_id: i64::MAX }
    }

    /// Forgets the watch of the previous stream.
    pub(crate) fn reset_for_new_stream(&mut self) {
        self.state = match self.state {
            // The request may be what ended the previous stream.
            State::Requested(_) => State::Refused(Instant::now()),
            State::Refused(at) => State::Refused(at),
            State::Inactive | State::Active { .. } => State::Inactive,
        };
    }

    /// Whether this is the id of the prefix watch.
    pub(crate) fn has_id(&self, id: i64) -> bool {
        matches!(self.state, State::Requested(own) | State::Active { id: own, .. } if own == id)
    }

    /// The id to request the prefix watch with, if it is needed and may be requested.
    pub(crate) fn request_if_needed(&mut self, table: &WatchTable) -> Option<i64> {
        let may_request = match self.state {
            State::Inactive => true,
            State::Refused(at) => at.elapsed() >= RETRY_AFTER_REFUSAL,
            State::Requested(_) | State::Active { .. } => false,
        };
        if !may_request || table.individual_deletions() < self.threshold {
            return None;
        }
        let id = self.next_id;
        self.next_id -= 1;
        self.state = State::Requested(id);
        Some(id)
    }

    /// The id of the prefix watch, when nothing needs it any more. The caller cancels it.
    pub(crate) fn release_if_unused(&mut self, table: &WatchTable) -> Option<i64> {
        match self.state {
            State::Active { id, used, .. }
                if !table.uses_prefix_watch()
                    && (used || table.individual_deletions() < (self.threshold / 2).max(1)) =>
            {
                self.state = State::Inactive;
                Some(id)
            }
            _ => None,
        }
    }

    /// Lets the prefix watch serve `watch`, if it is active and can do so.
    pub(crate) fn admit(&mut self, watch: &mut Watch) -> Admission {
        let State::Active { delivered, used, .. } = &mut self.state else { return Admission::Rejected };
        if !watch.target.is_deletion() {
            return Admission::Rejected;
        }
        if watch.starts_now {
            watch.start_revision = delivered.saturating_add(1);
            watch.subscriber.established();
        } else if watch.start_revision <= *delivered {
            return Admission::TooLate;
        }
        watch.in_prefix_watch = true;
        *used = true;
        Admission::Accepted
    }

    /// Handles a refusal that names no watch: it may be for the prefix watch, if that was requested.
    pub(crate) fn on_refusal_without_id(&mut self, reason: &str) {
        if matches!(self.state, State::Requested(_)) {
            self.state = refused(reason.contains(TRANSIENT_REFUSAL_TEXT));
        }
    }

    /// Handles a response for the prefix watch. Returns whether it was cancelled.
    pub(crate) fn on_response(&mut self, response: &WatchResponse, table: &mut WatchTable) -> bool {
        if response.canceled() {
            let reason = response.cancel_reason();
            debug!(reason, "etcd cancelled the prefix watch; each key is watched individually");
            let is_transient = response.compact_revision() != 0 || reason.contains(TRANSIENT_REFUSAL_TEXT);
            self.on_canceled(table, is_transient);
            return true;
        }
        if response.created()
            && let Some(header) = response.header()
        {
            self.on_created(header.revision());
        }
        let events = response.events().iter().filter_map(etcd_client::Event::kv);
        let deleted: Vec<_> = events.map(|kv| (kv.key(), kv.mod_revision())).collect();
        self.deliver(&deleted, table);
        false
    }

    /// The watch is active, and reports what happens after this revision.
    fn on_created(&mut self, revision: i64) {
        if let State::Requested(id) = self.state {
            self.state = State::Active { id, delivered: revision, used: false };
        }
    }

    /// Closes all watches that it served.
    fn on_canceled(&mut self, table: &mut WatchTable, is_transient: bool) {
        self.state = refused(is_transient);
        for id in table.prefix_watched_ids() {
            if let Some(watch) = table.remove(id) {
                watch.subscriber.close();
            }
        }
    }

    /// Notifies each watch of the deletions that it waits for, all of one message together.
    fn deliver(&mut self, deleted: &[(&[u8], i64)], table: &mut WatchTable) {
        if let State::Active { delivered, .. } = &mut self.state {
            *delivered = deleted.iter().map(|(_, revision)| *revision).fold(*delivered, i64::max);
        }
        // The watch ids to notify, each with the index of a deletion.
        let mut matches: Vec<(i64, usize)> = Vec::new();
        for (index, (key, _)) in deleted.iter().enumerate() {
            matches.extend(table.prefix_watched(key).iter().map(|id| (*id, index)));
        }
        matches.sort_unstable();
        for of_one_watch in matches.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((id, _)) = of_one_watch.first().copied() else { continue };
            let Some(watch) = table.get(id) else { continue };
            let deleted = of_one_watch
                .iter()
                .map(|(_, index)| deleted[*index])
                .filter(|(_, revision)| *revision >= watch.start_revision);
            // Without a relevant deletion the watch must not be notified.
            if deleted.clone().next().is_some() && watch.notify_deleted(deleted) {
                table.remove(id);
            }
        }
    }
}

fn refused(is_transient: bool) -> State {
    if is_transient { State::Inactive } else { State::Refused(Instant::now()) }
}

/// The options of a watch of all deletions below a prefix, from now on.
///
/// Without fragments: etcd can split those in the middle of a revision, and a candidate whose own entry is deleted
/// with the leader's has to receive both deletions together.
pub(crate) fn options(id: i64) -> WatchOptions {
    WatchOptions::new().with_watch_id(id).with_prefix().with_filters([WatchFilterType::NoPut])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;
    use crate::transport::watch::{
        subscriber::{Subscriber, WatchSignal},
        target::{FIRST_WATCH_ID, START_NOW, Succession, WatchTarget},
    };

    /// A prefix watch that is active since revision 100.
    fn active() -> (PrefixWatch, WatchTable) {
        let mut prefix_watch = PrefixWatch::new(0);
        let table = WatchTable::default();
        let id = prefix_watch.request_if_needed(&table).unwrap();
        assert!(prefix_watch.has_id(id) && prefix_watch.request_if_needed(&table).is_none());
        prefix_watch.on_created(100);
        (prefix_watch, table)
    }

    fn succession(own_create_revision: i64) -> WatchTarget {
        let (own, leader) = ("e/5".into(), "e/9".into());
        WatchTarget::Succession(Box::new(Succession { own, leader, own_create_revision }))
    }

    fn deletion() -> WatchTarget {
        WatchTarget::Deletion("e/9".into())
    }

    /// Watches `target` from a revision on.
    fn watch(
        prefix_watch: &mut PrefixWatch,
        table: &mut WatchTable,
        id: i64,
        target: WatchTarget,
        start_revision: i64,
    ) -> (Admission, Arc<WatchSignal>) {
        let signal = Arc::new(WatchSignal::default());
        let mut watch = Watch::new(target, start_revision, Subscriber::Waiter(Arc::clone(&signal)));
        let admission = prefix_watch.admit(&mut watch);
        if admission == Admission::Accepted {
            table.insert(id, watch);
        }
        (admission, signal)
    }

    fn deliver(prefix_watch: &mut PrefixWatch, table: &mut WatchTable, deleted: &[(&str, i64)]) {
        let deleted: Vec<_> = deleted.iter().map(|(key, revision)| (key.as_bytes(), *revision)).collect();
        prefix_watch.deliver(&deleted, table);
    }

    /// Hazard E15: a watch gets what happens from its start revision on, nothing before, or is reported as late.
    #[test]
    fn deletions_are_delivered_from_the_start_revision_on() {
        let (mut prefix_watch, mut table) = active();
        let late = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, deletion(), 100).0;
        assert_eq!(late, Admission::TooLate);
        let (admission, signal) = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, deletion(), 105);
        assert_eq!(admission, Admission::Accepted);
        deliver(&mut prefix_watch, &mut table, &[("e/8", 106), ("e/9", 104)]);
        assert!(!signal.is_closed(), "that was an earlier entry");
        assert_eq!(watch(&mut prefix_watch, &mut table, 7, deletion(), 106).0, Admission::TooLate);
        deliver(&mut prefix_watch, &mut table, &[("e/9", 107)]);
        assert!(signal.is_closed() && table.is_empty() && !table.uses_prefix_watch());
        assert!(prefix_watch.release_if_unused(&table).is_some());
    }

    /// Hazard G13: a watch that starts now makes its waiter read first. Only a deletion after that read makes it
    /// leader.
    #[test]
    fn a_watch_that_starts_now_needs_a_read_first() {
        for has_read in [false, true] {
            let (mut prefix_watch, mut table) = active();
            let (admission, signal) =
                watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), START_NOW);
            assert!(admission == Admission::Accepted && signal.is_established());
            deliver(&mut prefix_watch, &mut table, &[("e/9", 100)]);
            assert!(!signal.is_closed(), "it was deleted before");
            if has_read {
                signal.record_read();
            }
            deliver(&mut prefix_watch, &mut table, &[("e/9", 101)]);
            assert!(signal.is_closed());
            assert_eq!(signal.is_leader(), has_read);
        }
    }

    /// Hazard G13: a candidate whose own entry is deleted in the same message does not lead, in whatever order.
    #[test]
    fn both_deletions_of_a_message_count() {
        for deleted in [[("e/9", 101), ("e/5", 101)], [("e/5", 101), ("e/9", 102)]] {
            let (mut prefix_watch, mut table) = active();
            let (_, signal) = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), 101);
            deliver(&mut prefix_watch, &mut table, &deleted);
            assert!(signal.is_closed() && !signal.is_leader());
        }
        let (mut prefix_watch, mut table) = active();
        let (_, signal) = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), 101);
        deliver(&mut prefix_watch, &mut table, &[("e/7", 101), ("e/9", 101)]);
        assert!(signal.is_leader());
    }

    /// All open watches of one key are notified, and closed ones are not.
    #[test]
    fn all_watches_of_a_key_are_notified() {
        let (mut prefix_watch, mut table) = active();
        let signals: Vec<_> = (FIRST_WATCH_ID..FIRST_WATCH_ID + 4)
            .map(|id| watch(&mut prefix_watch, &mut table, id, deletion(), 101).1)
            .collect();
        table.remove(FIRST_WATCH_ID + 2);
        deliver(&mut prefix_watch, &mut table, &[("e/9", 101)]);
        let closed: Vec<_> = signals.iter().map(|signal| signal.is_closed()).collect();
        assert_eq!(closed, [true, true, false, true]);
    }

    /// After a refusal all waiters read again and are watched individually, on the next stream too; for an hour.
    #[tokio::test(start_paused = true)]
    async fn a_refused_prefix_watch_is_not_requested_again_soon() {
        let (mut prefix_watch, mut table) = active();
        let (_, signal) = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), 101);
        prefix_watch.on_canceled(&mut table, false);
        assert!(signal.is_closed() && !signal.is_leader() && table.is_empty());
        prefix_watch.reset_for_new_stream();
        assert_eq!(prefix_watch.request_if_needed(&table), None);
        let rejected = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), 101).0;
        assert_eq!(rejected, Admission::Rejected);
        advance(RETRY_AFTER_REFUSAL).await;
        assert!(prefix_watch.request_if_needed(&table).is_some());
        prefix_watch.reset_for_new_stream();
        assert_eq!(prefix_watch.request_if_needed(&table), None, "it may have ended the stream");
    }

    /// An expired login is renewed, and a compaction happens once.
    #[test]
    fn a_transient_refusal_is_forgotten() {
        let (mut prefix_watch, mut table) = active();
        let (_, signal) = watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), 101);
        prefix_watch.on_canceled(&mut table, true);
        assert!(signal.is_closed() && !signal.is_leader());
        assert!(prefix_watch.request_if_needed(&table).is_some());
        prefix_watch.on_refusal_without_id("etcdserver: invalid auth token");
        assert!(prefix_watch.request_if_needed(&table).is_some());
        prefix_watch.on_refusal_without_id("etcdserver: permission denied");
        assert_eq!(prefix_watch.request_if_needed(&table), None);
    }

    /// The highest revision, which a malicious etcd may report, does not overflow.
    #[test]
    fn the_highest_revision_does_not_overflow() {
        let (mut prefix_watch, mut table) = active();
        deliver(&mut prefix_watch, &mut table, &[("e/9", i64::MAX)]);
        let (admission, signal) =
            watch(&mut prefix_watch, &mut table, FIRST_WATCH_ID, succession(90), START_NOW);
        assert!(admission == Admission::Accepted && signal.is_established());
        let late = watch(&mut prefix_watch, &mut table, 7, succession(90), i64::MAX).0;
        assert_eq!(late, Admission::TooLate);
    }

    #[test]
    fn it_is_requested_for_many_watches_and_released_with_the_last() {
        let mut prefix_watch = PrefixWatch::new(2);
        let mut table = WatchTable::default();
        let individual = |target| Watch::new(target, 7, Subscriber::Waiter(Arc::default()));
        table.insert(1, individual(deletion()));
        table.insert(2, individual(WatchTarget::Key("e/1".into())));
        assert_eq!(prefix_watch.request_if_needed(&table), None);
        table.insert(3, individual(deletion()));
        let id = prefix_watch.request_if_needed(&table);
        assert_eq!(id, Some(i64::MAX));
        prefix_watch.on_created(100);
        assert_eq!(prefix_watch.release_if_unused(&table), None, "there are many still");
        table.remove(1);
        table.remove(3);
        assert_eq!(prefix_watch.release_if_unused(&table), id);
        assert!(!prefix_watch.has_id(i64::MAX));
    }
}
