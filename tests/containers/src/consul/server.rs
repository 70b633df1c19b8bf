//! How one Consul server is started.

use crate::{
    consul::{admin::ConsulAdmin, settings::ConsulSettings},
    error::ContainerError,
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    version::Version,
};

/// A Consul server of the test's own, in a container. Dropping it removes it.
pub type ConsulServer = Server<ConsulAdmin>;

/// A Consul server that many tests use at once, each with a prefix of its own. No fault can be injected into it.
pub type SharedConsul = SharedServer<ConsulAdmin>;

impl StoreAdmin for ConsulAdmin {
    const NAME: &'static str = "Consul";

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
        single(version, &ConsulSettings::default())
    }
}

impl ConsulServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &ConsulSettings) -> Result<Self, ContainerError> {
        Self::launch(single(version, settings)).await
    }
}

/// A server without others.
fn single(version: Version, settings: &ConsulSettings) -> ContainerSpec {
    settings.spec(version, vec!["-bootstrap-expect=1".to_owned(), "-bind=127.0.0.1".to_owned()])
}
