//! The in-memory store in the conformance suite.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure::memory::{MemoryStore, Proof};
use tenure_testkit::harness::{Client, Harness, HarnessCapabilities};

/// An in-memory store with one kind of heartbeat proof.
#[derive(Debug)]
pub struct Memory(MemoryStore);

impl Memory {
    /// A new store whose heartbeats are confirmed by `proof`.
    pub fn new(proof: Proof) -> Self {
        Self(MemoryStore::with_proof(proof))
    }
}

#[async_trait]
impl Harness for Memory {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL.foreign_entries(false)
    }

    async fn client(&self) -> Client {
        let backend = self.0.backend();
        let faults = Arc::new(backend.link().clone());
        Client { backend: Arc::new(backend), faults: Some(faults) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn delete_entry(&self, election: &str, _session: &str, token: u64) {
        assert!(self.0.delete_entry(election, token), "no entry {token} in {election}");
    }

    async fn expire_session(&self, session: &str) {
        let number = session.parse().expect("a session is a number");
        assert!(self.0.expire_session(number), "no session {session}");
    }

    async fn add_foreign_entries(&self, _election: &str) {
        unreachable!("this ability is not declared");
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        unreachable!("this ability is not declared")
    }

    async fn remaining_state(&self) -> Vec<String> {
        let entries = self.0.entry_count();
        let sessions = self.0.sessions().into_iter().map(|session| format!("session {session}"));
        sessions.chain((entries > 0).then(|| format!("{entries} entries"))).collect()
    }
}
