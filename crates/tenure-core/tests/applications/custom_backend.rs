//! A backend of the application's own.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tenure_core::{
    Candidate, Config, ElectionName, Elector, StoreElector,
    memory::{MemoryBackend, MemoryStore},
    spi::{Backend, BackendError, BackendSession, Capabilities, Observation, SessionOptions},
};

use crate::harness::{TTL, current_thread_runtime, in_time, multi_thread_runtime, until};

#[derive(Debug)]
struct CustomBackend {
    inner: MemoryBackend,
    closed: AtomicUsize,
    observe_panics: bool,
}

#[async_trait::async_trait]
impl Backend for CustomBackend {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        self.inner.open_session(options).await
    }
    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.inner.candidates(election).await
    }
    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        assert!(!self.observe_panics, "a bug in the backend");
        self.inner.observe(election).await
    }
    async fn close(&self) {
        self.closed.fetch_add(1, SeqCst);
    }
}

fn backend(store: &MemoryStore, observe_panics: bool) -> Arc<CustomBackend> {
    Arc::new(CustomBackend { inner: store.backend(), closed: AtomicUsize::new(0), observe_panics })
}

/// `close` that is awaited by work completes in the background.
#[test]
fn close_inside_work_closes_the_backend() {
    let store = MemoryStore::new();
    let backend = backend(&store, false);
    let elector =
        StoreElector::new(Arc::clone(&backend) as Arc<dyn Backend>, Config::new().with_ttl(TTL)).unwrap();
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    runtime.block_on(leadership.run(elector.close())).unwrap();
    drop(leadership);
    until("the session is closed", || store.sessions().is_empty());
    until("the backend is closed", || backend.closed.load(SeqCst) > 0);
}

/// A stream of leaders yields an error before it ends.
#[test]
fn an_observation_that_panics_yields_an_error() {
    let store = MemoryStore::new();
    let elector = StoreElector::new(backend(&store, true), Config::new().with_ttl(TTL)).unwrap();
    let mut leaders = elector.observe("e");
    let first = current_thread_runtime().block_on(in_time(futures::StreamExt::next(&mut leaders)));
    assert!(first.is_some(), "it ended without an error");
}
