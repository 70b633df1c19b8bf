//! The values of candidates: what others are to read, and how it reaches the store.
//!
//! A request to enter has one value for all of its attempts. A value that is set later is stored by an update of the
//! entry, once the entry is known. So the store finds the entry of a request whatever its value is by now, and a
//! withdrawal recognizes what a late attempt creates.

use std::sync::{Arc, PoisonError};

use tracing::debug;

use super::{registered_entry::RegisteredEntry, session::Session};
use crate::{
    engine::runtime::retry::{Retry, with_timeout},
    spi::{BackendError, BackendErrorKind, EntryRequest},
    sync::Mutex,
};

/// A value, with a number that orders it among those of one elector. The one that was set last counts.
#[derive(Clone, Debug)]
pub(crate) struct CandidateValue {
    pub(crate) value: Arc<[u8]>,
    /// Zero for the value in the elector's configuration.
    pub(crate) number: u64,
}

/// The values that were set for an entry after its request.
#[derive(Debug)]
pub(crate) struct EntryValue {
    /// The latest value, numbered from 1; `None` while it is the request's.
    latest: Mutex<(u64, Option<Arc<[u8]>>)>,
    /// The number of the value that the store has. Locked while one is being stored, so that they are stored in order.
    stored: tokio::sync::Mutex<u64>,
}

impl EntryValue {
    pub(super) fn new() -> Self {
        Self { latest: Mutex::default(), stored: tokio::sync::Mutex::new(0) }
    }

    /// Sets the latest value. It is not stored yet.
    pub(crate) fn set(&self, value: Arc<[u8]>) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (latest.0 + 1, Some(value));
    }

    fn latest(&self) -> (u64, Option<Arc<[u8]>>) {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An entry that exists in the store: of a candidate that waits or leads.
#[derive(Clone, Debug)]
pub(crate) struct CandidateEntry {
    pub(crate) session: Arc<Session>,
    /// The request that created it.
    pub(crate) request: Arc<EntryRequest>,
    pub(crate) registered: Arc<RegisteredEntry>,
}

impl CandidateEntry {
    /// Stores the latest value. Returns when the store has it, or a later one. Retries during an outage.
    ///
    /// # Errors
    /// [`EntryGone`](BackendErrorKind::EntryGone) or [`SessionGone`](BackendErrorKind::SessionGone), also when the
    /// session has ended here: the entry no longer exists. Permanent errors of the store.
    pub(crate) async fn store_value(&self) -> Result<(), BackendError> {
        let shared = &self.session.shared;
        let entry_value = self.registered.value();
        let mut retry = Retry::new(shared.config.retry);
        let mut stored = entry_value.stored.lock().await;
        loop {
            let (number, latest) = entry_value.latest();
            let Some(value) = latest.filter(|_| number > *stored) else { return Ok(()) };
            let request = EntryRequest { value, ..EntryRequest::clone(&self.request) };
            let update = self.session.backend_session.update(&self.registered.entry, &request);
            let answer = tokio::select! {
                biased;
                () = self.session.ended_token.cancelled() => return Err(session_ended()),
                answer = with_timeout("updating the value", shared.config.request_timeout, update) => answer,
            };
            match answer {
                Ok(()) => {
                    shared.status.answered();
                    *stored = number;
                    return Ok(());
                }
                Err(error) if error.is_retryable() => {
                    shared.status.failed(&error);
                    debug!(election = %self.request.election, %error, "the value is not stored yet; trying again");
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                () = self.session.ended_token.cancelled() => return Err(session_ended()),
                () = retry.pause() => {}
            }
        }
    }
}

fn session_ended() -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, "the session has ended")
}
