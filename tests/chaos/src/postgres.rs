//! A PostgreSQL primary and its replica under a supervisor, which fails over as Patroni does.
//!
//! [`Supervisor`] decides, [`Roles`] is what it knows and what faults have to tell it, and [`Audit`] counts acknowledged commits
//! that were lost.

mod audit;
mod roles;
mod supervisor;

use std::{sync::Arc, time::Duration};

use anyhow::{Result, anyhow, ensure};
use tenure_containers::{
    Direction, Fault, FaultKind, PostgresCluster, PostgresSettings, Replication, Version,
};
use tokio::{task::JoinHandle, time::sleep};

use audit::Audit;
pub(crate) use audit::AuditCounts;
use roles::Roles;
use supervisor::Supervisor;

/// How many servers there are.
pub(crate) const MEMBERS: usize = 2;
/// The schema of the candidates' records.
pub(crate) const SCHEMA: &str = "chaos";

/// The URL with which a candidate connects to the members at these addresses.
pub(crate) fn url(endpoints: &str) -> String {
    format!("postgres://postgres@{endpoints}/postgres?schema={SCHEMA}")
}

/// A cluster, its supervisor, and the audit of its commits.
#[derive(Debug)]
pub(crate) struct SupervisedPostgres {
    roles: Arc<Roles>,
    audit: Audit,
    supervisor: JoinHandle<()>,
}

impl SupervisedPostgres {
    pub(crate) async fn start(replication: Replication) -> Result<Self> {
        let settings = PostgresSettings::default();
        let version = Version::Postgres17;
        let cluster = PostgresCluster::start_with_fault_injection(version, replication, &settings).await?;
        let roles = Arc::new(Roles::new(cluster, replication));
        let audit = Audit::start(Arc::clone(&roles)).await?;
        let supervisor = tokio::spawn(Supervisor::new(Arc::clone(&roles)).run());
        Ok(Self { roles, audit, supervisor })
    }

    pub(crate) fn cluster(&self) -> &PostgresCluster {
        &self.roles.cluster
    }

    /// The number of the member that clients have to use.
    pub(crate) fn primary(&self) -> usize {
        self.roles.primary()
    }

    /// Injects a fault into a member. The supervisor notices it by itself.
    pub(crate) async fn inject(&self, member: usize, kind: FaultKind) -> Result<DisruptedMember> {
        // Not while roles change: a member would be promoted that cannot be.
        let _unchanged = self.roles.unchanged().await;
        let disruption = self.roles.disrupt(member);
        let fault = self.roles.cluster.inject(member, kind).await?;
        Ok(DisruptedMember { fault, roles: Arc::clone(&self.roles), _disruption: disruption })
    }

    /// Stops replication for `delay`, and then fails over, as an operator does who lost the primary. Synchronous replication
    /// ends by itself when there is no replica for long, and there is no failover then.
    pub(crate) async fn fail_over_after(&self, delay: Duration) -> Result<()> {
        let primary = self.primary();
        let fault = self.inject(primary, FaultKind::PartitionFromPeers(Direction::Both)).await?;
        sleep(delay).await;
        if self.primary() == primary {
            self.roles.fail_over().await?;
        }
        fault.heal().await
    }

    /// Ends all connections to the primary, in the server itself.
    pub(crate) async fn terminate_connections(&self) -> Result<()> {
        // It may be down for another reason.
        let _ = self.cluster().member(self.primary()).admin().terminate_connections().await;
        Ok(())
    }

    /// Whether a member is ready: the primary answers, and the replica follows it as the kind of replication demands.
    pub(crate) async fn health(&self, member: usize) -> Result<()> {
        if let Some(error) = self.roles.failure() {
            return Err(anyhow!("the supervisor has failed: {error}"));
        }
        let is_replica = self.cluster().member(member).admin().is_replica().await?;
        ensure!(is_replica == (member != self.primary()), "member {member} is a replica: {is_replica}");
        ensure!(!is_replica || self.roles.is_replica_ready(), "the replica does not follow");
        Ok(())
    }

    /// The slots of an election, or of all.
    pub(crate) async fn slots(&self, election: Option<&str>) -> Result<Vec<String>> {
        let key = election.map_or_else(|| "e/%".to_owned(), |election| format!("e/{election}"));
        let slots = format!(
            "SELECT key || ' ' || slot FROM {SCHEMA}.records, \
             jsonb_array_elements(convert_from(body, 'UTF8')::jsonb -> 'queue') AS slot WHERE key LIKE '{key}'"
        );
        let rows = self.cluster().member(self.primary()).admin().query(&slots).await?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }

    /// How many failovers there were.
    pub(crate) fn failovers(&self) -> u64 {
        self.roles.failovers()
    }

    /// Compares the commits that were acknowledged with those that the primary has.
    pub(crate) async fn audit(&self) -> Result<AuditCounts> {
        self.audit.check().await
    }
}

impl Drop for SupervisedPostgres {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// A member with a fault, until the fault is healed.
#[derive(Debug)]
pub(crate) struct DisruptedMember {
    fault: Fault,
    roles: Arc<Roles>,
    _disruption: roles::Disruption,
}

impl DisruptedMember {
    /// Undoes the fault, and waits until the server is ready. A former primary joins as a replica.
    pub(crate) async fn heal(self) -> Result<()> {
        // A member that starts asks the other what it is.
        let _unchanged = self.roles.unchanged().await;
        Ok(self.fault.heal().await?)
    }
}
