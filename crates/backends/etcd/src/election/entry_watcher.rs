//! Watches the entries of one session that lead, and reports when one is deleted or its candidate should resign.
//!
//! Each entry is watched from when its watch is established, and read after that, so that nothing which happened
//! before is missed. A watch only signals "read again" (see [`crate::transport::watch`]): every reported event comes
//! from a read.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tenure_core::spi::{
    BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher, is_resign_requested,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep_until},
};
use tracing::debug;

use crate::{
    election::{
        entry::{create_revision, is_same_entry},
        position_reader::{PositionQuery, Snapshot},
        probe_entries::ProbeEntries,
        store::ElectionStore,
    },
    transport::{
        retry::retry_until_answered,
        watch::{
            subscriber::{Notifier, WatchUpdate},
            target::WatchTarget,
        },
    },
};

/// If a watch takes longer than this to be established, the entry is read without it.
const WATCH_ESTABLISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How many entries are read at a time: as many as fit into the transactions that may be in flight.
const MAX_CONCURRENT_READS: usize = 480;
/// How many watch updates are received at a time.
const MAX_UPDATES_PER_BATCH: usize = 256;

/// How often each entry is read without an update: etcd can lose an event around a compaction (issue 18089).
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// The least time between two such reads, of any entries.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(200);
/// How long after a refused read the entry is read again. Reads are refused while permissions are changed, for
/// example.
const REFUSED_READ_RETRY: Duration = Duration::from_secs(2);
/// Delay before reading an entry whose watch was closed before it was established, as by a member that closes every
/// watch.
const FAILED_WATCH_RETRY: Duration = Duration::from_millis(200);

/// Watches the entries of a lease that lead.
pub(crate) struct EtcdEntryWatcher {
    store: Arc<ElectionStore>,
    lease: i64,
    probe_entries: Arc<ProbeEntries>,
    entries: BTreeMap<u64, WatchedEntry>,
    /// Entries that the read of a heartbeat did not find.
    missing: (mpsc::UnboundedSender<u64>, mpsc::UnboundedReceiver<u64>),
    updates: (mpsc::UnboundedSender<WatchUpdate>, mpsc::UnboundedReceiver<WatchUpdate>),
    update_buffer: Vec<WatchUpdate>,
    /// Watches that may not be established yet, in the order of their timeouts. If a watch takes longer than its timeout,
    /// the entry is read without it.
    establishing: VecDeque<(Instant, u64)>,
    /// Entries to read at a later time, because they could not be read or watched.
    scheduled_reads: BTreeSet<(Instant, u64)>,
    /// Entries to read now, and whether with their payload.
    read_queue: VecDeque<(u64, bool)>,
    reads: FuturesUnordered<BoxFuture<'static, CompletedRead>>,
    /// The entry to read next without an update, and when.
    next_refresh: u64,
    next_refresh_at: Instant,
    /// Wakes for the next read that is due.
    timer: Pin<Box<Sleep>>,
}

struct WatchedEntry {
    key: Arc<str>,
    create_revision: i64,
    /// Zero without a watch.
    watch_id: i64,
    is_established: bool,
    /// True until a resign request was reported.
    resign_not_reported: bool,
}

/// A read that was answered or refused.
struct CompletedRead {
    id: u64,
    with_payload: bool,
    outcome: Result<Snapshot, BackendError>,
}

impl EtcdEntryWatcher {
    pub(crate) fn new(store: Arc<ElectionStore>, lease: i64, probe_entries: Arc<ProbeEntries>) -> Self {
        let next_refresh_at = Instant::now() + REFRESH_INTERVAL;
        Self {
            store,
            lease,
            probe_entries,
            missing: mpsc::unbounded_channel(),
            entries: BTreeMap::new(),
            updates: mpsc::unbounded_channel(),
            update_buffer: Vec::new(),
            establishing: VecDeque::new(),
            scheduled_reads: BTreeSet::new(),
            read_queue: VecDeque::new(),
            reads: FuturesUnordered::new(),
            next_refresh: 0,
            next_refresh_at,
            timer: Box::pin(sleep_until(next_refresh_at)),
        }
    }

