//! The suite that every backend has to pass.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use acme_store::AcmeBackend;
use tenure_testkit::harness::{Client, Harness, HarnessCapabilities};

/// A store of its own for each case.
struct Acme(AcmeBackend);

impl Acme {
    fn new() -> Self {
        static STORES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("case {}", STORES.fetch_add(1, Ordering::Relaxed));
        Self(AcmeBackend::new(&name))
    }
}

#[async_trait::async_trait]
impl Harness for Acme {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::NONE.entry_deletion(true).session_expiry(true)
    }
    async fn client(&self) -> Client {
        Client { backend: Arc::new(self.0.clone()), faults: None }
    }
    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }
    async fn delete_entry(&self, _election: &str, _session: &str, token: u64) {
        self.0.delete(token);
    }
    async fn expire_session(&self, session: &str) {
        self.0.delete(session.parse().expect("a session is a number"));
    }
    async fn remaining_state(&self) -> Vec<String> {
        self.0.contents().iter().map(u64::to_string).collect()
    }
    // Not declared, and so not called.
    async fn add_foreign_entries(&self, _election: &str) {}
    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        true
    }
}

tenure_testkit::conformance!(async { Acme::new() });
