//! How one ZooKeeper server is started, and what else a test can do with it.

use crate::{
    error::ContainerError,
    program::Program,
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    tls::TlsFiles,
    version::Version,
    zookeeper::{
        admin::ZookeeperAdmin,
        settings::{ZookeeperSettings, replace_users_script},
    },
};

/// A ZooKeeper server of the test's own, in a container. Dropping it removes it.
pub type ZookeeperServer = Server<ZookeeperAdmin>;

/// A ZooKeeper server that many tests use at once, each below a znode of its own. No fault can be injected into it.
pub type SharedZookeeper = SharedServer<ZookeeperAdmin>;

impl StoreAdmin for ZookeeperAdmin {
    const NAME: &'static str = "ZooKeeper";

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
        ZookeeperSettings::default().spec(version)
    }
}

impl ZookeeperServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &ZookeeperSettings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }

    /// Replaces the [SASL users](ZookeeperSettings::sasl_users). The server reads them when it starts again.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn replace_users(&self, users: &[(&str, &str)]) -> Result<(), ContainerError> {
        self.container().run_script(&replace_users_script(users)).await
    }

    /// Replaces the [TLS files](ZookeeperSettings::tls). The server reads them when it starts again.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn replace_tls(&self, files: &TlsFiles) -> Result<(), ContainerError> {
        self.container().run_script(&files.write_script()).await
    }

    /// Runs a program inside the server's container, where ZooKeeper listens at `127.0.0.1:2181`.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub async fn run(&self, command: &[&str]) -> Result<Program, ContainerError> {
        Program::run(self.container(), command).await
    }
}
