//! ZooKeeper under the shared suite: real servers, each client behind a proxy of its own.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure::zookeeper::{ZookeeperBackend, ZookeeperConfig};
use tenure_containers::{SharedZookeeper, Version};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
    recorder::Recorder,
};

/// A root of its own on a ZooKeeper that tests share.
#[derive(Debug)]
pub struct Zookeeper {
    server: SharedZookeeper,
    root: String,
    recorder: Recorder,
}

/// A session's id as the store shows it.
///
/// # Panics
/// When it is none.
pub fn session_id(shown: &str) -> i64 {
    let digits = shown.strip_prefix("0x").expect("sessions are shown in hexadecimal");
    u64::from_str_radix(digits, 16).expect("sessions are numbers").cast_signed()
}

impl Zookeeper {
    /// A new root on the shared server of this version.
    ///
    /// # Panics
    /// When there is no such server, naming the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedZookeeper::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        Self { server, root: format!("/suite-{:016x}", fastrand::u64(..)), recorder: Recorder::default() }
    }

    /// The server, as an operator sees it.
    pub fn server(&self) -> &SharedZookeeper {
        &self.server
    }

    /// The znode below which everything of this test lies.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A store URL straight to the server.
    pub fn url(&self) -> String {
        format!("zookeeper://{}{}", self.server.endpoint(), self.root)
    }

    /// A backend straight to the server.
    ///
    /// # Panics
    /// Never: its settings are legal.
    pub fn backend(&self) -> ZookeeperBackend {
        let config = ZookeeperConfig::new([self.server.endpoint()]).root(&self.root);
        ZookeeperBackend::new(config).unwrap_or_else(|error| panic!("{error}"))
    }

    fn litter_paths(&self, election: &str) -> [String; 4] {
        // As another layout's entry, not a candidate's name, below a stranger, and a persistent one.
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
        panic!("no entry {token} below {parent}");
    }

    async fn expire_session(&self, session: &str) {
        let expired = self.server.admin().expire_session(session_id(session)).await;
        expired.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn add_foreign_entries(&self, election: &str) {
        for path in self.litter_paths(election) {
            let created = self.server.admin().create(&path, "not ours").await;
            created.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    async fn foreign_entries_untouched(&self, election: &str) -> bool {
        for path in self.litter_paths(election) {
            let found = self.server.admin().get(&path).await.unwrap_or_else(|error| panic!("{error}"));
            if found.is_none_or(|znode| znode.data != b"not ours") {
                return false;
            }
        }
        true
    }

    async fn remaining_state(&self) -> Vec<String> {
        let litter = self.litter_paths("e");
        // Below an election or below the sessions: the znodes above go by themselves.
        let is_deep = |path: &String| path[self.root.len()..].matches('/').count() > 1;
        let mut left: Vec<String> =
            self.paths().await.into_iter().filter(|path| is_deep(path) && !litter.contains(path)).collect();
        let alive = self.server.admin().sessions().await.unwrap_or_else(|error| panic!("{error}"));
        let ours = self.recorder.sessions();
        left.extend(ours.into_iter().filter(|session| alive.contains(&session_id(session))));
        left
    }
}
