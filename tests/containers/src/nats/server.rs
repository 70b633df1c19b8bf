//! How one NATS server is started.

use crate::{
    error::ContainerError,
    nats::{
        admin::NatsAdmin,
        settings::{FILE, NatsSettings},
    },
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    tls::write_file_script,
    version::Version,
};

/// A NATS server of the test's own, in a container. Dropping it removes it.
pub type NatsServer = Server<NatsAdmin>;

/// A NATS server that many tests use at once, each with a bucket of its own. No fault can be injected into it.
pub type SharedNats = SharedServer<NatsAdmin>;

impl StoreAdmin for NatsAdmin {
    const NAME: &'static str = "NATS";

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
        NatsSettings::default().spec(version)
    }
}

impl NatsServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &NatsSettings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }

    /// The address of the monitoring port.
    pub fn monitoring_endpoint(&self) -> Option<String> {
        self.container().second_address()
    }

    /// Makes the server read other settings while it runs. It ends the connections of users who have changed.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn reload(&self, settings: &NatsSettings) -> Result<(), ContainerError> {
        let write = write_file_script(FILE, settings.text().as_bytes());
        self.container().run_script(&format!("{write}nats-server --signal reload=1")).await
    }
}
