//! How one Redis or Valkey server is started.

use crate::{
    error::ContainerError,
    redis::{admin::RedisAdmin, settings::RedisSettings},
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    version::Version,
};

/// A Redis or Valkey server of the test's own, in a container. Dropping it removes it.
pub type RedisServer = Server<RedisAdmin>;

/// A Redis or Valkey server that many tests use at once, each with a prefix of its own. No fault can be injected into it.
pub type SharedRedis = SharedServer<RedisAdmin>;

impl StoreAdmin for RedisAdmin {
    const NAME: &'static str = "Redis";

    fn at(endpoint: String) -> Self {
        Self::new(endpoint)
    }

    fn endpoint(&self) -> &str {
        self.endpoint()
    }

    async fn health(&self) -> Result<(), ContainerError> {
        self.health().await
    }

    fn default_spec(version: Version) -> ContainerSpec {
        RedisSettings::default().spec(version)
    }
}

impl RedisServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &RedisSettings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }
}
