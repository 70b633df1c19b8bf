//! How one MariaDB server is started.

use crate::{
    error::ContainerError,
    mysql::{admin::MysqlAdmin, settings::MysqlSettings},
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    version::Version,
};

/// A MariaDB server of the test's own, in a container. Dropping it removes it.
pub type MysqlServer = Server<MysqlAdmin>;

/// A MariaDB server that many tests use at once, each with a database of its own. No fault can be injected into it.
pub type SharedMysql = SharedServer<MysqlAdmin>;

impl StoreAdmin for MysqlAdmin {
    const NAME: &'static str = "MariaDB";

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
        MysqlSettings::default().spec(version)
    }
}

impl MysqlServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &MysqlSettings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }
}
