//! Watches on the entries that lead, for backends that watch each by itself.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use tracing::debug;

use super::{retry::Retry, session::Session};
use crate::spi::{BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher};

/// By [`BackendSession::wait_entry_event`](crate::spi::BackendSession::wait_entry_event) of each.
pub(crate) fn each(session: &Arc<Session>) -> Box<dyn EntryWatcher> {
    Box::new(Each {
        session: Arc::clone(session),
        watches: FuturesUnordered::new(),
        watched: BTreeMap::new(),
    })
}

struct Each {
    session: Arc<Session>,
    watches: FuturesUnordered<Abortable<BoxFuture<'static, Heard>>>,
    watched: BTreeMap<u64, AbortHandle>,
}

/// What the watch on an entry came to.
struct Heard {
    number: u64,
    entry: Entry,
    outcome: Result<EntryEvent, BackendError>,
}

impl Each {
    fn watch(&mut self, number: u64, entry: Entry, heeds: bool) {
        let session = Arc::clone(&self.session);
        let (handle, registration) = AbortHandle::new_pair();
        let watch: BoxFuture<'static, Heard> = Box::pin(async move {
            let outcome = watch(&session, &entry, heeds).await;
            Heard { number, entry, outcome }
        });
        self.watches.push(Abortable::new(watch, registration));
        self.watched.insert(number, handle);
    }
}

#[async_trait]
impl EntryWatcher for Each {
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
            let Some(heard) = self.watches.next().await else { return std::future::pending().await };
            // Of those that were let go of nothing is wanted.
            let Ok(Heard { number, entry, outcome }) = heard else { continue };
            if self.watched.remove(&number).is_none() {
                continue;
            }
            let parting = outcome?;
            if parting == EntryEvent::ResignRequested {
                self.watch(number, entry, false);
            }
            return Ok((number, parting));
        }
    }
}

/// Returns when the entry is gone, or, if that `heeds`, when somebody has asked for a resignation. A watch that
/// fails is taken up again.
async fn watch(session: &Session, entry: &Entry, heeds: bool) -> Result<EntryEvent, BackendError> {
    let mut retry = Retry::new(session.shared.config.retry);
    loop {
        let parting = match heeds {
            true => session.spi.wait_entry_event(entry).await,
            false => session.spi.wait_deleted(entry).await.map(|()| EntryEvent::Deleted),
        };
        match parting {
            Err(error) if error.kind() == BackendErrorKind::EntryGone => return Ok(EntryEvent::Deleted),
            Err(error) if error.kind() != BackendErrorKind::SessionGone => {
                // Not for the status: the heartbeats say whether the store answers.
                debug!(election = %entry.election, %error, "watching the own entry again");
            }
            outcome => return outcome,
        }
        retry.pause().await;
    }
}
