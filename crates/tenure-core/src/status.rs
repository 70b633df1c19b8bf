//! The state of the connection between an elector and its store.

use std::sync::{Mutex, PoisonError};

use crate::spi::BackendError;

/// The state of the connection between an elector and its store, for a health endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Whether the store answers.
    pub connection: Connection,
    /// The identifier of the current session, as the store's own tools show it.
    pub session: Option<String>,
    /// The text of the last failure. It stays after the store answers again.
    pub last_error: Option<String>,
}

/// Whether the store answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connection {
    /// No request was sent yet.
    #[default]
    Idle,
    /// The last request was answered.
    Connected,
    /// The last request was not answered; it is retried.
    Retrying,
    /// The store refuses the elector permanently: its configuration must be changed.
    Refused,
}

#[derive(Debug, Default)]
pub(crate) struct StatusCell(Mutex<Status>);

impl StatusCell {
    pub(crate) fn get(&self) -> Status {
        self.lock().clone()
    }

    pub(crate) fn answered(&self) {
        self.lock().connection = Connection::Connected;
    }

    pub(crate) fn failed(&self, error: &BackendError) {
        crate::telemetry::request_failed();
        let mut status = self.lock();
        status.connection = if error.is_permanent() { Connection::Refused } else { Connection::Retrying };
        status.last_error = Some(error.to_string());
    }

    pub(crate) fn session_opened(&self, id: String) {
        let mut status = self.lock();
        status.connection = Connection::Connected;
        status.session = Some(id);
    }

    /// Does nothing if another session was opened meanwhile.
    pub(crate) fn session_closed(&self, id: &str) {
        let mut status = self.lock();
        if status.session.as_deref() == Some(id) {
            status.session = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
