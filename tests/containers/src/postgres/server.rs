//! How one PostgreSQL server is started.

use crate::{
    error::ContainerError,
    postgres::{admin::PostgresAdmin, settings::PostgresSettings},
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    version::Version,
};

/// A PostgreSQL server of the test's own, in a container. Dropping it removes it.
pub type PostgresServer = Server<PostgresAdmin>;

/// A PostgreSQL server that many tests use at once, each with a database of its own. No fault can be injected into it.
pub type SharedPostgres = SharedServer<PostgresAdmin>;

impl StoreAdmin for PostgresAdmin {
    const NAME: &'static str = "PostgreSQL";

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
        PostgresSettings::default().spec(version)
    }
}

impl PostgresServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &PostgresSettings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }

    /// The address at which PgBouncer listens, if the server was [started](PostgresSettings::pgbouncer) with one.
    pub fn pgbouncer_endpoint(&self) -> Option<String> {
        self.container().second_address()
    }
}
