//! Three etcd servers that form a cluster.

use crate::{
    cluster::{Cluster, MEMBERS},
    error::ContainerError,
    etcd::{
        admin::EtcdAdmin,
        server::{CLIENT_PORT, client_flags},
    },
    health::eventually,
    network::Network,
    spec::ContainerSpec,
    version::Version,
};

pub(super) const PEER_PORT: u16 = 2380;

/// Three etcd servers of the test's own. Dropping it removes them.
pub type EtcdCluster = Cluster<EtcdAdmin>;

impl EtcdCluster {
    /// Starts three members with an empty store, and waits until all of them are ready.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the cluster is not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &[]).await
    }

    /// Starts three members with additional flags on each member's command line, for example `--election-timeout=500`. In a
    /// flag, `{ip}` stands for the member's address on the network of the members, which this machine can reach.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, flags: &[&str]) -> Result<Self, ContainerError> {
        Self::start_members(version, flags, |spec| spec).await
    }

    /// Starts three members into which faults can be [injected](Self::inject): each has a file system of its own and may
    /// mount it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_fault_injection(
        version: Version,
        flags: &[&str],
    ) -> Result<Self, ContainerError> {
        Self::start_members(version, flags, ContainerSpec::with_fault_injection).await
    }

    async fn start_members(
        version: Version,
        flags: &[&str],
        adapt: fn(ContainerSpec) -> ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let peer_url = |index| format!("http://{}:{PEER_PORT}", peers.ip(index));
        let cluster: Vec<_> = (0..MEMBERS).map(|index| format!("m{index}={}", peer_url(index))).collect();
        let cluster = cluster.join(",");
        let specs: Vec<_> = (0..MEMBERS)
            .map(|index| {
                let mut arguments = client_flags(&format!("m{index}"));
                arguments.push(format!("--listen-peer-urls=http://0.0.0.0:{PEER_PORT}"));
                arguments.push(format!("--initial-advertise-peer-urls={}", peer_url(index)));
                arguments.push(format!("--initial-cluster={cluster}"));
                arguments.push(format!("--initial-cluster-token={}", peers.name()));
                arguments.extend(flags.iter().map(|flag| flag.replace("{ip}", &peers.ip(index))));
                adapt(ContainerSpec::new(version, CLIENT_PORT, "etcd", arguments))
            })
            .collect();
        Self::launch(peers, specs).await
    }

    /// The number of the member that a majority reports as leader; waits until there is one.
    ///
    /// A member that was isolated may still report itself; one report is not a majority. Its peers notice only after
    /// an election timeout: see [`successor_of`](Self::successor_of).
    ///
    /// # Errors
    /// When a majority does not agree on a leader within a minute.
    pub async fn leader(&self) -> Result<usize, ContainerError> {
        eventually("a majority that agrees on a leader", || self.agreed_leader()).await
    }

    /// The number of the member that leads in place of `former`; waits until there is one.
    ///
    /// # Errors
    /// When a majority does not agree on another leader within a minute.
    pub async fn successor_of(&self, former: usize) -> Result<usize, ContainerError> {
        eventually("a majority that agrees on another leader", || async {
            match self.agreed_leader().await? {
                leader if leader == former => {
                    Err(ContainerError::Unexpected(format!("member {former} still leads")))
                }
                leader => Ok(leader),
            }
        })
        .await
    }

    async fn agreed_leader(&self) -> Result<usize, ContainerError> {
        let mut statuses = Vec::new();
        for member in self.members() {
            statuses.push(member.admin().status().await.ok());
        }
        let votes = |id| statuses.iter().flatten().filter(|status| status.leader == id).count();
        let leads = |id| id != 0 && votes(id) > MEMBERS / 2;
        statuses
            .iter()
            .position(|status| status.as_ref().is_some_and(|status| leads(status.member)))
            .ok_or_else(|| ContainerError::Unexpected(format!("no leader in {statuses:?}")))
    }
}
