//! Three ZooKeeper servers that form an ensemble.

use std::sync::Arc;

use futures::future::try_join_all;

use super::{
    super::{
        ContainerError, Fault, Harm, Version,
        container::{Container, Recipe},
        fault::Remedy,
        harm::{BEGIN_ANEW, breakable, inflict},
        health::eventually,
        network::Network,
    },
    ZookeeperServer, ZookeeperSettings,
};

const MEMBERS: usize = 3;

/// Three ZooKeeper servers of a test's own. Dropping it removes them.
///
/// The members talk among themselves on a private network, and with clients on
/// loopback: a member can be [cut off](Self::cut_off) from its peers while its clients still reach it.
#[derive(Debug)]
pub struct ZookeeperEnsemble {
    // Dropped in this order: a network is removed after its containers.
    members: Vec<ZookeeperServer>,
    peers: Arc<Network>,
}

impl ZookeeperEnsemble {
    /// Starts three members with an empty store, and waits until all of them serve.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the
    /// ensemble does not serve within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &ZookeeperSettings::default()).await
    }

    /// The same with settings of its own for each member.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &ZookeeperSettings) -> Result<Self, ContainerError> {
        Self::launch(version, settings, |recipe| recipe).await
    }

    /// The same with members that can be [harmed](Self::harm): each has a disk of its own, and may
    /// mount it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn breakable(version: Version, settings: &ZookeeperSettings) -> Result<Self, ContainerError> {
        Self::launch(version, settings, breakable).await
    }

    async fn launch(
        version: Version,
        settings: &ZookeeperSettings,
        set_up: fn(Recipe) -> Recipe,
    ) -> Result<Self, ContainerError> {
        let peers = Arc::new(Network::create().await?);
        let mut shared = settings
            .clone()
            .or("initLimit", "20")
            .or("syncLimit", "4")
            // The address on the private network comes after the start.
            .set("quorumListenOnAllIPs", "true");
        for index in 0..MEMBERS {
            shared = shared.set(format!("server.{index}"), format!("{}:2888:3888", peers.ip(index)));
        }
        let members = (0..MEMBERS).map(|index| {
            let settings = shared.clone().file("/data/zookeeper/myid", index.to_string());
            let (recipe, ip, peers) = (set_up(settings.recipe(version)), peers.ip(index), &peers);
            async move {
                let container = Container::run(&recipe).await?;
                container.join(peers, &ip).await?;
                Ok::<_, ContainerError>(ZookeeperServer::new(recipe, container))
            }
        });
        let ensemble = Self { members: try_join_all(members).await?, peers };
        for member in &ensemble.members {
            member.await_health().await?;
        }
        Ok(ensemble)
    }

    /// The member with this number, from 0 to 2.
    ///
    /// # Panics
    /// For any other number.
    pub fn member(&self, index: usize) -> &ZookeeperServer {
        &self.members[index]
    }

    /// All members' endpoints, in order: `127.0.0.1:port`.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(ZookeeperServer::endpoint).collect()
    }

    /// The number of the member that leads; waits until there is one that serves.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub async fn leader(&self) -> Result<usize, ContainerError> {
        eventually("a member that leads", || self.leader_but(None)).await
    }

    /// The number of the member that leads in place of `former`; waits until there is one.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub async fn successor_of(&self, former: usize) -> Result<usize, ContainerError> {
        eventually("another member that leads", || self.leader_but(Some(former))).await
    }

    async fn leader_but(&self, former: Option<usize>) -> Result<usize, ContainerError> {
        for (index, member) in self.members.iter().enumerate() {
            if Some(index) == former {
                continue;
            }
            let said = member.admin().four_letters("srvr").await.unwrap_or_default();
            if said.lines().any(|line| line == "Mode: leader") && member.admin().health().await.is_ok() {
                return Ok(index);
            }
        }
        Err(ContainerError::Malformed("no member leads".to_owned()))
    }

    /// Cuts a member off from its peers, both ways, while clients still reach it.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn cut_off(&self, index: usize) -> Result<Fault, ContainerError> {
        let member = self.member(index);
        member.container().part(&self.peers).await?;
        let (network, ip) = (self.peers.clone(), self.peers.ip(index));
        Ok(member.fault(Remedy::Join { network, ip }))
    }

    /// Takes a member of a [breakable](Self::breakable) ensemble its data, as an operator would whose server shows what
    /// the others do not, and waits until it has them anew from the leader.
    ///
    /// # Errors
    /// When docker fails, or the member does not serve within a minute.
    pub async fn renew(&self, index: usize) -> Result<(), ContainerError> {
        self.member(index).container().shell(BEGIN_ANEW).await?;
        self.harm(index, Harm::Kill).await?.heal().await
    }

    /// Does `harm` to a member of a [breakable](Self::breakable) ensemble.
    ///
    /// # Errors
    /// When docker fails, or the member cannot be harmed in this way.
    pub async fn harm(&self, index: usize, harm: Harm) -> Result<Fault, ContainerError> {
        let member = self.member(index);
        Ok(member.fault(inflict(member.container(), &self.peers, harm).await?))
    }
}
