//! Kubernetes in the conformance suite: a real API server, and a proxy for each client.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tenure_containers::{KubernetesAdmin, SharedKubernetes, Version};
use tenure_kubernetes::{KubernetesBackend, KubernetesConfig};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
};

/// A test's namespace on an API server that tests share.
#[derive(Debug)]
pub struct Kubernetes {
    server: SharedKubernetes,
    namespace: String,
    /// The kubeconfigs of the clients.
    files: Mutex<Vec<Kubeconfig>>,
}

impl Kubernetes {
    /// A new namespace on the shared server of this version.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedKubernetes::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        let namespace = new_namespace(server.admin()).await;
        Self { server, namespace, files: Mutex::default() }
    }

    /// The administration client of the server.
    pub fn admin(&self) -> &KubernetesAdmin {
        self.server.admin()
    }

    /// The namespace of this test.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A kubeconfig for a user with this token.
    pub async fn kubeconfig(&self, token: &str) -> Kubeconfig {
        Kubeconfig::new(self.admin(), &self.server.endpoint(), token, &self.namespace).await
    }

    async fn leases(&self) -> Vec<Value> {
        self.admin().leases(&self.namespace).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Creates a namespace with a random name.
///
/// # Panics
/// When that fails.
pub async fn new_namespace(admin: &KubernetesAdmin) -> String {
    let namespace = format!("suite-{:016x}", fastrand::u64(..));
    admin.create_namespace(&namespace).await.unwrap_or_else(|error| panic!("{error}"));
    namespace
}

/// A kubeconfig in a temporary file.
#[derive(Debug)]
pub struct Kubeconfig(NamedTempFile);

impl Kubeconfig {
    /// A kubeconfig for a user with this token, who reaches the server of `admin` at `endpoint`.
    ///
    /// # Panics
    /// When the server does not answer, or the file cannot be written.
    pub async fn new(admin: &KubernetesAdmin, endpoint: &str, token: &str, namespace: &str) -> Self {
        let text = admin.kubeconfig(endpoint, token, namespace).await;
        let file = NamedTempFile::new().expect("a temporary file can be created");
        std::fs::write(file.path(), text.unwrap_or_else(|error| panic!("{error}")))
            .expect("it can be written");
        Self(file)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A backend that uses the file, with requests that end soon.
    ///
    /// # Panics
    /// Never: the configuration is valid.
    pub fn backend(&self) -> KubernetesBackend {
        let config = KubernetesConfig::new().kubeconfig(self.path()).attempt_timeout(Duration::from_secs(1));
        KubernetesBackend::new(config).expect("the configuration is valid")
    }
}

/// Leases that tenure has not written.
const FOREIGN: [(&str, &str); 2] = [("scheduler", "node-1_0c9d"), ("node-7", "node-7")];

fn session_of(lease: &Value) -> &Value {
    &lease["metadata"]["annotations"]["tenure/session"]
}

#[async_trait]
impl Harness for Kubernetes {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let proxy = Proxy::start(self.server.endpoint()).await.expect("a loopback port can be bound");
        let file = Kubeconfig::new(self.admin(), &proxy.endpoint(), "admin-token", &self.namespace).await;
        let backend = file.backend();
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        Client { backend: Arc::new(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(4)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        let lease = self.leases().await.into_iter().find(|lease| lease["metadata"]["name"] == election);
        assert_eq!(session_of(&lease.expect("the election has a Lease")), session);
        self.admin().delete_lease(&self.namespace, election).await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn expire_session(&self, session: &str) {
        let leases = self.leases().await;
        let lease = leases.iter().find(|lease| session_of(lease) == session);
        let name =
            lease.and_then(|lease| lease["metadata"]["name"].as_str()).expect("the session has a Lease");
        let released = json!({ "spec": { "holderIdentity": "" } });
        self.admin()
            .patch_lease(&self.namespace, name, &released)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    async fn add_foreign_entries(&self, _election: &str) {
        for (name, holder) in FOREIGN {
            let spec = json!({ "holderIdentity": holder, "leaseDurationSeconds": 15 });
            self.admin()
                .create_lease(&self.namespace, name, &spec)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        let leases = self.leases().await;
        FOREIGN.iter().all(|(name, holder)| {
            leases
                .iter()
                .any(|lease| lease["metadata"]["name"] == *name && lease["spec"]["holderIdentity"] == *holder)
        })
    }

    async fn remaining_state(&self) -> Vec<String> {
        let leases = self.leases().await;
        leases.iter().filter(|lease| session_of(lease).is_string()).map(Value::to_string).collect()
    }
}
