//! Either store's three servers, in the same words.

use std::time::Duration;

use anyhow::Result;
use tenure_containers::{
    EtcdCluster, ExpiryWatch, Fault, Harm, Version, ZookeeperEnsemble, ZookeeperSettings,
};

use crate::options::StoreKind;

/// Below this name are the candidates' entries.
pub(crate) const ROOT: &str = "chaos";

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

    /// One of the versions of etcd.
    pub(crate) async fn etcd(version: Version) -> Result<Self> {
        Ok(Self::Etcd(EtcdCluster::breakable(version, &[]).await?))
    }

    /// ZooKeeper with settings of its own.
    pub(crate) async fn zookeeper(settings: &[(&str, &str)]) -> Result<Self> {
        // A disk that was full as a snapshot was to be written leaves none, and the server does not start again.
        let default = ZookeeperSettings::default().property("zookeeper.snapshot.trust.empty", "true");
        let settings = settings.iter().fold(default, |all, (key, value)| all.set(*key, *value));
        Ok(Self::Zookeeper(ZookeeperEnsemble::breakable(Version::Zookeeper39, &settings).await?))
    }

    /// Where the servers listen.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        match self {
            Self::Etcd(cluster) => cluster.endpoints(),
            Self::Zookeeper(ensemble) => ensemble.endpoints(),
        }
    }

    /// Looks for leases that an etcd server revoked though another led.
    pub(crate) fn watch_expiries(&self) -> Option<ExpiryWatch> {
        match self {
            Self::Etcd(cluster) => Some(ExpiryWatch::start(cluster)),
            Self::Zookeeper(_) => None,
        }
    }

    /// What a candidate is to connect to.
    pub(crate) fn url(&self, endpoints: &[String]) -> String {
        let scheme = match self {
            Self::Etcd(_) => "etcd",
            Self::Zookeeper(_) => "zookeeper",
        };
        format!("{scheme}://{}/{ROOT}", endpoints.join(","))
    }

    /// The member that leads the others; waits until there is one.
    pub(crate) async fn leader(&self) -> Result<usize> {
        Ok(match self {
            Self::Etcd(cluster) => cluster.leader().await?,
            Self::Zookeeper(ensemble) => ensemble.leader().await?,
        })
    }

    pub(crate) async fn harm(&self, member: usize, harm: Harm) -> Result<Fault> {
        Ok(match self {
            Self::Etcd(cluster) => cluster.harm(member, harm).await?,
            Self::Zookeeper(ensemble) => ensemble.harm(member, harm).await?,
        })
    }

    /// Whether each server serves, with a quorum behind it.
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

    /// The entries in an election.
    pub(crate) async fn entries(&self, election: &str) -> Result<Vec<String>> {
        let leader = self.leader().await?;
        Ok(match self {
            Self::Etcd(cluster) => {
                let found = cluster.member(leader).admin().list(&format!("{ROOT}/{election}/")).await?;
                found.into_iter().map(|entry| entry.key).collect()
            }
            Self::Zookeeper(ensemble) => {
                ensemble.member(leader).admin().children(&format!("/{ROOT}/{election}")).await?
            }
        })
    }

    /// How long this rig's own questions may leave a session in the store, when a fault came between.
    pub(crate) fn own_sessions(&self) -> Duration {
        match self {
            Self::Etcd(_) => Duration::ZERO,
            Self::Zookeeper(_) => Duration::from_secs(60),
        }
    }

    /// Whatever candidates have left behind: entries, marks, leases or sessions.
    pub(crate) async fn leftovers(&self) -> Result<Vec<String>> {
        let leader = self.leader().await?;
        match self {
            Self::Etcd(cluster) => {
                let admin = cluster.member(leader).admin();
                let keys = admin.list(ROOT).await?.into_iter().map(|entry| format!("key {}", entry.key));
                let leases = admin.leases().await?.into_iter().map(|lease| format!("lease {lease:x}"));
                Ok(keys.chain(leases).collect())
            }
            Self::Zookeeper(ensemble) => {
                let admin = ensemble.member(leader).admin();
                let tree = admin.tree(&format!("/{ROOT}")).await?;
                // Below an election, or below the sessions.
                let deep = tree.into_iter().filter(|path| path.matches('/').count() > 2);
                let sessions = admin.sessions().await?.into_iter();
                Ok(deep.chain(sessions.map(|session| format!("session {session:x}"))).collect())
            }
        }
    }
}
