//! Three Consul servers that form a cluster.

use crate::{
    cluster::{Cluster, MEMBERS},
    consul::{admin::ConsulAdmin, settings::ConsulSettings},
    error::ContainerError,
    health::eventually,
    network::Network,
    spec::ContainerSpec,
    version::Version,
};

/// Three Consul servers of the test's own. Dropping it removes them.
pub type ConsulCluster = Cluster<ConsulAdmin>;

impl ConsulCluster {
    /// Starts three members with an empty store, and waits until all of them are ready.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the cluster is not ready within a minute.
    pub async fn start(version: Version, settings: &ConsulSettings) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, |spec| spec).await
    }

    /// Starts three members into which faults can be [injected](Self::inject): each has a file system of its own and may
    /// mount it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_fault_injection(
        version: Version,
        settings: &ConsulSettings,
    ) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, ContainerSpec::with_fault_injection).await
    }

    async fn start_members(
        version: Version,
        settings: &ConsulSettings,
        adapt: fn(ContainerSpec) -> ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let specs: Vec<_> = (0..MEMBERS)
            .map(|index| {
                let mut arguments = vec![
                    format!("-node=m{index}"),
                    format!("-bootstrap-expect={MEMBERS}"),
                    // A member starts before it is connected to the network.
                    "-bind=0.0.0.0".to_owned(),
                    format!("-advertise={}", peers.ip(index)),
                    "-retry-interval=1s".to_owned(),
                ];
                let others = (0..MEMBERS).filter(|other| *other != index);
                arguments.extend(others.map(|other| format!("-retry-join={}", peers.ip(other))));
                adapt(settings.spec(version, arguments))
            })
            .collect();
        Self::launch(peers, specs).await
    }

    /// The number of the member that a majority reports as leader; waits until there is one.
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
        let mut reported = Vec::new();
        for member in self.members() {
            reported.extend(member.admin().leader().await);
        }
        let is_leader = |index: &usize| {
            let host = format!("{}:", self.ip(*index));
            reported.iter().filter(|leader| leader.starts_with(&host)).count() > MEMBERS / 2
        };
        (0..MEMBERS)
            .find(is_leader)
            .ok_or_else(|| ContainerError::Unexpected(format!("no leader in {reported:?}")))
    }
}
