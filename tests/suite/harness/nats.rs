//! NATS in the conformance suite: a bucket on a real server.

use std::time::Duration;

use tenure::nats::{NatsBackend, NatsConfig, NatsStore};
use tenure_containers::{SharedNats, Version};

use crate::cas::{Cas, CasServer};

/// A test's bucket on a NATS server that tests share.
#[derive(Debug)]
pub struct Nats {
    server: SharedNats,
    bucket: String,
}

impl Nats {
    /// A new bucket on the shared server of this version, which the first candidate creates.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedNats::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        Self { server, bucket: format!("suite-{:016x}", fastrand::u64(..)) }
    }

    /// The harness of a new bucket.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn harness(version: Version) -> Cas<Self> {
        Cas::new(Self::new(version).await)
    }

    /// The server.
    pub fn server(&self) -> &SharedNats {
        &self.server
    }

    /// The bucket of this test.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        format!("nats://{}/{}", self.server.endpoint(), self.bucket)
    }
}

impl CasServer for Nats {
    type Store = NatsStore;

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn backend(&self, endpoint: &str) -> NatsBackend {
        let config = NatsConfig::new([endpoint], &self.bucket)
            .attempt_timeout(Duration::from_secs(1))
            .poll_interval(Duration::from_millis(100));
        tenure::nats::backend(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A part of a key may not be empty.
    fn foreign_keys(&self) -> Vec<&'static str> {
        vec!["e/another", "another/one", "s/not-a-session", "e/a/b"]
    }
}
