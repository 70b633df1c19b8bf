//! Applies a response of the stream to its watches.

use etcd_client::WatchResponse;

use crate::transport::{
    error::is_login_error,
    watch::{
        prefix_watch::PrefixWatch,
        subscriber::WatchSignal,
        table::WatchTable,
        target::{FIRST_WATCH_ID, START_NOW},
    },
};

/// The effect of a response.
pub(crate) enum Dispatched {
    /// No watch has to be cancelled.
    Open,
    /// This watch has notified its subscriber, and has to be cancelled.
    Ended(i64),
    /// The member refuses to serve watches.
    Refused,
}

/// Applies `response` to the watch with its id.
pub(crate) fn dispatch(
    response: &WatchResponse,
    table: &mut WatchTable,
    prefix_watch: &mut PrefixWatch,
) -> Dispatched {
    let id = response.watch_id();
    if prefix_watch.has_id(id) {
        let is_canceled = prefix_watch.on_response(response, table);
        // Some etcd versions report nothing more on a stream on which they have refused a watch (issue 11708).
        return match is_canceled && is_login_error(response.cancel_reason()) {
            true => Dispatched::Refused,
            false => Dispatched::Open,
        };
    }
    if response.canceled() {
        // A compaction cancels a watch as well, with an empty reason and the stream left open (issue 7815).
        return match table.remove(id) {
            Some(watch) => {
                watch.subscriber.close();
                if is_login_error(response.cancel_reason()) { Dispatched::Refused } else { Dispatched::Open }
            }
            None if id < FIRST_WATCH_ID => {
                // This may refuse the prefix watch: some etcd versions do not report which watch.
                prefix_watch.on_refusal_without_id(response.cancel_reason());
                Dispatched::Refused
            }
            None => Dispatched::Open,
        };
    }
    if response.created() {
        return dispatch_created(response, table);
    }
    if response.events().is_empty() {
        return Dispatched::Open;
    }
    let Some(watch) = table.get(id) else { return Dispatched::Open };
    let deleted = response.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        Some((kv.key(), kv.mod_revision()))
    });
    if !watch.notify_deleted(deleted) {
        return Dispatched::Open;
    }
    table.remove(id);
    Dispatched::Ended(id)
}

fn dispatch_created(response: &WatchResponse, table: &mut WatchTable) -> Dispatched {
    let id = response.watch_id();
    let Some(watch) = table.get(id) else { return Dispatched::Open };
    match WatchStart::of(watch.start_revision, response.header().map(|header| header.revision())) {
        WatchStart::InTime => Dispatched::Open,
        WatchStart::Now => {
            watch.subscriber.established();
            Dispatched::Open
        }
        WatchStart::Late => {
            watch.subscriber.signal(WatchSignal::close_late);
            table.remove(id);
            Dispatched::Ended(id)
        }
    }
}

/// How the creation of a watch relates to its start revision.
#[derive(Debug, PartialEq, Eq)]
enum WatchStart {
    /// It was created before its start revision: every change is reported as it happens.
    InTime,
    /// It was created at or after its start revision: etcd serves it from a loop that runs every 100 ms.
    Late,
    /// It starts with its creation. What happened before has to be read.
    Now,
}

impl WatchStart {
    /// For a watch from `start_revision` on, created when the store was at `revision`.
    fn of(start_revision: i64, revision: Option<i64>) -> Self {
        match revision {
            _ if start_revision == START_NOW => Self::Now,
            Some(revision) if revision >= start_revision => Self::Late,
            _ => Self::InTime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazard E15: a watch is in time only while its start revision lies in the store's future.
    #[test]
    fn a_watch_that_starts_in_the_past_is_known_to_be_late() {
        assert_eq!(WatchStart::of(8, Some(7)), WatchStart::InTime);
        assert_eq!(WatchStart::of(8, Some(8)), WatchStart::Late);
        assert_eq!(WatchStart::of(8, Some(9)), WatchStart::Late);
        assert_eq!(WatchStart::of(START_NOW, Some(9)), WatchStart::Now);
    }
}
