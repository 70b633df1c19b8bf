//! How one Kubernetes API server is started, and what else a test can do with it.

use crate::{
    error::ContainerError,
    kubernetes::{
        admin::KubernetesAdmin,
        settings::{KubernetesSettings, PORT},
    },
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    version::Version,
};

/// A Kubernetes API server of the test's own, in a container with its etcd. Dropping it removes it.
pub type KubernetesServer = Server<KubernetesAdmin>;

/// A Kubernetes API server that many tests use at once, each with a namespace of its own. No fault can be injected into it.
pub type SharedKubernetes = SharedServer<KubernetesAdmin>;

impl StoreAdmin for KubernetesAdmin {
    const NAME: &'static str = "the API server";

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
        KubernetesSettings::default().spec(version)
    }
}

impl KubernetesServer {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &KubernetesSettings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }

    /// Runs `kubectl` inside the server's container as the user `admin`, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, ContainerError> {
        let server = format!("--server=https://127.0.0.1:{PORT}");
        let connect = ["kubectl", &server, "--certificate-authority=/data/ca.pem", "--token=admin-token"];
        self.container().output(connect.into_iter().chain(arguments.iter().copied())).await
    }
}
