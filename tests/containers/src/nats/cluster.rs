//! Three NATS servers that form a cluster.

use crate::{
    cluster::{Cluster, MEMBERS},
    error::ContainerError,
    health::eventually,
    nats::{admin::NatsAdmin, settings::NatsSettings},
    network::Network,
    spec::ContainerSpec,
    version::Version,
};

const ROUTE_PORT: u16 = 6222;

/// Three NATS servers of the test's own. Dropping it removes them.
pub type NatsCluster = Cluster<NatsAdmin>;

impl NatsCluster {
    /// Starts three members with an empty store, and waits until all of them are ready.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the cluster is not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &NatsSettings::default()).await
    }

    /// Starts three members with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &NatsSettings) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, |spec| spec).await
    }

    /// Starts three members into which faults can be [injected](Self::inject): each has a file system of its own, may mount it, and flushes its
    /// writes to it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_fault_injection(
        version: Version,
        settings: &NatsSettings,
    ) -> Result<Self, ContainerError> {
        let settings = settings.clone().sync_always();
        Self::start_members(version, &settings, ContainerSpec::with_fault_injection).await
    }

    async fn start_members(
        version: Version,
        settings: &NatsSettings,
        adapt: fn(ContainerSpec) -> ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let routes: Vec<_> =
            (0..MEMBERS).map(|index| format!("\"nats://{}:{ROUTE_PORT}\"", peers.ip(index))).collect();
        let specs: Vec<_> = (0..MEMBERS)
            .map(|index| {
                let lines = format!(
                    "server_name: m{index}\ncluster {{ name: {}, listen: 0.0.0.0:{ROUTE_PORT}, no_advertise: true, routes: [{}] }}",
                    peers.name(),
                    routes.join(", ")
                );
                adapt(settings.clone().configuration(&lines).spec(version))
            })
            .collect();
        Self::launch(peers, specs).await
    }

    /// The number of the member that leads the bucket's replicas; waits until a majority names the same.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn leader(&self, bucket: &str) -> Result<usize, ContainerError> {
        eventually("a leader of the bucket", || self.agreed_leader(bucket, None)).await
    }

    /// The number of the member that leads the bucket's replicas in place of `former`; waits until there is one.
    ///
    /// # Errors
    /// As for [`leader`](Self::leader).
    pub async fn successor_of(&self, former: usize, bucket: &str) -> Result<usize, ContainerError> {
        eventually("another leader of the bucket", || self.agreed_leader(bucket, Some(former))).await
    }

    /// Only a leader that can write is one: a former one does not know that it is none.
    async fn agreed_leader(&self, bucket: &str, former: Option<usize>) -> Result<usize, ContainerError> {
        let mut failure = ContainerError::Unexpected("no member answers".to_owned());
        for (_, member) in self.members().iter().enumerate().filter(|(index, _)| Some(*index) != former) {
            let found = async {
                let state = member.admin().bucket(bucket).await?;
                let leader = state["cluster"]["leader"].as_str().unwrap_or_default();
                let index = leader.strip_prefix('m').and_then(|index| index.parse().ok());
                let index = index
                    .filter(|index| Some(*index) != former)
                    .ok_or_else(|| ContainerError::Unexpected(format!("{leader:?} leads {bucket}")))?;
                member.admin().request(&format!("$KV.{bucket}.written"), serde_json::json!("")).await?;
                Ok(index)
            };
            match found.await {
                Ok(index) => return Ok(index),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}
