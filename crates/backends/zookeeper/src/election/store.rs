//! Where elections are in an ensemble, and what all sessions and observers of a backend share.

use std::sync::Arc;

use tenure_core::{ElectionName, spi::BackendError};

use super::{foreign_entries::ForeignEntries, layout::Layout, session_bounds::SessionBounds};
use crate::transport::{
    connect_options::ConnectOptions, ensemble::Ensemble, reader_sessions::ReaderSessions,
    resumable_session::ResumableSession,
};

/// The elections below one root of an ensemble.
#[derive(Debug)]
pub(crate) struct ElectionStore {
    pub(crate) layout: Layout,
    pub(crate) bounds: SessionBounds,
    pub(crate) ensemble: Arc<Ensemble>,
    pub(crate) reader_sessions: Arc<ReaderSessions>,
    pub(crate) foreign_entries: ForeignEntries,
}

impl ElectionStore {
    pub(crate) fn new(layout: Layout, bounds: SessionBounds, ensemble: Ensemble) -> Self {
        let ensemble = Arc::new(ensemble);
        let reader_sessions = Arc::new(ReaderSessions::new(Arc::clone(&ensemble)));
        Self { layout, bounds, ensemble, reader_sessions, foreign_entries: ForeignEntries::default() }
    }

    pub(crate) fn options(&self) -> &ConnectOptions {
        &self.ensemble.options
    }

    /// The path of an election's znode.
    pub(crate) fn election_path(&self, election: &ElectionName) -> String {
        format!("{}/{election}", self.options().root)
    }

    /// The sequence number in the name at `path`; the largest number if it has none.
    pub(crate) fn sequence_number(&self, path: &str) -> u64 {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        self.layout.number(name).unwrap_or(u64::MAX)
    }

    /// Maps the error of a request to the one for the caller; see [`ConnectOptions::request_error`].
    pub(crate) fn map_error<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        result.map_err(|error| self.options().request_error(error))
    }

    /// A session to read over.
    pub(crate) async fn reader_session(&self) -> Result<Arc<ResumableSession>, BackendError> {
        self.reader_sessions.session().await
    }
}