    /// Opens a watch of the entry.
    fn open_watch(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let notifier = Notifier::new(id, self.updates.0.clone());
        entry.watch_id = self.store.watcher.subscribe(WatchTarget::Key(Arc::clone(&entry.key)), notifier);
        entry.is_established = false;
        self.establishing.push_back((Instant::now() + WATCH_ESTABLISH_TIMEOUT, id));
    }

    fn on_update(&mut self, update: &WatchUpdate) {
        // The update is of the entry's current watch: a watch is opened only after the one before was reported as
        // closed.
        let Some(entry) = self.entries.get_mut(&update.number) else { return };
        let was_established = std::mem::replace(&mut entry.is_established, update.is_established);
        if !update.is_established {
            entry.watch_id = 0;
        }
        match was_established || update.is_established {
            true => self.read_queue.push_back((update.number, false)),
            false => self.schedule_read(update.number, FAILED_WATCH_RETRY),
        }
    }

    /// Starts queued reads, up to the limit.
    fn start_reads(&mut self) {
        while self.reads.len() < MAX_CONCURRENT_READS
            && let Some((id, with_payload)) = self.read_queue.pop_front()
        {
            let Some(entry) = self.entries.get(&id) else { continue };
            let query = PositionQuery { key: Arc::clone(&entry.key), with_payload, ahead: None };
            let store = Arc::clone(&self.store);
            self.reads.push(Box::pin(async move {
                let outcome = retry_until_answered(|| Box::pin(store.read_position(query.clone()))).await;
                CompletedRead { id, with_payload, outcome }
            }));
        }
    }

    /// The event to report after a read.
    fn on_read(&mut self, read: CompletedRead) -> Result<Option<(u64, EntryEvent)>, BackendError> {
        let CompletedRead { id, with_payload, outcome } = read;
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(None) };
        let snapshot = match outcome {
            Ok(snapshot) => snapshot,
            Err(error) if error.kind() == BackendErrorKind::SessionGone => return Err(error),
            Err(error) => {
                debug!(entry = &*entry.key, %error, "reading the own etcd entry failed; retrying");
                self.schedule_read(id, REFUSED_READ_RETRY);
                return Ok(None);
            }
        };
        let Some(own) = snapshot.own.filter(|kv| is_same_entry(kv, self.lease, entry.create_revision)) else {
            self.probe_entries.remove(&entry.key, entry.create_revision);
            self.remove(id);
            return Ok(Some((id, EntryEvent::Deleted)));
        };
        if entry.resign_not_reported && with_payload && is_resign_requested(own.value()) {
            entry.resign_not_reported = false;
            self.ensure_watched(id);
            return Ok(Some((id, EntryEvent::ResignRequested)));
        }
        // The payload may be large, and is mostly unchanged.
        if entry.resign_not_reported && !with_payload && own.mod_revision() != own.create_revision() {
            self.read_queue.push_front((id, true));
            return Ok(None);
        }
        self.ensure_watched(id);
        Ok(None)
    }

    /// Reads the entry after about `delay`.
    fn schedule_read(&mut self, id: u64, delay: Duration) {
        self.scheduled_reads.insert((Instant::now() + delay.mul_f64(0.75 + fastrand::f64() / 2.0), id));
    }

    /// Opens a new watch of the entry when the last one is closed.
    fn ensure_watched(&mut self, id: u64) {
        if self.entries.get(&id).is_some_and(|entry| entry.watch_id == 0) {
            self.open_watch(id);
        }
    }

    /// Handles updates of watches. Pending when there are none.
    fn poll_updates(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut buffer = std::mem::take(&mut self.update_buffer);
        let received = self.updates.1.poll_recv_many(context, &mut buffer, MAX_UPDATES_PER_BATCH);
        buffer.drain(..).for_each(|update| self.on_update(&update));
        self.update_buffer = buffer;
        received.map(drop)
    }

    /// Reads an entry next that the read of a heartbeat did not find. Pending when there is none.
    fn poll_missing(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.missing.1.poll_recv(context).map(|id| {
            if let Some(id) = id {
                self.read_queue.push_front((id, false));
            }
        })
    }

    /// Ready at `next_read`.
    fn poll_timer(&mut self, next_read: Instant, context: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() != next_read {
            self.timer.as_mut().reset(next_read);
        }
        self.timer.as_mut().poll(context)
    }

    /// Queues the reads that are due, and returns when the next one will be.
    fn queue_due_reads(&mut self) -> Instant {
        let now = Instant::now();
        while let Some((at, id)) = self.establishing.front().copied()
            && (at <= now || self.entries.get(&id).is_none_or(|entry| entry.is_established))
        {
            self.establishing.pop_front();
            if self.entries.get(&id).is_some_and(|entry| !entry.is_established) {
                self.read_queue.push_back((id, false));
            }
        }
        while let Some((_, id)) = self.scheduled_reads.first().copied().filter(|(at, _)| *at <= now) {
            self.scheduled_reads.pop_first();
            self.read_queue.push_back((id, false));
        }
        if self.next_refresh_at <= now {
            let next = self.entries.range(self.next_refresh..).next().or_else(|| self.entries.iter().next());
            if let Some(id) = next.map(|(id, _)| *id) {
                self.read_queue.push_back((id, false));
                self.next_refresh = id + 1;
            }
            let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX).max(1);
            let interval = (REFRESH_INTERVAL / count).max(MIN_REFRESH_INTERVAL);
            self.next_refresh_at = now + interval.mul_f64(0.75 + fastrand::f64() / 2.0);
        }
        // The queues may have held thousands.
        if self.establishing.is_empty() && self.read_queue.is_empty() {
            self.establishing.shrink_to(MAX_UPDATES_PER_BATCH);
            self.read_queue.shrink_to(MAX_UPDATES_PER_BATCH);
        }
        let others = self.establishing.front().into_iter().chain(self.scheduled_reads.first());
        others.fold(self.next_refresh_at, |next, (at, _)| next.min(*at))
    }
}

