//! The servers of any store, with one interface.

use std::time::Duration;

use anyhow::{Result, bail};
use tenure::{
    StoreUrl,
    consul::{ConsulConfig, ConsulStore},
    nats::{NatsConfig, NatsStore},
};
use tenure_containers::{
    ConsulCluster, ConsulSettings, EtcdCluster, Fault, FaultKind, LeaseExpiryMonitor, NatsCluster,
    NatsSettings, Replication, Version, ZookeeperEnsemble, ZookeeperSettings,
};

use crate::{
    cas,
    kubernetes::{self, ApiServers},
    options::StoreKind,
    postgres::{self, DisruptedMember, SupervisedPostgres},
};

/// The prefix below which candidates keep their entries.
pub(crate) const PREFIX: &str = "chaos";

/// How many servers etcd, ZooKeeper, Consul and NATS have.
pub(crate) const MEMBERS: usize = 3;

/// Three servers, or two of PostgreSQL. On Kubernetes two API servers and their etcd, which counts as their leader.
#[derive(Debug)]
pub(crate) enum Cluster {
    Etcd(EtcdCluster),
    Zookeeper(ZookeeperEnsemble),
    Postgres(SupervisedPostgres),
    Kubernetes(ApiServers),
    Consul(ConsulCluster),
    Nats(NatsCluster),
}

impl Cluster {
    pub(crate) async fn start(store: StoreKind) -> Result<Self> {
        Ok(match store {
            StoreKind::Etcd => Self::etcd(Version::Etcd35).await?,
            StoreKind::Zookeeper => Self::zookeeper(&[]).await?,
            StoreKind::Postgres => Self::postgres(Replication::Synchronous).await?,
            StoreKind::Kubernetes => Self::Kubernetes(ApiServers::start().await?),
            StoreKind::Consul => Self::Consul(
                ConsulCluster::start_with_fault_injection(Version::Consul18, &ConsulSettings::default())
                    .await?,
            ),
            StoreKind::Nats => Self::Nats(
                NatsCluster::start_with_fault_injection(Version::Nats215, &NatsSettings::default()).await?,
            ),
        })
    }

    /// PostgreSQL with this kind of replication.
    pub(crate) async fn postgres(replication: Replication) -> Result<Self> {
        Ok(Self::Postgres(SupervisedPostgres::start(replication).await?))
    }

    /// The number of servers.
    pub(crate) fn members(&self) -> usize {
        match self {
            Self::Etcd(_) | Self::Zookeeper(_) | Self::Consul(_) | Self::Nats(_) => MEMBERS,
            Self::Postgres(_) => postgres::MEMBERS,
            Self::Kubernetes(_) => kubernetes::MEMBERS,
        }
    }

    /// etcd of this version.
    pub(crate) async fn etcd(version: Version) -> Result<Self> {
        Ok(Self::Etcd(EtcdCluster::start_with_fault_injection(version, &[]).await?))
    }

    /// ZooKeeper with additional settings.
    pub(crate) async fn zookeeper(settings: &[(&str, &str)]) -> Result<Self> {
        // If the disk was full while a snapshot was written, there is none, and the server would not start again.
        let default = ZookeeperSettings::default().property("zookeeper.snapshot.trust.empty", "true");
        let settings = settings.iter().fold(default, |all, (key, value)| all.set(*key, *value));
        Ok(Self::Zookeeper(
            ZookeeperEnsemble::start_with_fault_injection(Version::Zookeeper39, &settings).await?,
        ))
    }

