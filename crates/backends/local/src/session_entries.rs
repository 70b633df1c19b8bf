//! The requests and entries of one session.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tenure_core::{
    ElectionName,
    spi::{BackendError, BackendErrorKind, Entry},
};
use tokio::sync::Mutex as AsyncMutex;

use crate::{entry::OwnEntry, error::io_error};

/// The requests and entries of one session.
#[derive(Debug, Default)]
pub(crate) struct SessionEntries {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// The state of each request to enter, by nonce. An operation on a request holds its lock, also while the
    /// operation runs on another thread. Therefore a later call waits for what an earlier, dropped call has started.
    requests: HashMap<u128, Arc<AsyncMutex<RequestState>>>,
    entries: HashMap<(ElectionName, u64), Arc<OwnEntry>>,
}

/// The state of a request to enter.
#[derive(Debug, Default)]
pub(crate) enum RequestState {
    /// No entry has been created.
    #[default]
    Pending,
    /// This entry has been created.
    Entered(ElectionName, Arc<OwnEntry>),
    /// The request was withdrawn. This is final.
    Withdrawn,
}

impl SessionEntries {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// [`SessionGone`](BackendErrorKind::SessionGone) if the session has been closed.
    pub(crate) fn ensure_open(&self) -> Result<(), BackendError> {
        if self.state().closed { Err(session_closed()) } else { Ok(()) }
    }

    /// The state of the request with this nonce, which is pending if there was none.
    pub(crate) fn request_or_default(
        &self,
        nonce: u128,
    ) -> Result<Arc<AsyncMutex<RequestState>>, BackendError> {
        let mut state = self.state();
        if state.closed {
            return Err(session_closed());
        }
        Ok(Arc::clone(state.requests.entry(nonce).or_default()))
    }

    /// The state of the request with this nonce, if there is one.
    pub(crate) fn request(&self, nonce: u128) -> Option<Arc<AsyncMutex<RequestState>>> {
        self.state().requests.get(&nonce).cloned()
    }

    /// The entry with this version.
    pub(crate) fn entry(&self, entry: &Entry) -> Result<Arc<OwnEntry>, BackendError> {
        let state = self.state();
        if let Some(own) = state.entries.get(&(entry.election.clone(), entry.version)) {
            return Ok(Arc::clone(own));
        }
        Err(match state.closed {
            true => session_closed(),
            false => entry_gone(entry),
        })
    }

    pub(crate) fn insert(&self, election: ElectionName, own: Arc<OwnEntry>) {
        self.state().entries.insert((election, own.number()), own);
    }

    /// Withdraws a request, and releases the entry that it created.
    pub(crate) fn withdraw(&self, nonce: u128, request: &mut RequestState) -> Result<(), BackendError> {
        if let RequestState::Entered(election, own) = &*request {
            own.release().map_err(|e| io_error("remove", own.path(), &e))?;
            tracing::debug!(%election, entry = own.number(), "left the election");
            self.state().entries.remove(&(election.clone(), own.number()));
        }
        *request = RequestState::Withdrawn;
        self.state().requests.remove(&nonce);
        Ok(())
    }

    /// Closes the session, and returns the requests that are left to withdraw.
    pub(crate) fn close(&self) -> Vec<(u128, Arc<AsyncMutex<RequestState>>)> {
        let mut state = self.state();
        state.closed = true;
        state.requests.iter().map(|(nonce, request)| (*nonce, Arc::clone(request))).collect()
    }
}

fn session_closed() -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, "the session has been closed")
}

pub(crate) fn no_entry() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "there is no entry to wait for")
}

pub(crate) fn entry_gone(entry: &Entry) -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, format!("the entry {} no longer exists", entry.key))
}
