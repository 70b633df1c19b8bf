//! The values of candidates: what others are to read.
//!
//! A request to enter has one value for all of its attempts. A value that is set later is stored by an update of the
//! entry, once the entry is known ([`candidate_entry`](super::candidate_entry)). So the store finds the entry of a request
//! whatever its value is by now, and a withdrawal recognizes what a late attempt creates.

use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use crate::{
    spi::BackendError,
    sync::{Mutex, MutexGuard},
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
    latest: Mutex<LatestValue>,
    pub(super) progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
pub(super) struct LatestValue {
    /// `None` while it is the request's.
    pub(super) value: Option<Arc<[u8]>>,
    /// Numbers the values of this entry from 1.
    pub(super) number: u64,
    /// Whether a task stores values.
    pub(super) is_storing: bool,
}

/// The latest value with which the storing task has finished.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) number: u64,
    /// Why it was not stored.
    pub(super) error: Option<BackendError>,
}

impl EntryValue {
    pub(super) fn new() -> Self {
        Self { latest: Mutex::default(), progress: watch::channel(Progress::default()).0 }
    }

    /// Sets the latest value, and returns its number. [`CandidateEntry::store_value`](super::candidate_entry::CandidateEntry::store_value) stores it.
    pub(crate) fn set(&self, value: Arc<[u8]>) -> u64 {
        let mut latest = self.latest();
        latest.value = Some(value);
        latest.number += 1;
        latest.number
    }

    /// Waits until the store has the value with this number, or a later one, or refuses it.
    ///
    /// # Errors
    /// [`EntryGone`](crate::spi::BackendErrorKind::EntryGone) or [`SessionGone`](crate::spi::BackendErrorKind::SessionGone), also when the
    /// session has ended here: the entry no longer exists. Permanent errors of the store.
    pub(crate) async fn wait_stored(&self, number: u64) -> Result<(), BackendError> {
        let mut progress = self.progress.subscribe();
        let finished = progress.wait_for(|progress| progress.number >= number).await;
        finished.map_or(Ok(()), |progress| progress.error.clone().map_or(Ok(()), Err))
    }

    pub(super) fn latest(&self) -> MutexGuard<'_, LatestValue> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
