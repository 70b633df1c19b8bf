//! A Redis or Valkey primary and its replica.

use crate::{
    cluster::Cluster,
    error::ContainerError,
    health::eventually,
    network::Network,
    redis::{
        admin::RedisAdmin,
        settings::{PORT, RedisSettings},
    },
    version::Version,
};

/// A primary and a replica of the test's own. Dropping it removes them.
///
/// Nothing promotes a replica by itself. This is not Redis Cluster.
pub type RedisCluster = Cluster<RedisAdmin>;

impl RedisCluster {
    /// Starts member 0 as the primary and member 1 as its replica, and waits until the replica follows.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the members are not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let primary = RedisSettings::default();
        let replica = primary.clone().set("replicaof", format!("{} {PORT}", peers.ip(0)));
        let cluster = Self::launch(peers, [primary, replica].map(|settings| settings.spec(version))).await?;
        cluster.wait_for_replica().await?;
        Ok(cluster)
    }

    /// Waits until member 1 has all that member 0 has written so far.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn wait_for_replica(&self) -> Result<(), ContainerError> {
        let (primary, replica) = (self.member(0).admin(), self.member(1).admin());
        let written: u64 = primary.info("master_repl_offset").await?.parse().unwrap_or_default();
        eventually("the replica to follow", || async move {
            let link = replica.info("master_link_status").await?;
            let received = replica.info("slave_repl_offset").await?;
            match received.parse::<u64>() {
                Ok(received) if link == "up" && received >= written => Ok(()),
                _ => Err(ContainerError::Unexpected(format!("it is {link:?}, at {received:?} of {written}"))),
            }
        })
        .await
    }

    /// Makes a replica a primary. Nothing is done about the other member: if that lives, there are two.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn promote(&self, index: usize) -> Result<(), ContainerError> {
        self.member(index).admin().run(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }
}
