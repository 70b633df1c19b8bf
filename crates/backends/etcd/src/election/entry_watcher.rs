//! Waits until the entry of a leader is deleted, or has a resign request.
//!
//! A watch of the entry only signals "read again", also once it is established, so that nothing which happened before
//! is missed: every event comes from a read.

use std::{sync::Arc, time::Duration};

use tenure_core::spi::{BackendError, Entry, EntryEvent, is_resign_requested};
use tokio::time::timeout;

use crate::election::{
    entry::{create_revision, is_same_entry},
    position_reader::PositionQuery,
    probe_entries::ProbeEntries,
    store::ElectionStore,
};

/// If a watch takes longer than this to be established, the entry is read without it.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an entry is read without a signal: etcd can lose an event around a compaction (issue 18089).
const MIN_REREAD_INTERVAL: Duration = Duration::from_secs(30);

/// Waits for an event of `entry`, which also a heartbeat can find missing.
pub(crate) async fn wait(
    store: &ElectionStore,
    lease: i64,
    probe_entries: &ProbeEntries,
    entry: &Entry,
    for_resign_requests: bool,
) -> Result<EntryEvent, BackendError> {
    loop {
        let watch = store.watcher.changes(Arc::clone(&entry.key), false);
        let mut is_missing = !probe_entries.when_missing(&entry.key, create_revision(entry), watch.waker());
        let mut limit = ESTABLISH_TIMEOUT;
        loop {
            if !std::mem::take(&mut is_missing) {
                let _ = timeout(limit, watch.changed()).await;
            }
            // Boxed: a wait can last for hours, and should not hold the memory of a read.
            let read = Box::pin(read_event(store, lease, entry, for_resign_requests)).await?;
            if let Some(event) = read {
                if event == EntryEvent::Deleted {
                    probe_entries.remove(&entry.key, create_revision(entry));
                }
                return Ok(event);
            }
            if watch.is_lost() {
                break;
            }
            limit = store.watcher.reread_interval(MIN_REREAD_INTERVAL);
        }
    }
}

/// Reads the entry, and its payload only if it was updated: that may be large.
async fn read_event(
    store: &ElectionStore,
    lease: i64,
    entry: &Entry,
    for_resign_requests: bool,
) -> Result<Option<EntryEvent>, BackendError> {
    for with_payload in [false, true] {
        let query = PositionQuery { key: Arc::clone(&entry.key), with_payload, ahead: None };
        let own = store.read_position(query).await?.own;
        let Some(own) = own.filter(|kv| is_same_entry(kv, lease, create_revision(entry))) else {
            return Ok(Some(EntryEvent::Deleted));
        };
        if !for_resign_requests || own.mod_revision() == own.create_revision() {
            return Ok(None);
        }
        if with_payload && is_resign_requested(own.value()) {
            return Ok(Some(EntryEvent::ResignRequested));
        }
    }
    Ok(None)
}
