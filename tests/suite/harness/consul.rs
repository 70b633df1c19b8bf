//! Consul in the conformance suite: a prefix on a real server.

use std::time::Duration;

use tenure::consul::{ConsulBackend, ConsulConfig, ConsulStore};
use tenure_containers::{SharedConsul, Version};

use crate::cas::{Cas, CasServer};

/// A test's prefix on a Consul server that tests share.
#[derive(Debug)]
pub struct Consul {
    server: SharedConsul,
    prefix: String,
}

impl Consul {
    /// A new prefix on the shared server of this version.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedConsul::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        Self { server, prefix: format!("suite-{:016x}", fastrand::u64(..)) }
    }

    /// The harness of a new prefix.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn harness(version: Version) -> Cas<Self> {
        Cas::new(Self::new(version).await)
    }

    /// The server.
    pub fn server(&self) -> &SharedConsul {
        &self.server
    }

    /// The test's prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The store's URL, for [`tenure::connect`].
    pub fn url(&self) -> String {
        format!("consul://{}/{}", self.server.endpoint(), self.prefix)
    }
}

impl CasServer for Consul {
    type Store = ConsulStore;

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn backend(&self, endpoint: &str) -> ConsulBackend {
        let config = ConsulConfig::new([endpoint])
            .prefix(&self.prefix)
            .attempt_timeout(Duration::from_secs(1))
            .poll_interval(Duration::from_millis(100));
        tenure::consul::backend(config).unwrap_or_else(|error| panic!("{error}"))
    }
}
