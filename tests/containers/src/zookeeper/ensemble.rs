//! Three ZooKeeper servers that form an ensemble.

use crate::{
    cluster::{Cluster, MEMBERS},
    error::ContainerError,
    fault_kind::FaultKind,
    health::eventually,
    network::Network,
    spec::{ContainerSpec, WIPE_ON_NEXT_START},
    version::Version,
    zookeeper::{admin::ZookeeperAdmin, settings::ZookeeperSettings},
};

/// Three ZooKeeper servers of the test's own. Dropping it removes them.
pub type ZookeeperEnsemble = Cluster<ZookeeperAdmin>;

impl ZookeeperEnsemble {
    /// Starts three members with an empty store, and waits until all of them are ready.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the ensemble is not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &ZookeeperSettings::default()).await
    }

    /// Starts three members with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &ZookeeperSettings) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, |spec| spec).await
    }

    /// Starts three members into which faults can be [injected](Self::inject): each has a file system of its own and may
    /// mount it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_fault_injection(
        version: Version,
        settings: &ZookeeperSettings,
    ) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, ContainerSpec::with_fault_injection).await
    }

    async fn start_members(
        version: Version,
        settings: &ZookeeperSettings,
        adapt: fn(ContainerSpec) -> ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let mut shared = settings
            .clone()
            .set_default("initLimit", "20")
            .set_default("syncLimit", "4")
            // A member gets its address on the private network only after it has started.
            .set("quorumListenOnAllIPs", "true");
        for index in 0..MEMBERS {
            shared = shared.set(format!("server.{index}"), format!("{}:2888:3888", peers.ip(index)));
        }
        let specs: Vec<_> = (0..MEMBERS)
            .map(|index| {
                let settings = shared.clone().file("/data/zookeeper/myid", index.to_string());
                adapt(settings.spec(version))
            })
            .collect();
        Self::launch(peers, specs).await
    }

    /// The number of the member that leads; waits until there is one that is ready.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub async fn leader(&self) -> Result<usize, ContainerError> {
        eventually("a member that leads", || self.leader_except(None)).await
    }

    /// The number of the member that leads in place of `former`; waits until there is one.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub async fn successor_of(&self, former: usize) -> Result<usize, ContainerError> {
        eventually("another member that leads", || self.leader_except(Some(former))).await
    }

    async fn leader_except(&self, former: Option<usize>) -> Result<usize, ContainerError> {
        for (index, member) in self.members().iter().enumerate() {
            if Some(index) == former {
                continue;
            }
            let status = member.admin().four_letter_command("srvr").await.unwrap_or_default();
            if status.lines().any(|line| line == "Mode: leader") && member.admin().health().await.is_ok() {
                return Ok(index);
            }
        }
        Err(ContainerError::Unexpected("no member leads".to_owned()))
    }

    /// Deletes the data of a member and waits until the member has copied them from the leader again. This is what an
    /// operator does with a server whose data differ from the others'. The ensemble needs
    /// [fault injection](Self::start_with_fault_injection).
    ///
    /// # Errors
    /// When Docker fails, or the member is not ready within a minute.
    pub async fn resync_member(&self, index: usize) -> Result<(), ContainerError> {
        self.member(index).container().run_script(WIPE_ON_NEXT_START).await?;
        self.inject(index, FaultKind::Kill).await?.heal().await
    }
}
