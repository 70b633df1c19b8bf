//! Servers that form a cluster: what the clusters of all stores have in common.

use std::sync::Arc;

use futures::future::try_join_all;

use crate::{
    container::Container,
    error::ContainerError,
    fault::{Fault, Undo},
    fault_kind::{FaultKind, inject},
    network::Network,
    server::{Server, StoreAdmin},
    spec::ContainerSpec,
};

/// How many servers an etcd cluster and a ZooKeeper ensemble have.
pub(crate) const MEMBERS: usize = 3;

/// Servers of the test's own that form a cluster: three, or two of PostgreSQL. Dropping it removes them.
///
/// The members talk to each other on a private network and to clients on loopback: a member can be
/// [isolated from its peers](Self::isolate_from_peers) while clients still reach it.
#[derive(Debug)]
pub struct Cluster<A> {
    // Fields are dropped in this order: a network can be removed only after its containers.
    members: Vec<Server<A>>,
    /// Which of the network's addresses each member has.
    addresses: Vec<usize>,
    peers: Arc<Network>,
}

impl<A: StoreAdmin> Cluster<A> {
    /// Starts one member for each spec, and waits until all of them are ready.
    pub(crate) async fn launch(
        peers: Network,
        specs: impl IntoIterator<Item = ContainerSpec>,
    ) -> Result<Self, ContainerError> {
        let peers = Arc::new(peers);
        let members = specs.into_iter().enumerate().map(|(index, spec)| {
            let (ip, peers) = (peers.ip(index), &peers);
            async move {
                let container = Container::run(&spec).await?;
                container.connect(peers, &ip).await?;
                Ok::<_, ContainerError>(Server::new(spec, container))
            }
        });
        let members = try_join_all(members).await?;
        let cluster = Self { addresses: (0..members.len()).collect(), members, peers };
        for member in &cluster.members {
            member.wait_until_ready().await?;
        }
        Ok(cluster)
    }

    pub(crate) fn peers(&self) -> &Arc<Network> {
        &self.peers
    }

    /// The address of a member on the network of the members, which this machine can reach.
    ///
    /// # Panics
    /// When there is no member with this number.
    pub fn ip(&self, index: usize) -> String {
        self.peers.ip(self.addresses[index])
    }

    /// The number of the next unused address of the network.
    pub(crate) fn next_address(&self) -> usize {
        self.addresses.iter().max().map_or(0, |last| last + 1)
    }

    /// Starts a server at the next unused address, waits until it is ready, and puts it in the place of a member, which it
    /// returns.
    pub(crate) async fn replace_server(
        &mut self,
        index: usize,
        spec: ContainerSpec,
    ) -> Result<Server<A>, ContainerError> {
        let address = self.next_address();
        let container = Container::run(&spec).await?;
        container.connect(&self.peers, &self.peers.ip(address)).await?;
        let server = Server::new(spec, container);
        server.wait_until_ready().await?;
        self.addresses[index] = address;
        Ok(std::mem::replace(&mut self.members[index], server))
    }

    pub(crate) fn members(&self) -> &[Server<A>] {
        &self.members
    }

    /// The member with this number; the first is 0.
    ///
    /// # Panics
    /// When there is none.
    pub fn member(&self, index: usize) -> &Server<A> {
        &self.members[index]
    }

    /// The endpoints of all members, in order: `127.0.0.1:port`.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Server::endpoint).collect()
    }

    /// Disconnects a member from its peers, in both directions, while clients still reach it.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn isolate_from_peers(&self, index: usize) -> Result<Fault, ContainerError> {
        let member = self.member(index);
        member.container().disconnect(&self.peers).await?;
        let (network, ip) = (self.peers.clone(), self.ip(index));
        Ok(member.fault(Undo::ConnectNetwork { network, ip }))
    }

    /// Injects a fault into a member of a cluster that was started with fault injection.
    ///
    /// # Errors
    /// When Docker fails, or the cluster was started without fault injection and the fault needs it.
    pub async fn inject(&self, index: usize, kind: FaultKind) -> Result<Fault, ContainerError> {
        let member = self.member(index);
        Ok(member.fault(inject(member.container(), &self.peers, kind).await?))
    }
}
