//! Two API servers over one etcd.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{
    cluster::Cluster,
    container::Container,
    error::ContainerError,
    etcd::{EtcdAdmin, EtcdServer, client_flags},
    fault::Fault,
    fault_kind::{FaultKind, inject},
    kubernetes::{
        admin::KubernetesAdmin,
        settings::{KubernetesSettings, ServiceAccountKey},
    },
    network::Network,
    server::Server,
    spec::ContainerSpec,
    tls::TlsFiles,
    version::Version,
};

/// How many API servers there are.
const MEMBERS: usize = 2;
const ETCD_PORT: u16 = 2379;

/// Two API servers of the test's own over one etcd. Dropping it removes them.
///
/// They have one authority, and accept the same tokens. The servers reach their etcd by a private network.
#[derive(Debug)]
pub struct KubernetesCluster {
    // Fields are dropped in this order: a network can be removed only after its containers.
    etcd: EtcdServer,
    servers: Cluster<KubernetesAdmin>,
    /// The number of the next unused address of the network.
    next_address: AtomicUsize,
}

impl KubernetesCluster {
    /// Starts an etcd and two API servers, and waits until all are ready.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the servers are not ready within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &KubernetesSettings::default()).await
    }

    /// Starts servers with these settings. The cluster makes its own certificates.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &KubernetesSettings) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, |spec| spec).await
    }

    /// Starts servers, and an etcd, into which faults can be injected.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_fault_injection(
        version: Version,
        settings: &KubernetesSettings,
    ) -> Result<Self, ContainerError> {
        Self::start_members(version, settings, ContainerSpec::with_fault_injection).await
    }

    async fn start_members(
        version: Version,
        settings: &KubernetesSettings,
        adapt: fn(ContainerSpec) -> ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let peers = Network::create().await?;
        let addresses = (0..MEMBERS).map(|index| peers.ip(index)).chain(["127.0.0.1".to_owned()]);
        let (files, key) = credentials(addresses.collect())
            .map_err(|error| ContainerError::Unexpected(format!("no certificate can be made: {error}")))?;
        let etcd_ip = peers.ip(MEMBERS);
        let settings = KubernetesSettings {
            service_account_key: Some(key),
            etcd: Some(format!("http://{etcd_ip}:{ETCD_PORT}")),
            ..settings.clone()
        };
        let spec = adapt(settings.tls(files).spec(version));

        let etcd_spec = adapt(ContainerSpec::new(version, ETCD_PORT, "etcd", client_flags("single")));
        let container = Container::run(&etcd_spec).await?;
        container.connect(&peers, &etcd_ip).await?;
        let etcd = Server::<EtcdAdmin>::new(etcd_spec, container);
        etcd.wait_until_ready().await?;
        let servers = Cluster::launch(peers, vec![spec; MEMBERS]).await?;
        Ok(Self { etcd, servers, next_address: AtomicUsize::new(MEMBERS + 1) })
    }

    /// The API servers.
    pub fn servers(&self) -> &Cluster<KubernetesAdmin> {
        &self.servers
    }

    /// The API server with this number; the first is 0.
    ///
    /// # Panics
    /// When there is none.
    pub fn server(&self, index: usize) -> &Server<KubernetesAdmin> {
        self.servers.member(index)
    }

    /// The etcd.
    pub fn etcd(&self) -> &EtcdServer {
        &self.etcd
    }

    /// Disconnects an API server from the etcd, in both directions, while clients still reach it.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn isolate_from_etcd(&self, index: usize) -> Result<Fault, ContainerError> {
        self.servers.isolate_from_peers(index).await
    }

    /// Connects another container to the network of the servers. Returns the network and the container's address.
    pub(super) async fn join(&self, container: &Container) -> Result<(Arc<Network>, String), ContainerError> {
        let peers = self.servers.peers();
        let ip = peers.ip(self.next_address.fetch_add(1, Ordering::Relaxed));
        container.connect(peers, &ip).await?;
        Ok((Arc::clone(peers), ip))
    }

    /// Injects a fault into an API server of a cluster that was started with fault injection. Its peer is the etcd.
    ///
    /// # Errors
    /// When Docker fails, or the cluster was started without fault injection and the fault needs it.
    pub async fn inject(&self, index: usize, kind: FaultKind) -> Result<Fault, ContainerError> {
        self.servers.inject(index, kind).await
    }

    /// Injects a fault into the etcd of a cluster that was started with fault injection. Its peers are the API servers.
    ///
    /// # Errors
    /// As for [`inject`](Self::inject).
    pub async fn inject_into_etcd(&self, kind: FaultKind) -> Result<Fault, ContainerError> {
        let undo = inject(self.etcd.container(), self.servers.peers(), kind).await?;
        Ok(self.etcd.fault(undo))
    }
}

/// A certificate for servers at these addresses, with its authority, and a key for tokens.
fn credentials(addresses: Vec<String>) -> Result<(TlsFiles, ServiceAccountKey), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "tenure-test");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(addresses)?.signed_by(&key, &authority)?;
    let files = TlsFiles { ca: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() };
    let key = KeyPair::generate()?;
    Ok((files, ServiceAccountKey { private: key.serialize_pem(), public: key.public_key_pem() }))
}
