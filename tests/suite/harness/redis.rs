//! Redis and Valkey in the conformance suite: a prefix on a real server.

use std::time::Duration;

use tenure::redis::{RedisBackend, RedisConfig, RedisStore};
use tenure_containers::{RedisAdmin, SharedRedis, Version};

use crate::cas::{Cas, CasServer};

/// A test's prefix on a Redis or Valkey server that tests share.
#[derive(Debug)]
pub struct Redis {
    server: SharedRedis,
    prefix: String,
}

impl Redis {
    /// A new prefix on the shared server of this version, in the first epoch.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedRedis::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        let prefix = format!("suite-{:016x}", fastrand::u64(..));
        begin_first_epoch(server.admin(), &prefix).await;
        Self { server, prefix }
    }

    /// The harness of a new prefix.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn harness(version: Version) -> Cas<Self> {
        Cas::new(Self::new(version).await)
    }

    /// The server.
    pub fn server(&self) -> &SharedRedis {
        &self.server
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        format!("redis://{}/0?prefix={}", self.server.endpoint(), self.prefix)
    }
}

/// Says that this prefix has never lost a record, so that no candidate waits for a TTL before the first one leads.
///
/// # Panics
/// When the server does not answer.
pub async fn begin_first_epoch(admin: &RedisAdmin, prefix: &str) {
    let run = admin.info("run_id").await.unwrap_or_else(|error| panic!("{error}"));
    let epoch = format!("0 {run} {:032x}", fastrand::u128(..));
    admin.run(&["HSET", prefix, "epoch", &epoch]).await.unwrap_or_else(|error| panic!("{error}"));
}

impl CasServer for Redis {
    type Store = RedisStore;

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn backend(&self, endpoint: &str) -> RedisBackend {
        let config = RedisConfig::new(endpoint)
            .prefix(&self.prefix)
            .attempt_timeout(Duration::from_millis(500))
            .poll_interval(Duration::from_millis(100));
        tenure::redis::backend(config).unwrap_or_else(|error| panic!("{error}"))
    }
}
