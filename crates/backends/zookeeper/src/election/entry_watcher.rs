//! Watches the entries of one session that lead: whether they are deleted, and whether a resign request is written to them.
//!
//! Every watch is for one event and for one connection: after a reconnect every entry is read again (hazards Z6, Z7,
//! Z11). What is reported of an entry comes from reading it, never from an event.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tenure_core::spi::{
    BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher, is_resign_requested,
};
use tokio::time::{Instant, Sleep, sleep};
use tracing::debug;
use zookeeper_client::{Error, Stat};

use super::{entry_stat::is_own_entry, wait::LEADER_RECHECK_INTERVAL};
use crate::transport::{
    connection::Connection,
    error::{backend_error, session_gone},
    resumable_session::ResumableSession,
    watch::Event,
};

/// How many entries are read concurrently.
const MAX_CONCURRENT_READS: usize = 256;
/// The least time between two reads of entries that no event was received for.
const MIN_RECHECK_SPACING: Duration = Duration::from_millis(200);
/// The delay before a failed read is repeated.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Watches the entries of one session that lead.
pub(crate) struct ZookeeperEntryWatcher {
    session: Arc<ResumableSession>,
    watched: BTreeMap<u64, WatchedEntry>,
    /// The connection that the watches are on, and the wait for its loss.
    connection: Option<(Arc<Connection>, BoxFuture<'static, ()>)>,
    /// The wait for the next connection, while there is none.
    connecting: Option<BoxFuture<'static, Result<Arc<Connection>, BackendError>>>,
    /// The entries to read next, and whether to set a watch.
    to_read: VecDeque<(u64, bool)>,
    reads: FuturesUnordered<BoxFuture<'static, ReadResult>>,
    /// The entries whose reads failed, and when to repeat them.
    retries: VecDeque<(Instant, u64)>,
    watches: FuturesUnordered<EntryWatch>,
    /// The entry that is read next without an event, and when.
    next_recheck: u64,
    next_recheck_at: Instant,
    /// Ends when the next read without an event is due.
    timer: Pin<Box<Sleep>>,
}

struct WatchedEntry {
    entry: Entry,
    /// True until a resign request was reported.
    resign_not_reported: bool,
}

/// The result of reading an entry.
struct ReadResult {
    id: u64,
    with_watch: bool,
    outcome: Result<Option<WatchedData>, Error>,
}

/// What a read found, and the event of its watch, if one was set.
struct WatchedData {
    payload: Vec<u8>,
    stat: Stat,
    event: Option<Event>,
}

/// A watch on the entry of this id. Ready when the entry has to be read again.
struct EntryWatch {
    id: u64,
    event: Event,
}

impl Future for EntryWatch {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u64> {
        // A panic means that the connection has ended, which is a reason to read again as well.
        match catch_unwind(AssertUnwindSafe(|| self.event.poll_unpin(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(_)) | Err(_) => Poll::Ready(self.id),
        }
    }
}

impl ZookeeperEntryWatcher {
    pub(crate) fn new(session: Arc<ResumableSession>) -> Self {
        Self {
            session,
            watched: BTreeMap::new(),
            connection: None,
            connecting: None,
            to_read: VecDeque::new(),
            reads: FuturesUnordered::new(),
            retries: VecDeque::new(),
            watches: FuturesUnordered::new(),
            next_recheck: 0,
            next_recheck_at: Instant::now() + LEADER_RECHECK_INTERVAL,
            timer: Box::pin(sleep(LEADER_RECHECK_INTERVAL)),
        }
    }

    /// The current connection. If it is a new one, every entry is read again.
    fn poll_connection(&mut self, context: &mut Context<'_>) -> Poll<Result<Arc<Connection>, BackendError>> {
        if let Some((connection, lost)) = &mut self.connection
            && connection.is_unbroken()
            && lost.as_mut().poll(context).is_pending()
        {
            return Poll::Ready(Ok(Arc::clone(connection)));
        }
        self.connection = None;
        self.reads.clear();
        self.retries.clear();
        self.watches.clear();
        let session = &self.session;
        let connecting =
            self.connecting.get_or_insert_with(|| Box::pin(next_connection(Arc::clone(session))));
        let connected = ready!(connecting.as_mut().poll(context));
        self.connecting = None;
        let connection = connected?;
        self.to_read = self.watched.keys().map(|id| (*id, true)).collect();
        let lost = Arc::clone(&connection);
        self.connection = Some((Arc::clone(&connection), Box::pin(async move { lost.lost().await })));
        // Polled again with the new connection.
        context.waker().wake_by_ref();
        Poll::Ready(Ok(connection))
    }

    /// Starts reading, up to [`MAX_CONCURRENT_READS`] entries at a time.
    fn start_reads(&mut self, connection: &Arc<Connection>) {
        while self.reads.len() < MAX_CONCURRENT_READS
            && let Some((id, with_watch)) = self.to_read.pop_front()
        {
            let Some(watched) = self.watched.get(&id) else { continue };
            let (path, connection) = (Arc::clone(&watched.entry.key), Arc::clone(connection));
            self.reads.push(Box::pin(async move {
                let outcome = read(&connection, &path, with_watch).await;
                ReadResult { id, with_watch, outcome }
            }));
        }
        // There may have been thousands.
        if self.to_read.is_empty() {
            self.to_read.shrink_to(MAX_CONCURRENT_READS);
        }
    }

