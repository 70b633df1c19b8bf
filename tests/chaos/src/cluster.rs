//! Three servers of either store, with one interface.

use std::time::Duration;

use anyhow::Result;
use tenure_containers::{
    EtcdCluster, Fault, FaultKind, LeaseExpiryMonitor, Version, ZookeeperEnsemble, ZookeeperSettings,
};

use crate::options::StoreKind;

/// The prefix below which candidates keep their entries.
pub(crate) const PREFIX: &str = "chaos";

pub(crate) const MEMBERS: usize = 3;

/// Three servers.
#[derive(Debug)]
pub(crate) enum Cluster {
    Etcd(EtcdCluster),
    Zookeeper(ZookeeperEnsemble),
}

impl Cluster {
    pub(crate) async fn start(store: StoreKind) -> Result<Self> {
        Ok(match store {
            StoreKind::Etcd => Self::etcd(Version::Etcd35).await?,
            StoreKind::Zookeeper => Self::zookeeper(&[]).await?,
        })
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

    /// The addresses of the servers.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        match self {
            Self::Etcd(cluster) => cluster.endpoints(),
            Self::Zookeeper(ensemble) => ensemble.endpoints(),
        }
    }

    /// Detects leases that an etcd member revokes while another member leads. ZooKeeper has no such fault.
    pub(crate) fn monitor_lease_expiries(&self) -> Option<LeaseExpiryMonitor> {
        match self {
            Self::Etcd(cluster) => Some(LeaseExpiryMonitor::start(cluster)),
            Self::Zookeeper(_) => None,
        }
    }

    /// The URL with which a candidate connects.
    pub(crate) fn url(&self, endpoints: &[String]) -> String {
        let scheme = match self {
            Self::Etcd(_) => "etcd",
            Self::Zookeeper(_) => "zookeeper",
        };
        format!("{scheme}://{}/{PREFIX}", endpoints.join(","))
    }

    /// The number of the member that leads; waits until there is one.
    pub(crate) async fn leader(&self) -> Result<usize> {
        Ok(match self {
            Self::Etcd(cluster) => cluster.leader().await?,
            Self::Zookeeper(ensemble) => ensemble.leader().await?,
        })
    }

    /// Injects a fault into a member.
    pub(crate) async fn inject(&self, member: usize, kind: FaultKind) -> Result<Fault> {
        Ok(match self {
            Self::Etcd(cluster) => cluster.inject(member, kind).await?,
            Self::Zookeeper(ensemble) => ensemble.inject(member, kind).await?,
        })
    }

    /// Whether each server is ready, which needs a quorum.
    pub(crate) async fn health(&self) -> Vec<Result<()>> {
        let mut all = Vec::new();
        for member in 0..MEMBERS {
            let health = match self {
                Self::Etcd(cluster) => cluster.member(member).admin().health().await,
                Self::Zookeeper(ensemble) => ensemble.member(member).admin().health().await,
            };
            all.push(health.map_err(Into::into));
        }
        all
    }

    /// The entries of an election.
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
        })
    }

    /// How long a session of this program may stay in the store when a fault interrupted one of its requests.
    pub(crate) fn admin_session_timeout(&self) -> Duration {
        match self {
            Self::Etcd(_) => Duration::ZERO,
            Self::Zookeeper(_) => Duration::from_secs(60),
        }
    }

    /// What candidates have left behind: entries, withdrawal marks, leases and sessions.
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
        }
    }
}
