//! Two Kubernetes API servers over one etcd, and how candidates reach them.

mod balancer;
mod labels;

use std::fs;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tenure_containers::{Fault, FaultKind, KubernetesCluster, KubernetesSettings, Version};

use labels::LabelWriter;

/// How many servers there are: the API servers, and then the etcd.
pub(crate) const MEMBERS: usize = 3;
/// The index of the etcd among them.
pub(crate) const ETCD: usize = 2;
/// The namespace of the Leases.
const NAMESPACE: &str = "chaos";
/// The user of the candidates, who has the least rights. A server that starts refuses it until it has read the roles.
const USER: (&str, &str) = ("alice", "alice-token");

/// The servers, and the files with which candidates connect.
#[derive(Debug)]
pub(crate) struct ApiServers {
    labels: LabelWriter,
    cluster: KubernetesCluster,
    kubeconfigs: TempDir,
}

impl ApiServers {
    pub(crate) async fn start() -> Result<Self> {
        let settings = KubernetesSettings::default();
        let cluster =
            KubernetesCluster::start_with_fault_injection(Version::Kubernetes120, &settings).await?;
        let admin = cluster.server(0).admin();
        admin.create_namespace(NAMESPACE).await?;
        for server in 0..ETCD {
            let admin = cluster.server(server).admin();
            admin.allow(NAMESPACE, USER.0, &["get", "create", "update", "watch"]).await?;
        }
        let admins = (0..ETCD).map(|server| cluster.server(server).admin().clone());
        let labels = LabelWriter::start(admins.collect(), NAMESPACE);
        Ok(Self { labels, cluster, kubeconfigs: tempfile::tempdir()? })
    }

    /// The addresses of the API servers.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.cluster.servers().endpoints()
    }

    /// The URL of a balancer before the servers at these addresses. It runs until the end of the program.
    pub(crate) async fn url(&self, endpoints: &[String]) -> Result<String> {
        let endpoint = balancer::start(endpoints).await.context("cannot start a balancer on loopback")?;
        let kubeconfig = self.cluster.server(0).admin().kubeconfig(&endpoint, USER.1, NAMESPACE).await?;
        let file = self.kubeconfigs.path().join(endpoint.replace(':', "-"));
        fs::write(&file, kubeconfig)?;
        Ok(format!("kubernetes:///{NAMESPACE}?kubeconfig={}", file.display()))
    }

    /// How many changes of labels were made.
    pub(crate) fn labels_patched(&self) -> u64 {
        self.labels.patched()
    }

    pub(crate) async fn inject(&self, member: usize, kind: FaultKind) -> Result<Fault> {
        Ok(match member {
            ETCD => self.cluster.inject_into_etcd(kind).await?,
            server => self.cluster.inject(server, kind).await?,
        })
    }

    pub(crate) async fn health(&self, member: usize) -> Result<()> {
        match member {
            ETCD => self.cluster.etcd().admin().health().await?,
            server => self.cluster.server(server).admin().health().await?,
        }
        Ok(())
    }

    pub(crate) async fn last_log_lines(&self, member: usize) -> String {
        match member {
            ETCD => self.cluster.etcd().last_log_lines().await,
            server => self.cluster.server(server).last_log_lines().await,
        }
    }

    /// The holders of an election's Lease, or of all: at most one each.
    pub(crate) async fn holders(&self, election: Option<&str>) -> Result<Vec<String>> {
        let leases = self.cluster.server(0).admin().leases(NAMESPACE).await?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let held = leases.iter().filter_map(|lease| {
            let (name, holder) = (text(&lease["metadata"]["name"]), text(&lease["spec"]["holderIdentity"]));
            (!holder.is_empty()).then_some((name, holder))
        });
        let of_election = held.filter(|(name, _)| election.is_none_or(|election| name == election));
        Ok(of_election.map(|(name, holder)| format!("{name}: {holder}")).collect())
    }
}