impl EntryWatcher for EtcdEntryWatcher {
    fn add(&mut self, id: u64, entry: &Entry) {
        let watched = WatchedEntry {
            key: Arc::clone(&entry.key),
            create_revision: create_revision(entry),
            watch_id: 0,
            is_established: false,
            resign_not_reported: true,
        };
        let missing = self.missing.0.clone();
        let notify = move || {
            let _ = missing.send(id);
        };
        if !self.probe_entries.when_missing(&entry.key, watched.create_revision, notify) {
            self.read_queue.push_back((id, false));
        }
        self.entries.insert(id, watched);
        self.open_watch(id);
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id)
            && entry.watch_id != 0
        {
            self.store.watcher.unsubscribe(entry.watch_id);
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<(u64, EntryEvent), BackendError>> {
        // Until every source is pending, because only then it wakes the task.
        loop {
            let next_read = self.queue_due_reads();
            self.start_reads();
            if let Poll::Ready(Some(read)) = self.reads.poll_next_unpin(context) {
                if let Some(event) = self.on_read(read)? {
                    return Poll::Ready(Ok(event));
                }
            } else if self.poll_updates(context).is_pending()
                && self.poll_missing(context).is_pending()
                && self.poll_timer(next_read, context).is_pending()
            {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for EtcdEntryWatcher {
    fn drop(&mut self) {
        for entry in self.entries.values().filter(|entry| entry.watch_id != 0) {
            self.store.watcher.unsubscribe(entry.watch_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
        task::{Wake, Waker},
    };

    use tenure_core::ElectionName;
    use tokio::time::advance;

    use super::*;
    use crate::EtcdConfig;

    fn entry(election: &str) -> Entry {
        Entry {
            election: ElectionName::new(election).unwrap(),
            key: format!("/t/{election}/7").into(),
            version: 5,
        }
    }

    /// Records that a task was woken.
    #[derive(Default)]
    struct WakeFlag(AtomicBool);

    impl Wake for WakeFlag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    /// Polls a watcher that has no event.
    fn poll_pending(watcher: &mut EtcdEntryWatcher, flag: &Arc<WakeFlag>) {
        flag.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(flag));
        assert!(watcher.poll_next(&mut Context::from_waker(&waker)).is_pending());
    }

    /// A watcher of one entry, whose watch is established.
    fn watching() -> EtcdEntryWatcher {
        let store = Arc::new(ElectionStore::new(EtcdConfig::new(["127.0.0.1:1"])));
        let mut watcher = EtcdEntryWatcher::new(store, 7, Arc::default());
        watcher.add(1, &entry("e"));
        watcher.on_update(&WatchUpdate { number: 1, is_established: true });
        watcher.read_queue.clear();
        watcher
    }

    fn refused_read() -> CompletedRead {
        let outcome = Err(BackendError::new(BackendErrorKind::Unauthorized, "permission denied"));
        CompletedRead { id: 1, with_payload: false, outcome }
    }

    /// Hazard G12: an entry whose read was refused is read again soon.
    #[tokio::test(start_paused = true)]
    async fn a_refused_read_is_repeated() {
        let mut watcher = watching();
        advance(WATCH_ESTABLISH_TIMEOUT * 2).await;
        watcher.queue_due_reads();
        watcher.on_update(&WatchUpdate { number: 1, is_established: false });
        watcher.read_queue.clear();
        assert!(watcher.on_read(refused_read()).unwrap().is_none());
        advance(REFUSED_READ_RETRY * 2).await;
        watcher.queue_due_reads();
        assert_eq!(watcher.read_queue, [(1, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_was_never_established_is_not_reopened_at_once() {
        let mut watcher = watching();
        watcher.open_watch(1);
        watcher.on_update(&WatchUpdate { number: 1, is_established: false });
        watcher.queue_due_reads();
        assert!(watcher.read_queue.is_empty());
        advance(FAILED_WATCH_RETRY * 2).await;
        watcher.queue_due_reads();
        assert_eq!(watcher.read_queue, [(1, false)]);
    }

    /// The task is woken for an entry that was added since the last poll: by its watch, and by the timeout of its watch.
    #[tokio::test(start_paused = true)]
    async fn an_entry_added_between_polls_is_noticed() {
        let mut watcher = watching();
        let flag = Arc::default();
        poll_pending(&mut watcher, &flag);
        let reads = watcher.reads.len();
        watcher.add(2, &entry("f"));
        watcher.read_queue.clear();
        poll_pending(&mut watcher, &flag);
        assert_eq!(watcher.timer.deadline(), Instant::now() + WATCH_ESTABLISH_TIMEOUT);
        watcher.updates.0.send(WatchUpdate { number: 2, is_established: true }).unwrap();
        assert!(flag.0.load(SeqCst), "the task is woken");
        poll_pending(&mut watcher, &flag);
        assert_eq!(watcher.reads.len(), reads + 1);
        assert!(watcher.entries[&2].is_established);
    }

    /// Hazards G12, E2: an entry that the read of a heartbeat did not find is read at once, whatever its watch reports.
    #[tokio::test(start_paused = true)]
    async fn an_entry_that_a_confirming_read_misses_is_read_at_once() {
        let mut watcher = watching();
        let flag = Arc::default();
        let probe_entries = Arc::clone(&watcher.probe_entries);
        probe_entries.add(entry("f").key, 5, 50);
        watcher.add(2, &entry("f"));
        assert!(watcher.read_queue.is_empty(), "it is read once its watch is established");
        watcher.on_update(&WatchUpdate { number: 2, is_established: true });
        poll_pending(&mut watcher, &flag);
        let reads = watcher.reads.len();
        probe_entries.mark_missing(&probe_entries.next().unwrap());
        assert!(flag.0.load(SeqCst), "the task is woken");
        poll_pending(&mut watcher, &flag);
        assert_eq!(watcher.reads.len(), reads + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_was_missing_before_it_is_watched_is_read_at_once() {
        let mut watcher = watching();
        watcher.add(2, &entry("f"));
        assert_eq!(watcher.read_queue, [(2, false)]);
    }
}
