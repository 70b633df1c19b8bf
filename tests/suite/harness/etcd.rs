//! etcd in the conformance suite: a real server, and a proxy for each client.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure::etcd::{EtcdBackend, EtcdConfig};
use tenure_containers::{SharedEtcd, Version};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
    recorder::Recorder,
};

/// A test's prefix on an etcd server that tests share.
#[derive(Debug)]
pub struct Etcd {
    server: SharedEtcd,
    prefix: String,
    recorder: Recorder,
}

impl Etcd {
    /// A new prefix on the shared server of this version.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedEtcd::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        Self { server, prefix: format!("/suite-{:016x}", fastrand::u64(..)), recorder: Recorder::default() }
    }

    /// The server.
    pub fn server(&self) -> &SharedEtcd {
        &self.server
    }

    /// The prefix of all keys of this test.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        format!("etcd://{}{}", self.server.endpoint(), self.prefix)
    }

    fn foreign_keys(&self, election: &str) -> [String; 4] {
        // An entry without a lease, a name that is no lease id, a nested key, and an empty name.
        ["dead", "notes", "7f/deeper", ""].map(|name| format!("{}/{election}/{name}", self.prefix))
    }

    async fn keys(&self) -> Vec<String> {
        let found = self.server.admin().list(&format!("{}/", self.prefix)).await;
        found.unwrap_or_else(|error| panic!("{error}")).into_iter().map(|kv| kv.key).collect()
    }
}

#[async_trait]
impl Harness for Etcd {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let proxy = Proxy::start(self.server.endpoint()).await.expect("a loopback port can be bound");
        let config = EtcdConfig::new([proxy.endpoint()]).prefix(&self.prefix);
        let backend = EtcdBackend::new(config).unwrap_or_else(|error| panic!("{error}"));
        Client { backend: self.recorder.wrap(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        let key = format!("{}/{election}/{session}", self.prefix);
        assert!(
            self.server.admin().delete(&key).await.unwrap_or_else(|error| panic!("{error}")),
            "key {key} does not exist"
        );
    }

    async fn expire_session(&self, session: &str) {
        let lease = i64::from_str_radix(session, 16).expect("a session is a lease id in hexadecimal");
        self.server.admin().revoke_lease(lease).await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn add_foreign_entries(&self, election: &str) {
        for key in self.foreign_keys(election) {
            self.server.admin().put(&key, "foreign").await.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    async fn foreign_entries_untouched(&self, election: &str) -> bool {
        for key in self.foreign_keys(election) {
            let found = self.server.admin().get(&key).await.unwrap_or_else(|error| panic!("{error}"));
            if found.is_none_or(|kv| kv.value != b"foreign") {
                return false;
            }
        }
        true
    }

    async fn remaining_state(&self) -> Vec<String> {
        let foreign = self.foreign_keys("e");
        let keys = self.keys().await.into_iter().filter(|key| !foreign.contains(key));
        let mut left: Vec<String> = keys.collect();
        let leases = self.server.admin().leases().await.unwrap_or_else(|error| panic!("{error}"));
        for session in self.recorder.sessions() {
            if leases.iter().any(|lease| format!("{lease:x}") == session) {
                left.push(format!("lease {session}"));
            }
        }
        left
    }
}
