//! Stores the values that are set for an entry after its request.
//!
//! One task per entry stores the latest value, while there is one to store. So values are stored in the order in which
//! they were set, and an outage of the store piles up nothing.

use std::sync::Arc;

use tracing::{debug, warn};

use super::{
    entry_value::Progress,
    session::{RegisteredEntry, Session},
};
use crate::{
    engine::runtime::retry::{Retry, with_timeout},
    spi::{BackendError, BackendErrorKind, EntryRequest},
};

/// An entry that exists in the store: of a candidate that waits or leads.
#[derive(Clone, Debug)]
pub(crate) struct CandidateEntry {
    pub(crate) session: Arc<Session>,
    /// The request that created it.
    pub(crate) request: Arc<EntryRequest>,
    pub(crate) registered: Arc<RegisteredEntry>,
}

impl CandidateEntry {
    /// Starts the task that stores the latest value, unless it runs. [`EntryValue::wait_stored`](super::entry_value::EntryValue::wait_stored) waits for it.
    pub(crate) fn store_value(&self) {
        if !std::mem::replace(&mut self.registered.value().latest().is_storing, true) {
            let storing = StoringTask { entry: self.clone(), is_finished: false };
            self.session.shared.runtime.spawn(storing.run());
        }
    }
}

/// Stores values until there is none to store. Created before its task is spawned: when it is dropped before that, those
/// who wait are told.
struct StoringTask {
    entry: CandidateEntry,
    is_finished: bool,
}

impl Drop for StoringTask {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let entry_value = self.entry.registered.value();
        let number = {
            let mut latest = entry_value.latest();
            latest.is_storing = false;
            latest.number
        };
        let error =
            BackendError::new(BackendErrorKind::Unavailable, "the task that stores values was aborted");
        entry_value.progress.send_replace(Progress { number, error: Some(error) });
    }
}

impl StoringTask {
    async fn run(mut self) {
        while let Some((number, value)) = self.next_value() {
            let error = self.store(value).await.err();
            match &error {
                Some(error) if error.is_permanent() => {
                    warn!(election = %self.entry.request.election, %error, "the store refuses a candidate's value");
                }
                Some(error) => {
                    debug!(election = %self.entry.request.election, %error, "a candidate's value was not stored");
                }
                None => {}
            }
            self.entry.registered.value().progress.send_replace(Progress { number, error });
        }
    }

    /// The latest value, unless this task has finished with it: then it ends.
    fn next_value(&mut self) -> Option<(u64, Arc<[u8]>)> {
        let entry_value = self.entry.registered.value();
        let mut latest = entry_value.latest();
        if latest.number > entry_value.progress.borrow().number {
            return latest.value.clone().map(|value| (latest.number, value));
        }
        // Under the lock: a thread that sets a later value starts another task.
        latest.is_storing = false;
        self.is_finished = true;
        None
    }

    /// Stores one value. Retries during an outage.
    async fn store(&self, value: Arc<[u8]>) -> Result<(), BackendError> {
        let CandidateEntry { session, request, registered } = &self.entry;
        let shared = &session.shared;
        let request = EntryRequest { value, ..EntryRequest::clone(request) };
        let mut retry = Retry::new(shared.config.retry);
        loop {
            let update = session.backend_session.update(&registered.entry, &request);
            let answer = tokio::select! {
                biased;
                () = session.ended_token.cancelled() => return Err(session_ended()),
                answer = with_timeout("updating the value", shared.config.request_timeout, update) => answer,
            };
            match answer {
                Err(error) if error.is_retryable() => {
                    shared.status.failed(&error);
                    debug!(election = %request.election, %error, "the value is not stored yet; trying again");
                }
                answer => {
                    if answer.is_ok() {
                        shared.status.answered();
                    }
                    return answer;
                }
            }
            tokio::select! {
                biased;
                () = session.ended_token.cancelled() => return Err(session_ended()),
                () = retry.pause() => {}
            }
        }
    }
}

fn session_ended() -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, "the session has ended")
}