    /// The addresses of the servers, as far as clients use them.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        match self {
            Self::Etcd(cluster) => cluster.endpoints(),
            Self::Zookeeper(ensemble) => ensemble.endpoints(),
            Self::Postgres(supervised) => supervised.cluster().endpoints(),
            Self::Kubernetes(servers) => servers.endpoints(),
            Self::Consul(cluster) => cluster.endpoints(),
            Self::Nats(cluster) => cluster.endpoints(),
        }
    }

    /// Detects leases that an etcd member revokes while another member leads. The other stores have no such fault.
    pub(crate) fn monitor_lease_expiries(&self) -> Option<LeaseExpiryMonitor> {
        match self {
            Self::Etcd(cluster) => Some(LeaseExpiryMonitor::start(cluster)),
            _ => None,
        }
    }

    /// The URL with which a candidate connects.
    pub(crate) async fn url(&self, endpoints: &[String]) -> Result<String> {
        let all = endpoints.join(",");
        Ok(match self {
            Self::Etcd(_) => format!("etcd://{all}/{PREFIX}"),
            Self::Zookeeper(_) => format!("zookeeper://{all}/{PREFIX}"),
            Self::Postgres(_) => postgres::url(&all),
            Self::Kubernetes(servers) => servers.url(endpoints).await?,
            Self::Consul(_) => format!("consul://{all}/{PREFIX}"),
            Self::Nats(_) => format!("nats://{all}/{PREFIX}"),
        })
    }

    /// The number of the member that leads; waits until there is one.
    pub(crate) async fn leader(&self) -> Result<usize> {
        Ok(match self {
            Self::Etcd(cluster) => cluster.leader().await?,
            Self::Zookeeper(ensemble) => ensemble.leader().await?,
            Self::Postgres(supervised) => supervised.primary(),
            Self::Kubernetes(_) => kubernetes::ETCD,
            Self::Consul(cluster) => cluster.leader().await?,
            Self::Nats(cluster) => cluster.leader(PREFIX).await?,
        })
    }

    /// Injects a fault into a member.
    pub(crate) async fn inject(&self, member: usize, kind: FaultKind) -> Result<ServerFault> {
        Ok(match self {
            Self::Etcd(cluster) => ServerFault::Plain(cluster.inject(member, kind).await?),
            Self::Zookeeper(ensemble) => ServerFault::Plain(ensemble.inject(member, kind).await?),
            Self::Postgres(supervised) => ServerFault::Supervised(supervised.inject(member, kind).await?),
            Self::Kubernetes(servers) => ServerFault::Plain(servers.inject(member, kind).await?),
            Self::Consul(cluster) => ServerFault::Plain(cluster.inject(member, kind).await?),
            Self::Nats(cluster) => ServerFault::Plain(cluster.inject(member, kind).await?),
        })
    }

    /// Ends all connections of clients in the server that leads. Only PostgreSQL can do that.
    pub(crate) async fn terminate_connections(&self) -> Result<()> {
        match self {
            Self::Postgres(supervised) => supervised.terminate_connections().await,
            _ => bail!("only PostgreSQL can end connections"),
        }
    }

    /// Stops replication for `delay`, and then promotes the replica. Only PostgreSQL has one.
    pub(crate) async fn fail_over_after(&self, delay: Duration) -> Result<()> {
        match self {
            Self::Postgres(supervised) => supervised.fail_over_after(delay).await,
            _ => bail!("only PostgreSQL fails over by a command"),
        }
    }

    /// Whether each server is ready, which needs a quorum or, on PostgreSQL, a replica that follows.
    pub(crate) async fn health(&self) -> Vec<Result<()>> {
        let mut all = Vec::new();
        for member in 0..self.members() {
            let health = match self {
                Self::Etcd(cluster) => cluster.member(member).admin().health().await.map_err(Into::into),
                Self::Zookeeper(ensemble) => {
                    ensemble.member(member).admin().health().await.map_err(Into::into)
                }
                Self::Postgres(supervised) => supervised.health(member).await,
                Self::Kubernetes(servers) => servers.health(member).await,
                Self::Consul(cluster) => cluster.member(member).admin().health().await.map_err(Into::into),
                Self::Nats(cluster) => cluster.member(member).admin().health().await.map_err(Into::into),
            };
            all.push(health);
        }
        all
    }

    /// The last lines of a server's log.
    pub(crate) async fn last_log_lines(&self, member: usize) -> String {
        match self {
            Self::Etcd(cluster) => cluster.member(member).last_log_lines().await,
            Self::Zookeeper(ensemble) => ensemble.member(member).last_log_lines().await,
            Self::Postgres(supervised) => supervised.cluster().member(member).last_log_lines().await,
            Self::Kubernetes(servers) => servers.last_log_lines(member).await,
            Self::Consul(cluster) => cluster.member(member).last_log_lines().await,
            Self::Nats(cluster) => cluster.member(member).last_log_lines().await,
        }
    }

    /// The entries of an election. On Kubernetes its holder, if there is one.
    pub(crate) async fn entries(&self, election: &str) -> Result<Vec<String>> {
        let leader = self.leader().await?;
        Ok(match self {
            Self::Etcd(cluster) => {
                let found = cluster.member(leader).admin().list(&format!("{PREFIX}/{election}/")).await?;
                found.into_iter().map(|entry| entry.key).collect()
            }
            Self::Zookeeper(ensemble) => {
                ensemble.member(leader).admin().children(&format!("/{PREFIX}/{election}")).await?
            }
            Self::Postgres(supervised) => supervised.slots(Some(election)).await?,
            Self::Kubernetes(servers) => servers.holders(Some(election)).await?,
            Self::Consul(_) => cas::slots(&self.consul_store().await?, Some(election)).await?,
            Self::Nats(_) => cas::slots(&self.nats_store().await?, Some(election)).await?,
        })
    }

    /// How long a session of this program may stay in the store when a fault interrupted one of its requests.
    pub(crate) fn admin_session_timeout(&self) -> Duration {
        match self {
            Self::Zookeeper(_) => Duration::from_secs(60),
            _ => Duration::ZERO,
        }
    }

    /// What candidates have left behind: entries, withdrawal marks, leases and sessions. In stores that compare and swap the records of
    /// sessions that have ended stay for a while, and those of killed candidates that were in no election; on Kubernetes Leases stay, without
    /// a holder.
    pub(crate) async fn remaining_state(&self) -> Result<Vec<String>> {
        let leader = self.leader().await?;
        match self {
            Self::Etcd(cluster) => {
                let admin = cluster.member(leader).admin();
                let keys = admin.list(PREFIX).await?.into_iter().map(|entry| format!("key {}", entry.key));
                let leases = admin.leases().await?.into_iter().map(|lease| format!("lease {lease:x}"));
                Ok(keys.chain(leases).collect())
            }
            Self::Zookeeper(ensemble) => {
                let admin = ensemble.member(leader).admin();
                let tree = admin.tree(&format!("/{PREFIX}")).await?;
                // Children of an election.
                let children = tree.into_iter().filter(|path| path.matches('/').count() > 2);
                let sessions = admin.sessions().await?.into_iter();
                Ok(children.chain(sessions.map(|session| format!("session {session:x}"))).collect())
            }
            Self::Postgres(supervised) => supervised.slots(None).await,
            Self::Kubernetes(servers) => servers.holders(None).await,
            Self::Consul(_) => cas::slots(&self.consul_store().await?, None).await,
            Self::Nats(_) => cas::slots(&self.nats_store().await?, None).await,
        }
    }

    /// The records of the candidates.
    async fn consul_store(&self) -> Result<ConsulStore> {
        let url: StoreUrl = self.url(&self.endpoints()).await?.parse()?;
        Ok(ConsulStore::new(ConsulConfig::from_url(&url)?)?)
    }

    async fn nats_store(&self) -> Result<NatsStore> {
        let url: StoreUrl = self.url(&self.endpoints()).await?.parse()?;
        Ok(NatsStore::new(NatsConfig::from_url(&url)?)?)
    }
}

/// A fault that is in force until it is healed or dropped.
#[derive(Debug)]
pub(crate) enum ServerFault {
    Plain(Fault),
    Supervised(DisruptedMember),
}

impl ServerFault {
    /// Undoes the fault, and waits until the server is ready again.
    pub(crate) async fn heal(self) -> Result<()> {
        match self {
            Self::Plain(fault) => Ok(fault.heal().await?),
            Self::Supervised(member) => member.heal().await,
        }
    }
}
