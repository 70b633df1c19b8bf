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
/// The number of the etcd.
pub(crate) const ETCD: usize = 2;
/// The namespace of the Leases.
const NAMESPACE: &str = "chaos";

/// The servers, and the files with which candidates connect.
#[derive(Debug)]
pub(crate) struct ApiServers {
    _labels: LabelWriter,
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
        let admins = (0..ETCD).map(|server| cluster.server(server).admin().clone());
        let labels = LabelWriter::start(admins.collect(), NAMESPACE);
        Ok(Self { _labels: labels, cluster, kubeconfigs: tempfile::tempdir()? })
    }

    /// The addresses of the API servers.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.cluster.servers().endpoints()
    }

    /// The URL of a balancer before the servers at these addresses. It runs until the end of the program.
    pub(crate) async fn url(&self, endpoints: &[String]) -> Result<String> {
        let endpoint = balancer::start(endpoints).await.context("cannot start a balancer on loopback")?;
        let kubeconfig =
            self.cluster.server(0).admin().kubeconfig(&endpoint, "admin-token", NAMESPACE).await?;
        let file = self.kubeconfigs.path().join(endpoint.replace(':', "-"));
        fs::write(&file, kubeconfig)?;
        Ok(format!("kubernetes:///{NAMESPACE}?kubeconfig={}", file.display()))
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
        let of_election = leases
            .iter()
            .filter(|lease| election.is_none_or(|election| lease["metadata"]["name"] == election));
        let holders = of_election.filter_map(|lease| lease["spec"]["holderIdentity"].as_str());
        Ok(holders.filter(|holder| !holder.is_empty()).map(str::to_owned).collect())
    }
}
