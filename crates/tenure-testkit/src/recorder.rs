//! A backend that records the sessions opened through it, so that a test on a shared server can recognise its own
//! sessions.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tenure_core::{
    Candidate, ElectionName,
    spi::{Backend, BackendError, BackendSession, Capabilities, Observation, SessionOptions, SessionRecord},
};

/// Records the sessions of all backends that it [wraps](Self::wrap).
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    /// Wraps `backend`, and records its sessions.
    pub fn wrap(&self, backend: impl Backend) -> Arc<dyn Backend> {
        Arc::new(RecordedBackend { backend, recorder: self.clone() })
    }

    /// The ids of the sessions opened so far.
    pub fn sessions(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct RecordedBackend<B> {
    backend: B,
    recorder: Recorder,
}

#[async_trait]
impl<B: Backend> Backend for RecordedBackend<B> {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn store_name(&self) -> String {
        self.backend.store_name()
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let session = self.backend.open_session(options).await?;
        self.recorder.0.lock().unwrap_or_else(PoisonError::into_inner).push(session.id());
        Ok(session)
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.backend.candidates(election).await
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.backend.leader(election).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        self.backend.observe(election).await
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        self.backend.elections().await
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.backend.request_resign(election).await
    }

    async fn end_session(&self, record: &SessionRecord) -> Result<(), BackendError> {
        self.backend.end_session(record).await
    }

    async fn close(&self) {
        self.backend.close().await;
    }
}
