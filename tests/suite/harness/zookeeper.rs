//! ZooKeeper in the conformance suite: a real server, and a proxy for each client.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure::zookeeper::{ZookeeperBackend, ZookeeperConfig};
use tenure_containers::{SharedZookeeper, Version};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
    recorder::Recorder,
};

/// A test's root znode on a ZooKeeper server that tests share.
#[derive(Debug)]
pub struct Zookeeper {
    server: SharedZookeeper,
    root: String,
    recorder: Recorder,
}

/// Parses a session id as [`Candidate::session`](tenure::Candidate::session) shows it.
///
/// # Panics
/// When it is no session id.
pub fn session_id(session: &str) -> i64 {
    let digits = session.strip_prefix("0x").expect("a session id begins with 0x");
    u64::from_str_radix(digits, 16).expect("a session id is hexadecimal").cast_signed()
}

impl Zookeeper {
    /// A new root on the shared server of this version.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedZookeeper::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        Self { server, root: format!("/suite-{:016x}", fastrand::u64(..)), recorder: Recorder::default() }
    }

    /// The server.
    pub fn server(&self) -> &SharedZookeeper {
        &self.server
    }

    /// The root znode of this test.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        format!("zookeeper://{}{}", self.server.endpoint(), self.root)
    }

    /// A backend without a proxy.
    ///
    /// # Panics
    /// Never: its settings are valid.
    pub fn backend(&self) -> ZookeeperBackend {
        let config = ZookeeperConfig::new([self.server.endpoint()]).root(&self.root);
        ZookeeperBackend::new(config).unwrap_or_else(|error| panic!("{error}"))
    }

    fn foreign_paths(&self, election: &str) -> [String; 4] {
        // An entry of another layout, a name without a GUID, a persistent znode, and a nested one.
        let names = [
            "_c_12345678-9abc-def0-1122-334455667788-latch-0000000000",
            "c-0000000000",
            "notes",
            "notes/deeper",
        ];
        names.map(|name| format!("{}/{election}/{name}", self.root))
    }

    async fn paths(&self) -> Vec<String> {
        self.server.admin().tree(&self.root).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

#[async_trait]
impl Harness for Zookeeper {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let proxy = Proxy::start(self.server.endpoint()).await.expect("a loopback port can be bound");
        let config = ZookeeperConfig::new([proxy.endpoint()]).root(&self.root);
        let backend = ZookeeperBackend::new(config).unwrap_or_else(|error| panic!("{error}"));
        Client { backend: self.recorder.wrap(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    async fn delete_entry(&self, election: &str, _session: &str, token: u64) {
        let admin = self.server.admin();
        let parent = format!("{}/{election}", self.root);
        for name in admin.children(&parent).await.unwrap_or_else(|error| panic!("{error}")) {
            let path = format!("{parent}/{name}");
            let found = admin.get(&path).await.unwrap_or_else(|error| panic!("{error}"));
            if found.is_some_and(|znode| u64::try_from(znode.czxid) == Ok(token)) {
                assert!(admin.delete(&path).await.unwrap_or_else(|error| panic!("{error}")));
                return;
            }
        }
        panic!("no entry with token {token} below {parent}");
    }

    async fn expire_session(&self, session: &str) {
        let expired = self.server.admin().expire_session(session_id(session)).await;
        expired.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn add_foreign_entries(&self, election: &str) {
        for path in self.foreign_paths(election) {
            let created = self.server.admin().create(&path, "foreign").await;
            created.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    async fn foreign_entries_untouched(&self, election: &str) -> bool {
        for path in self.foreign_paths(election) {
            let found = self.server.admin().get(&path).await.unwrap_or_else(|error| panic!("{error}"));
            if found.is_none_or(|znode| znode.data != b"foreign") {
                return false;
            }
        }
        true
    }

    async fn remaining_state(&self) -> Vec<String> {
        let foreign = self.foreign_paths("e");
        // Only children of an election count: the server deletes their parents itself.
        let is_child = |path: &String| path[self.root.len()..].matches('/').count() > 1;
        let mut left: Vec<String> =
            self.paths().await.into_iter().filter(|path| is_child(path) && !foreign.contains(path)).collect();
        let alive = self.server.admin().sessions().await.unwrap_or_else(|error| panic!("{error}"));
        let opened = self.recorder.sessions();
        left.extend(opened.into_iter().filter(|session| alive.contains(&session_id(session))));
        left
    }
}
