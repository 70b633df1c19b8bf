//! The settings of a Kubernetes API server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

/// The port of an API server in its container.
pub(super) const PORT: u16 = 6443;

const START: &str = include_str!("../../kubernetes/start.sh");

/// The settings of a Kubernetes API server in tests.
///
/// By default it makes its own certificates. It knows the users `admin`, who may do everything, and `alice` and `bob`, who may do
/// what roles allow; the token of each is its name and `-token`. Roles are enforced (RBAC), and service accounts have tokens. No
/// controller runs: a namespace has no service account by itself, and nothing deletes what a deleted namespace contained.
#[derive(Clone, Debug, Default)]
pub struct KubernetesSettings {
    pub(super) flags: Vec<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) service_account_key: Option<ServiceAccountKey>,
    /// The URL of an etcd in another container.
    pub(super) etcd: Option<String>,
}

/// The key that signs tokens of service accounts, in PEM.
#[derive(Clone, Debug)]
pub(super) struct ServiceAccountKey {
    pub(super) private: String,
    pub(super) public: String,
}

impl KubernetesSettings {
    /// Adds a flag to the command line, for example `--goaway-chance=0.02`.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Uses these certificates. Clients may present one of the same authority.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        let mut files = self.tls.as_ref().map(TlsFiles::write_script).unwrap_or_default();
        if let Some(key) = &self.service_account_key {
            files += &write_file_script("/data/sa-key.pem", key.private.as_bytes());
            files += &write_file_script("/data/sa.pem", key.public.as_bytes());
        }
        let etcd = self.etcd.clone().unwrap_or_default();
        let arguments = ["-ec".to_owned(), files + START, "sh".to_owned(), etcd];
        let arguments = arguments.into_iter().chain(self.flags.iter().cloned()).collect();
        ContainerSpec::new(version, PORT, "sh", arguments)
    }
}
