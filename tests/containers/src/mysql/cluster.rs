//! A MariaDB primary and its replica.

use crate::{
    cluster::Cluster,
    error::ContainerError,
    health::eventually,
    mysql::{admin::MysqlAdmin, settings::MysqlSettings},
    network::Network,
    version::Version,
};

/// How many servers there are.
const MEMBERS: usize = 2;

/// A primary and a replica of the test's own, with asynchronous replication. Dropping it removes them.
///
/// Nothing promotes a replica by itself. A member that starts again is what it was before.
pub type MysqlCluster = Cluster<MysqlAdmin>;

impl MysqlCluster {
    /// Starts member 0 as the primary and member 1 as its replica, which is read-only, and waits until the replica follows.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the members are not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        let settings = MysqlSettings::default().set("log-bin", "binlog").set("sync-binlog", "1");
        let specs: Vec<_> = (0..MEMBERS)
            .map(|index| {
                let settings = settings.clone().set("server-id", (index + 1).to_string());
                let settings = if index > 0 { settings.set("read-only", "on") } else { settings };
                settings.spec(version)
            })
            .collect();
        let cluster = Self::launch(Network::create().await?, specs).await?;
        cluster.follow(1, 0).await?;
        Ok(cluster)
    }

    /// Makes a member a replica of another one, and waits until it has all that was written there.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn follow(&self, index: usize, primary: usize) -> Result<(), ContainerError> {
        let admin = self.member(index).admin();
        admin.execute("SET GLOBAL read_only = 1").await?;
        admin
            .execute(&format!(
                "CHANGE MASTER TO MASTER_HOST = '{}', MASTER_USER = 'root', MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1",
                self.ip(primary)
            ))
            .await?;
        admin.execute("START SLAVE").await?;
        self.wait_for_replica(index, primary).await
    }

    /// Waits until a replica has what its primary has at the time of the call.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn wait_for_replica(&self, index: usize, primary: usize) -> Result<(), ContainerError> {
        let written = self.member(primary).admin().value("SELECT @@gtid_binlog_pos").await?;
        let admin = self.member(index).admin();
        eventually("the replica to follow", || async {
            match admin.value(&format!("SELECT MASTER_GTID_WAIT('{written}', 1)")).await?.as_str() {
                "0" => Ok(()),
                _ => Err(ContainerError::Unexpected("the replica does not follow".to_owned())),
            }
        })
        .await
    }

    /// Makes a replica stand still: what the primary acknowledges from now on is lost when it is promoted.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn stop_replication(&self, index: usize) -> Result<(), ContainerError> {
        self.member(index).admin().execute("STOP SLAVE").await
    }

    /// Makes a replica a primary. Nothing is done about the other member.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn promote(&self, index: usize) -> Result<(), ContainerError> {
        let admin = self.member(index).admin();
        for statement in ["STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = 0"] {
            admin.execute(statement).await?;
        }
        Ok(())
    }
}