    /// The event that a read shows, if any.
    fn event_of(&mut self, result: ReadResult) -> Result<Option<(u64, EntryEvent)>, BackendError> {
        let ReadResult { id, with_watch, outcome } = result;
        let Some(watched) = self.watched.get_mut(&id) else { return Ok(None) };
        let found = match outcome {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.watched.remove(&id);
                return Ok(Some((id, EntryEvent::Deleted)));
            }
            Err(error) => {
                let error = backend_error("watching the own entry", &error);
                debug!(path = &*watched.entry.key, %error, "reading the entry again");
                if error.kind() == BackendErrorKind::SessionGone {
                    return Err(error);
                }
                // If the connection is the cause, every entry is read again over the next one.
                if with_watch {
                    self.retries.push_back((Instant::now() + RETRY_DELAY, id));
                }
                return Ok(None);
            }
        };
        if !is_own_entry(&self.session, &found.stat, &watched.entry) {
            return Err(session_gone("the entry belongs to another session"));
        }
        if let Some(event) = found.event {
            self.watches.push(EntryWatch { id, event });
        }
        if watched.resign_not_reported && is_resign_requested(&found.payload) {
            watched.resign_not_reported = false;
            return Ok(Some((id, EntryEvent::ResignRequested)));
        }
        Ok(None)
    }

    /// Queues the entries that are due to be read without an event. Returns when the next one is due.
    fn queue_due_reads(&mut self) -> Instant {
        let now = Instant::now();
        while let Some((_, id)) = self.retries.front().copied().filter(|(at, _)| *at <= now) {
            self.retries.pop_front();
            self.to_read.push_back((id, true));
        }
        if self.next_recheck_at <= now {
            let after = self.watched.range(self.next_recheck..).next().or_else(|| self.watched.iter().next());
            if let Some(id) = after.map(|(id, _)| *id) {
                self.to_read.push_back((id, false));
                self.next_recheck = id + 1;
            }
            let count = u32::try_from(self.watched.len()).unwrap_or(u32::MAX).max(1);
            let interval = (LEADER_RECHECK_INTERVAL / count).max(MIN_RECHECK_SPACING);
            self.next_recheck_at = now + interval.mul_f64(0.75 + fastrand::f64() / 2.0);
        }
        self.retries.front().map_or(self.next_recheck_at, |(at, _)| self.next_recheck_at.min(*at))
    }
}

/// Reads an entry, and watches it if `with_watch`.
async fn read(connection: &Connection, path: &str, with_watch: bool) -> Result<Option<WatchedData>, Error> {
    let found = match with_watch {
        true => connection.watch_data(path).await.map(|found| {
            found.map(|(payload, stat, watch)| WatchedData { payload, stat, event: watch.into_event() })
        }),
        false => connection
            .get(path)
            .await
            .map(|found| found.map(|(payload, stat)| WatchedData { payload, stat, event: None })),
    };
    // A candidate that may not read its own entry does not see resign requests.
    let unreadable = |stat, event| WatchedData { payload: Vec::new(), stat, event };
    match found {
        Err(Error::NoAuth) if with_watch => {
            let found = connection.watch_deletion(path).await?;
            Ok(found.map(|(stat, watch)| unreadable(stat, watch.into_event())))
        }
        Err(Error::NoAuth) => Ok(connection.stat(path).await?.map(|stat| unreadable(stat, None))),
        found => found,
    }
}

/// Waits for a connection, as long as the session lasts.
async fn next_connection(session: Arc<ResumableSession>) -> Result<Arc<Connection>, BackendError> {
    loop {
        match session.connection().await {
            Err(error) if error.kind() != BackendErrorKind::SessionGone => {
                debug!(%error, "cannot read the own entries");
            }
            outcome => return outcome,
        }
        sleep(RETRY_DELAY).await;
    }
}

impl EntryWatcher for ZookeeperEntryWatcher {
    fn add(&mut self, id: u64, entry: &Entry) {
        let watched = WatchedEntry { entry: entry.clone(), resign_not_reported: true };
        self.watched.insert(id, watched);
        self.to_read.push_back((id, true));
    }

    /// The watch stays at the server until it fires. The deletion of the entry, which follows, fires it.
    fn remove(&mut self, id: u64) {
        self.watched.remove(&id);
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<(u64, EntryEvent), BackendError>> {
        loop {
            let connection = ready!(self.poll_connection(context))?;
            let due = self.queue_due_reads();
            self.start_reads(&connection);
            // Not polled once the client's task has ended: its watches panic then.
            if !connection.has_client_ended()
                && let Poll::Ready(Some(id)) = self.watches.poll_next_unpin(context)
            {
                self.to_read.push_back((id, true));
                continue;
            }
            if let Poll::Ready(Some(result)) = self.reads.poll_next_unpin(context) {
                match self.event_of(result)? {
                    Some(event) => return Poll::Ready(Ok(event)),
                    None => continue,
                }
            }
            if self.timer.deadline() != due {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(context));
        }
    }
}
