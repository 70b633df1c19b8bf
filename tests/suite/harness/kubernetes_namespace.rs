//! Namespaces of a Kubernetes API server, and how candidates connect to them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use tempfile::TempDir;
use tenure::{Config, Elector};
use tenure_containers::{KubernetesAdmin, SharedKubernetes, Version};

/// A namespace of its own on a Kubernetes API server.
#[derive(Debug)]
pub struct KubernetesNamespace {
    /// The administration client of the server.
    pub admin: KubernetesAdmin,
    /// The namespace's name.
    pub name: String,
    files: TempDir,
    /// Ends with this, if no other test uses it.
    _server: Option<SharedKubernetes>,
}

impl KubernetesNamespace {
    /// A namespace on the shared server.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn shared() -> Self {
        let server = SharedKubernetes::get(Version::Kubernetes120).await;
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let namespace = Self::on(server.admin()).await;
        Self { _server: Some(server), ..namespace }
    }

    /// A namespace on the server of this admin.
    ///
    /// # Panics
    /// When it cannot be created.
    pub async fn on(admin: &KubernetesAdmin) -> Self {
        let name = format!("test-{:016x}", fastrand::u64(..));
        admin.create_namespace(&name).await.unwrap_or_else(|error| panic!("{error}"));
        let files = tempfile::tempdir().expect("a folder is made");
        Self { admin: admin.clone(), name, files, _server: None }
    }

    /// Writes a file, and returns its path.
    ///
    /// # Panics
    /// When that fails.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.files.path().join(name);
        // At once, as a kubelet replaces a file.
        let new = path.with_extension("new");
        fs::write(&new, content).and_then(|()| fs::rename(&new, &path)).expect("a file is written");
        path
    }

    /// The URL of this namespace for a user with this token, who reaches the server at `endpoint`.
    ///
    /// # Panics
    /// When the server does not say its certificate's authority.
    pub async fn url_at(&self, endpoint: &str, token: &str) -> String {
        let kubeconfig = self.admin.kubeconfig(endpoint, token, &self.name).await;
        let kubeconfig = kubeconfig.unwrap_or_else(|error| panic!("{error}"));
        let file = self.file(&format!("{:016x}", fastrand::u64(..)), &kubeconfig);
        format!("kubernetes:///{}?kubeconfig={}", self.name, file.display())
    }

    /// The URL of this namespace for a user with this token.
    ///
    /// # Panics
    /// As [`url_at`](Self::url_at).
    pub async fn url(&self, token: &str) -> String {
        self.url_at(self.admin.endpoint(), token).await
    }

    /// An elector of the user who may do everything, who reaches the server at `endpoint`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn elector_at(&self, endpoint: &str, ttl: Duration) -> Arc<dyn Elector> {
        let url = self.url_at(endpoint, "admin-token").await;
        let connected = tenure::connect_with(&url, Config::new().with_ttl(ttl)).await;
        connected.unwrap_or_else(|error| panic!("{url}: {error}"))
    }
}
