//! Three etcd servers that form a cluster.

use std::sync::Arc;

use futures::future::try_join_all;

use super::{
    ContainerError, EtcdServer, Fault, Version,
    container::{Container, Recipe},
    etcd::{CLIENT_PORT, client_flags},
    fault::Remedy,
    harm::{Harm, breakable, inflict},
    health::eventually,
    network::Network,
};

const MEMBERS: usize = 3;
const PEER_PORT: u16 = 2380;

/// Three etcd servers of a test's own. Dropping it removes them.
///
/// The members talk among themselves on a private network, and with clients on
/// loopback: a member can be [cut off](Self::cut_off) from its peers while its clients still reach it.
#[derive(Debug)]
pub struct EtcdCluster {
    // Dropped in this order: a network is removed after its containers.
    members: Vec<EtcdServer>,
    peers: Arc<Network>,
}

impl EtcdCluster {
    /// Starts three members with an empty store, and waits until all of them serve.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the
    /// cluster does not serve within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &[]).await
    }

    /// The same with more flags on each member's command line:
    /// `--election-timeout=500`, say.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, flags: &[&str]) -> Result<Self, ContainerError> {
        Self::launch(version, flags, |recipe| recipe).await
    }

    /// The same with members that can be [harmed](Self::harm): each has a disk of its own, and may
    /// mount it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn breakable(version: Version, flags: &[&str]) -> Result<Self, ContainerError> {
        Self::launch(version, flags, breakable).await
    }

    async fn launch(
        version: Version,
        flags: &[&str],
        set_up: fn(Recipe) -> Recipe,
    ) -> Result<Self, ContainerError> {
        let peers = Arc::new(Network::create().await?);
        let peer_url = |index| format!("http://{}:{PEER_PORT}", peers.ip(index));
        let everyone: Vec<_> = (0..MEMBERS).map(|index| format!("m{index}={}", peer_url(index))).collect();
        let everyone = everyone.join(",");
        let members = (0..MEMBERS).map(|index| {
            let mut arguments = client_flags(&format!("m{index}"));
            arguments.push(format!("--listen-peer-urls=http://0.0.0.0:{PEER_PORT}"));
            arguments.push(format!("--initial-advertise-peer-urls={}", peer_url(index)));
            arguments.push(format!("--initial-cluster={everyone}"));
            arguments.push(format!("--initial-cluster-token={}", peers.name()));
            arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
            let recipe = set_up(Recipe::new(version, CLIENT_PORT, "etcd", arguments));
            let ip = peers.ip(index);
            let peers = &peers;
            async move {
                let container = Container::run(&recipe).await?;
                container.join(peers, &ip).await?;
                Ok::<_, ContainerError>(EtcdServer::new(recipe, container))
            }
        });
        let cluster = Self { members: try_join_all(members).await?, peers };
        for member in &cluster.members {
            member.await_health().await?;
        }
        Ok(cluster)
    }

    /// The member with this number, from 0 to 2.
    ///
    /// # Panics
    /// For any other number.
    pub fn member(&self, index: usize) -> &EtcdServer {
        &self.members[index]
    }

    /// All members' endpoints, in order: `127.0.0.1:port`.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(EtcdServer::endpoint).collect()
    }

    /// The number of the member that leads by the word of a majority; waits until there is one.
    ///
    /// A member that was cut off may go on thinking that it leads; alone it is not
    /// believed. Its peers notice only after an election timeout: see
    /// [`successor_of`](Self::successor_of).
    ///
    /// # Errors
    /// When a majority does not agree on a leader within a minute.
    pub async fn leader(&self) -> Result<usize, ContainerError> {
        eventually("a majority that agrees on its leader", || self.agreed_leader()).await
    }

    /// The number of the member that leads in place of `former`; waits until there is one.
    ///
    /// # Errors
    /// When a majority does not agree on another leader within a minute.
    pub async fn successor_of(&self, former: usize) -> Result<usize, ContainerError> {
        eventually("a majority that agrees on another leader", || async {
            match self.agreed_leader().await? {
                leader if leader == former => {
                    Err(ContainerError::Malformed(format!("member {former} still leads")))
                }
                leader => Ok(leader),
            }
        })
        .await
    }

    async fn agreed_leader(&self) -> Result<usize, ContainerError> {
        let mut statuses = Vec::new();
        for member in &self.members {
            statuses.push(member.admin().status().await.ok());
        }
        let votes = |id| statuses.iter().flatten().filter(|status| status.leader == id).count();
        let leads = |id| id != 0 && votes(id) > MEMBERS / 2;
        statuses
            .iter()
            .position(|status| status.as_ref().is_some_and(|status| leads(status.member)))
            .ok_or_else(|| ContainerError::Malformed(format!("{statuses:?}")))
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

    /// Does `harm` to a member of a [breakable](Self::breakable) cluster.
    ///
    /// # Errors
    /// When docker fails, or the member cannot be harmed in this way.
    pub async fn harm(&self, index: usize, harm: Harm) -> Result<Fault, ContainerError> {
        let member = self.member(index);
        Ok(member.fault(inflict(member.container(), &self.peers, harm).await?))
    }
}
