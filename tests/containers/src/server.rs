//! One server in a container: what the servers of all stores have in common.

use std::{env, fmt, sync::Arc};

use crate::{
    container::Container,
    error::ContainerError,
    fault::{Fault, Undo},
    health::HealthCheck,
    spec::ContainerSpec,
    version::Version,
};

/// The administration client of a store, with what is needed to run one of its servers. [`EtcdAdmin`](crate::EtcdAdmin),
/// [`ZookeeperAdmin`](crate::ZookeeperAdmin), [`PostgresAdmin`](crate::PostgresAdmin) and [`MysqlAdmin`](crate::MysqlAdmin) implement it.
pub trait StoreAdmin: Clone + fmt::Debug + Send + Sync + Sized + 'static {
    /// The store's name in error messages.
    const NAME: &'static str;

    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    fn at(endpoint: String) -> Self;

    /// The `host:port` of the server.
    fn endpoint(&self) -> &str;

    /// Succeeds when the server is ready.
    ///
    /// # Errors
    /// When it is not.
    fn health(&self) -> impl Future<Output = Result<(), ContainerError>> + Send;

    /// A single server with default settings.
    #[doc(hidden)]
    fn default_spec(version: Version) -> ContainerSpec;
}

/// A server of the test's own, in a container. Dropping it removes it.
#[derive(Debug)]
pub struct Server<A> {
    spec: ContainerSpec,
    container: Arc<Container>,
    admin: A,
}

impl<A: StoreAdmin> Server<A> {
    /// Starts a single server with an empty store, and waits until it is ready.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the server is not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::launch(A::default_spec(version)).await
    }

    pub(crate) async fn launch(spec: ContainerSpec) -> Result<Self, ContainerError> {
        let container = Container::run(&spec).await?;
        let server = Self::new(spec, container);
        server.wait_until_ready().await?;
        Ok(server)
    }

    pub(crate) fn new(spec: ContainerSpec, container: Container) -> Self {
        let admin = A::at(container.address());
        Self { spec, container: Arc::new(container), admin }
    }

    /// The server's version.
    pub fn version(&self) -> Version {
        self.spec.version
    }

    /// The address at which the server listens: `127.0.0.1:port`. Every fault and restart keeps it.
    pub fn endpoint(&self) -> String {
        self.container.address()
    }

    /// The address at which clients speak TLS, if the server was started with TLS and has an endpoint of its own for it.
    pub fn tls_endpoint(&self) -> Option<String> {
        self.container.second_address()
    }

    /// A client that administers the server.
    pub fn admin(&self) -> &A {
        &self.admin
    }

    /// Kills the server (SIGKILL): connections end, and nothing listens. The data stays.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn kill(&self) -> Result<Fault, ContainerError> {
        self.container.kill().await?;
        Ok(self.fault(Undo::StartContainer))
    }

    /// Stops the server as an operator would (SIGTERM; PostgreSQL by SIGINT, which ends connections). The data stays.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn stop(&self) -> Result<Fault, ContainerError> {
        self.container.stop(self.spec.stop_signal).await?;
        Ok(self.fault(Undo::StartContainer))
    }

    /// Freezes the server: connections stay open, new ones are accepted, and nothing is answered.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn pause(&self) -> Result<Fault, ContainerError> {
        self.container.pause().await?;
        Ok(self.fault(Undo::Unpause))
    }

    /// Kills the server, and starts it with an empty store at the same endpoint.
    ///
    /// # Errors
    /// When the server is not ready within a minute.
    pub async fn wipe(&self) -> Result<(), ContainerError> {
        self.container.recreate(&self.spec).await?;
        self.wait_until_ready().await
    }

    /// The last lines that the server has printed to its standard error.
    pub async fn last_log_lines(&self) -> String {
        self.container.last_log_lines().await
    }

    pub(crate) fn spec(&self) -> &ContainerSpec {
        &self.spec
    }

    pub(crate) fn container(&self) -> &Arc<Container> {
        &self.container
    }

    pub(crate) fn fault(&self, undo: Undo) -> Fault {
        Fault::new(undo, self.container.clone(), self.health_check())
    }

    pub(crate) async fn wait_until_ready(&self) -> Result<(), ContainerError> {
        self.health_check().wait_until_ready(&self.container).await
    }

    fn health_check(&self) -> HealthCheck {
        let admin = self.admin.clone();
        HealthCheck::new(A::NAME, move || {
            let admin = admin.clone();
            async move { admin.health().await }
        })
    }
}

/// A server that many tests use at once, each below a prefix of its own. No fault can be injected into it.
#[derive(Debug)]
pub struct SharedServer<A> {
    version: Version,
    admin: A,
    /// The test's own server, when `cargo xtask test` has started none.
    dedicated: Option<Server<A>>,
}

impl<A: StoreAdmin> SharedServer<A> {
    /// The server that `cargo xtask test` has started for all tests and named in
    /// [`Version::shared_variable`]; without that variable, a server of this test's own.
    ///
    /// # Errors
    /// As for [`Server::start`], and when the shared server does not answer.
    pub async fn get(version: Version) -> Result<Self, ContainerError> {
        let Ok(endpoint) = env::var(version.shared_variable()) else {
            let server = Server::<A>::start(version).await?;
            return Ok(Self { version, admin: server.admin.clone(), dedicated: Some(server) });
        };
        let admin = A::at(endpoint);
        admin.health().await?;
        Ok(Self { version, admin, dedicated: None })
    }

    /// The server's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The address at which the server listens: `host:port`.
    pub fn endpoint(&self) -> String {
        self.admin.endpoint().to_owned()
    }

    /// A client that administers the server. It sees the data of other tests too.
    pub fn admin(&self) -> &A {
        &self.admin
    }

    /// Whether no other test uses this server.
    pub fn is_dedicated(&self) -> bool {
        self.dedicated.is_some()
    }
}
