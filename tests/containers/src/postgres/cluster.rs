//! A PostgreSQL primary and its replica.

use crate::{
    cluster::Cluster,
    error::ContainerError,
    health::eventually,
    network::Network,
    postgres::{
        admin::PostgresAdmin,
        settings::{LEAD, PostgresSettings, Role},
    },
    spec::ContainerSpec,
    version::Version,
};

/// How many servers there are.
const MEMBERS: usize = 2;

/// A primary and a replica of the test's own. Dropping it removes them.
///
/// Nothing promotes a replica by itself. A member that starts again is what it was before; but a former primary becomes a
/// replica if the other member was promoted meanwhile, and waits if the other does not answer, until it is
/// [told](Self::resume_primary) that it is the primary. So healing a fault joins a former primary again.
pub type PostgresCluster = Cluster<PostgresAdmin>;

/// When a primary acknowledges a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// Once the replica has written it to its disk, too.
    Synchronous,
    /// Once it is on its own disk. The latest commits are lost when the replica is promoted.
    Asynchronous,
}

impl PostgresCluster {
    /// Starts member 0 as the primary and member 1 as its replica, and waits until the replica follows.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the members are not ready within a minute.
    pub async fn start(version: Version, replication: Replication) -> Result<Self, ContainerError> {
        Self::start_with(version, replication, &PostgresSettings::default()).await
    }

    /// Starts members with these settings. A cluster has neither TLS nor PgBouncer.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(
        version: Version,
        replication: Replication,
        settings: &PostgresSettings,
    ) -> Result<Self, ContainerError> {
        Self::start_members(version, replication, settings, |spec| spec).await
    }

    /// Starts members into which faults can be [injected](Self::inject): each has a file system of its own, may mount it,
    /// and flushes its writes to it. Only PostgreSQL 17's image has what that needs.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_fault_injection(
        version: Version,
        replication: Replication,
        settings: &PostgresSettings,
    ) -> Result<Self, ContainerError> {
        let settings = settings.clone().set("fsync", "on");
        Self::start_members(version, replication, &settings, ContainerSpec::with_fault_injection).await
    }

    async fn start_members(
        version: Version,
        replication: Replication,
        settings: &PostgresSettings,
        adapt: fn(ContainerSpec) -> ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let settings = settings
            .clone()
            .set("wal_log_hints", "on")
            .set("wal_keep_size", "64MB")
            .set("wal_sender_timeout", "3s")
            .set("wal_receiver_timeout", "3s")
            .set("wal_receiver_status_interval", "1s")
            .set("wal_retrieve_retry_interval", "100ms");
        let specs: Vec<_> = (0..MEMBERS)
            .map(|index| {
                let role = Role { peer: peers.ip(other(index)), starts_as_replica: index > 0 };
                adapt(settings.clone().role(role).spec(version))
            })
            .collect();
        let cluster = Self::launch(peers, specs).await?;
        cluster.wait_for_replica(0).await?;
        if replication == Replication::Synchronous {
            cluster.replicate_synchronously(0).await?;
        }
        Ok(cluster)
    }

    /// The number of the member that is a primary; waits until there is exactly one.
    ///
    /// # Errors
    /// When there is none within a minute, or more than one.
    pub async fn primary(&self) -> Result<usize, ContainerError> {
        eventually("one primary", || async {
            let mut primaries = Vec::new();
            for (index, member) in self.members().iter().enumerate() {
                // One that does not answer is none for the clients.
                if member.admin().is_replica().await.is_ok_and(|replica| !replica) {
                    primaries.push(index);
                }
            }
            match primaries[..] {
                [primary] => Ok(primary),
                _ => Err(ContainerError::Unexpected(format!("the primaries are {primaries:?}"))),
            }
        })
        .await
    }

    /// Waits until the replica of this primary follows it, with nothing left to catch up at the time of the call.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn wait_for_replica(&self, primary: usize) -> Result<(), ContainerError> {
        let admin = self.member(primary).admin();
        let written = admin.value("SELECT pg_current_wal_flush_lsn()").await?;
        let follows = format!(
            "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn >= '{written}'"
        );
        eventually("the replica to follow", || admin.value(&follows)).await.map(drop)
    }

    /// Makes a replica a primary with `pg_ctl promote`, and waits until it is one.
    ///
    /// Nothing is done about the other member: if that is a primary and lives, there are two. An operator's
    /// [`fence`](Self::fence) comes before.
    ///
    /// # Errors
    /// When the member does not run or is a primary already.
    pub async fn promote(&self, index: usize) -> Result<(), ContainerError> {
        const PROMOTE: &str = "setpriv --reuid=postgres --regid=postgres --init-groups /usr/lib/postgresql/*/bin/pg_ctl promote -D /data/postgres";
        self.member(index).container().run_script(PROMOTE).await
    }

    /// Makes sure that a member answers nobody any more, as an operator has to before the other is promoted: cuts it off
    /// from everybody, and kills it. [Starting](Self::restart) it again, or healing its fault, makes it a member again.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn fence(&self, index: usize) -> Result<(), ContainerError> {
        let container = self.member(index).container();
        if !container.is_running().await? {
            return Ok(());
        }
        // Processes that wait for a stalled disk cannot be killed. Before they go on nobody may hear them.
        const CUT_OFF: &str = "\
for chain in INPUT OUTPUT; do iptables -w -I $chain -j DROP || true; done
fsfreeze -u /data || true
";
        if !container.is_paused().await? && !container.run_script_if_running(CUT_OFF).await? {
            return Ok(());
        }
        match container.kill().await {
            Err(_) if !container.is_running().await? => Ok(()),
            killed => killed,
        }
    }

    /// Kills a member and starts it again, and waits until it is the replica of the other, which has been
    /// [promoted](Self::promote). Uses `pg_rewind`, or a new base backup where that fails.
    ///
    /// # Errors
    /// When it is not within a minute.
    pub async fn rejoin(&self, index: usize) -> Result<(), ContainerError> {
        self.fence(index).await?;
        self.restart(index).await?;
        self.wait_for_replica(other(index)).await
    }

    /// Starts a member that has ended, and waits until it answers. Whether it is a primary depends on the other.
    ///
    /// # Errors
    /// When it does not answer within a minute.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the member goes on starting.
    pub async fn restart(&self, index: usize) -> Result<(), ContainerError> {
        self.member(index).container().start().await?;
        self.member(index).wait_until_ready().await
    }

    /// Tells a primary that has started again, and waits for an answer of the other member, that it is still the primary. Needed
    /// only if the other waits as well: a former primary that has not joined yet.
    ///
    /// The caller has to know that the other was not promoted.
    ///
    /// # Errors
    /// When the member does not run, or is frozen.
    pub async fn resume_primary(&self, index: usize) -> Result<(), ContainerError> {
        self.member(index).container().run_script(LEAD).await
    }

    /// Whether the container of a member runs. A frozen one does.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn is_running(&self, index: usize) -> Result<bool, ContainerError> {
        self.member(index).container().is_running().await
    }
}

/// The other member.
fn other(index: usize) -> usize {
    1 - index
}
