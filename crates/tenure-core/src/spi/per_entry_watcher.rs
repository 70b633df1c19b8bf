//! The entry watcher for backends that watch each entry by itself.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use tracing::debug;

use super::{BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher};
use crate::{Backoff, retry_delays::RetryDelays, sync::sleep};

/// An [`EntryWatcher`] that waits for the events of each entry by a future of its own. Repeats a wait that fails.
///
/// For backends whose store, or whose client, watches one thing at a time. A thousand entries cost a thousand futures.
pub struct PerEntryWatcher {
    wait: Arc<WaitFn>,
    watches: FuturesUnordered<Abortable<BoxFuture<'static, FinishedWatch>>>,
    watched: BTreeMap<u64, AbortHandle>,
}

/// The pauses before a failed wait is repeated.
const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) };

type WaitFn = dyn Fn(Entry, bool) -> BoxFuture<'static, Result<EntryEvent, BackendError>> + Send + Sync;

/// The result of the watch on one entry.
struct FinishedWatch {
    id: u64,
    entry: Entry,
    outcome: Result<EntryEvent, BackendError>,
}

impl PerEntryWatcher {
    /// Watches entries by `wait(entry, for_resign_requests)`, which waits until the entry no longer exists or no longer
    /// belongs to the session and, with `for_resign_requests`, also returns when its candidate was asked to resign, even
    /// before the call.
    ///
    /// `wait` is not bounded in time, and its future may be dropped. It is called again after an error, except
    /// [`EntryGone`](BackendErrorKind::EntryGone), which counts as [`Deleted`](EntryEvent::Deleted), and
    /// [`SessionGone`](BackendErrorKind::SessionGone).
    pub fn new<F>(wait: impl Fn(Entry, bool) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<EntryEvent, BackendError>> + Send + 'static,
    {
        Self {
            wait: Arc::new(move |entry, for_resign_requests| Box::pin(wait(entry, for_resign_requests))),
            watches: FuturesUnordered::new(),
            watched: BTreeMap::new(),
        }
    }

    fn watch(&mut self, id: u64, entry: Entry, for_resign_requests: bool) {
        let wait = Arc::clone(&self.wait);
        let (handle, registration) = AbortHandle::new_pair();
        let watch: BoxFuture<'static, FinishedWatch> = Box::pin(async move {
            let outcome = watch(&*wait, &entry, for_resign_requests).await;
            FinishedWatch { id, entry, outcome }
        });
        self.watches.push(Abortable::new(watch, registration));
        self.watched.insert(id, handle);
    }
}

impl fmt::Debug for PerEntryWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerEntryWatcher").field("watched", &self.watched.len()).finish_non_exhaustive()
    }
}

impl EntryWatcher for PerEntryWatcher {
    fn add(&mut self, id: u64, entry: &Entry) {
        self.watch(id, entry.clone(), true);
    }

    fn remove(&mut self, id: u64) {
        if let Some(handle) = self.watched.remove(&id) {
            handle.abort();
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<(u64, EntryEvent), BackendError>> {
        loop {
            let Some(finished) = ready!(self.watches.poll_next_unpin(context)) else { return Poll::Pending };
            // Watches that were removed have no result.
            let Ok(FinishedWatch { id, entry, outcome }) = finished else { continue };
            if self.watched.remove(&id).is_none() {
                continue;
            }
            let event = outcome?;
            if event == EntryEvent::ResignRequested {
                self.watch(id, entry, false);
            }
            return Poll::Ready(Ok((id, event)));
        }
    }
}

/// Waits for an event of the entry. Repeats a wait that fails.
async fn watch(wait: &WaitFn, entry: &Entry, for_resign_requests: bool) -> Result<EntryEvent, BackendError> {
    let mut retry = RetryDelays::new(RETRY);
    loop {
        match wait(entry.clone(), for_resign_requests).await {
            Err(error) if error.kind() == BackendErrorKind::EntryGone => return Ok(EntryEvent::Deleted),
            Err(error) if error.kind() != BackendErrorKind::SessionGone => {
                // Not reported to the status: the heartbeats show whether the store answers.
                debug!(election = %entry.election, %error, "watching the leader's entry again");
            }
            outcome => return outcome,
        }
        // Boxed: a future that waits for hours should not hold the memory of a pause.
        Box::pin(sleep(retry.next_delay())).await;
    }
}
