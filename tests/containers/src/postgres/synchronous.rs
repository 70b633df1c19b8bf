//! Switches synchronous replication on and off, as a supervisor such as Patroni does when a replica comes and goes.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    error::ContainerError,
    health::eventually,
    postgres::{admin::PostgresAdmin, cluster::PostgresCluster},
};

const SETTING: &str = "synchronous_standby_names";
/// Matches no replica: every commit waits.
const NOBODY: &str = "nobody";
const ANY_REPLICA: &str = "*";

/// A commit that has something to replicate.
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'tenure', '')";
const COMMIT_INTERVAL: Duration = Duration::from_millis(10);
const COMMIT_WAITS: &str = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

impl PostgresCluster {
    /// Makes a primary wait for its replica at every commit, and waits until the replica has all that was acknowledged
    /// before. From then on, no acknowledged commit is lost when the replica is promoted.
    ///
    /// # Errors
    /// When the replica does not follow within a minute. Commits may wait for it then.
    pub async fn replicate_synchronously(&self, primary: usize) -> Result<(), ContainerError> {
        let admin = self.member(primary).admin();
        admin.set(SETTING, NOBODY).await?;
        // The setting is in force some time after the server was told to read it. A commit that waits shows that it is.
        tokio::select! {
            waits = eventually("a commit that waits", || admin.value(COMMIT_WAITS)) => waits.map(drop)?,
            failed = commit_forever(admin) => failed?,
        }
        let acknowledged = admin.value("SELECT pg_current_wal_flush_lsn()").await?;
        admin.set(SETTING, ANY_REPLICA).await?;
        let replicated = format!(
            "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND flush_lsn >= '{acknowledged}'"
        );
        eventually("the synchronous replica", || admin.value(&replicated)).await.map(drop)
    }

    /// Makes a primary acknowledge commits that its replica does not have. Commits that wait are acknowledged, too: the
    /// replica must not be promoted from the time of the call.
    ///
    /// # Errors
    /// When the primary does not answer.
    pub async fn replicate_asynchronously(&self, primary: usize) -> Result<(), ContainerError> {
        self.member(primary).admin().set(SETTING, "").await
    }
}

/// Returns only when a commit is refused.
async fn commit_forever(admin: &PostgresAdmin) -> Result<(), ContainerError> {
    loop {
        match admin.execute(COMMIT).await {
            // It waits, and so did nothing wrong.
            Ok(()) | Err(ContainerError::NoAnswer { .. }) => {}
            Err(error) => return Err(error),
        }
        sleep(COMMIT_INTERVAL).await;
    }
}
