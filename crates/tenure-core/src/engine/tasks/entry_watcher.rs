//! The entry watcher for backends that watch each entry by itself.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use tracing::debug;

use super::session::Session;
use crate::{
    engine::runtime::retry::Retry,
    spi::{BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher},
};

/// Watches each entry by [`BackendSession::wait_entry_event`](crate::spi::BackendSession::wait_entry_event).
pub(crate) struct PerEntryWatcher {
    session: Arc<Session>,
    watches: FuturesUnordered<Abortable<BoxFuture<'static, FinishedWatch>>>,
    watched: BTreeMap<u64, AbortHandle>,
}

/// The result of the watch on one entry.
struct FinishedWatch {
    number: u64,
    entry: Entry,
    outcome: Result<EntryEvent, BackendError>,
}

impl PerEntryWatcher {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        Self { session: Arc::clone(session), watches: FuturesUnordered::new(), watched: BTreeMap::new() }
    }

    fn watch(&mut self, number: u64, entry: Entry, for_resign_requests: bool) {
        let session = Arc::clone(&self.session);
        let (handle, registration) = AbortHandle::new_pair();
        let watch: BoxFuture<'static, FinishedWatch> = Box::pin(async move {
            let outcome = watch(&session, &entry, for_resign_requests).await;
            FinishedWatch { number, entry, outcome }
        });
        self.watches.push(Abortable::new(watch, registration));
        self.watched.insert(number, handle);
    }
}

#[async_trait]
impl EntryWatcher for PerEntryWatcher {
    fn add(&mut self, number: u64, entry: &Entry) {
        self.watch(number, entry.clone(), true);
    }

    fn remove(&mut self, number: u64) {
        if let Some(handle) = self.watched.remove(&number) {
            handle.abort();
        }
    }

    async fn next(&mut self) -> Result<(u64, EntryEvent), BackendError> {
        loop {
            let Some(finished) = self.watches.next().await else { return std::future::pending().await };
            // Watches that were removed have no result.
            let Ok(FinishedWatch { number, entry, outcome }) = finished else { continue };
            if self.watched.remove(&number).is_none() {
                continue;
            }
            let event = outcome?;
            if event == EntryEvent::ResignRequested {
                self.watch(number, entry, false);
            }
            return Ok((number, event));
        }
    }
}

/// Returns when the entry is gone, or, with `for_resign_requests`, when its candidate was asked to resign.
/// Repeats a watch that fails.
async fn watch(
    session: &Session,
    entry: &Entry,
    for_resign_requests: bool,
) -> Result<EntryEvent, BackendError> {
    let mut retry = Retry::new(session.shared.config.retry);
    loop {
        let event = match for_resign_requests {
            true => session.backend_session.wait_entry_event(entry).await,
            false => session.backend_session.wait_deleted(entry).await.map(|()| EntryEvent::Deleted),
        };
        match event {
            Err(error) if error.kind() == BackendErrorKind::EntryGone => return Ok(EntryEvent::Deleted),
            Err(error) if error.kind() != BackendErrorKind::SessionGone => {
                // Not reported to the status: the heartbeats show whether the store answers.
                debug!(election = %entry.election, %error, "watching the leader's entry again");
            }
            outcome => return outcome,
        }
        retry.pause().await;
    }
}
