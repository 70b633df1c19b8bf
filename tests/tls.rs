//! TLS to etcd and to ZooKeeper, in one process.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tenure::{Config, Connection, Elector};
use tenure_testkit::{
    containers::{EtcdServer, TlsFiles, Version, ZookeeperServer, ZookeeperSettings},
    suite::{until, within},
};

/// An authority of the test's own, and who it vouches for.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key.
    fn vouches_for(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn server(&self, name: &str) -> TlsFiles {
        let (certificate, key) = self.vouches_for(name);
        TlsFiles { ca: self.pem(), certificate, key }
    }
}

/// A client's files, and the settings of a URL that name them.
struct Client(tempfile::TempDir);

impl Client {
    fn new(trusted: &Authority, vouched_by: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = vouched_by.vouches_for("client");
        for (name, text) in [("ca", trusted.pem()), ("cert", certificate), ("key", key)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self) -> String {
        let [ca, cert, key] = ["ca", "cert", "key"].map(|name| self.path(name).display().to_string());
        format!("ca={ca}&cert={cert}&key={key}")
    }
}

async fn connect(scheme: &str, endpoint: &str, settings: &str) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(5));
    tenure::connect_with(&format!("{scheme}://{endpoint}/acme?{settings}"), config).await.unwrap()
}

async fn servers(authority: &Authority, name: &str) -> [(&'static str, String, Box<dyn std::any::Any>); 2] {
    let etcd = EtcdServer::start_tls(Version::Etcd35, &authority.server(name)).await;
    let etcd = etcd.unwrap_or_else(|error| panic!("{error}"));
    let settings = ZookeeperSettings::default().tls(authority.server(name));
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await;
    let zookeeper = zookeeper.unwrap_or_else(|error| panic!("{error}"));
    [
        ("etcd", etcd.secure_endpoint().unwrap(), Box::new(etcd)),
        ("zookeeper", zookeeper.secure_endpoint().unwrap(), Box::new(zookeeper)),
    ]
}

/// Hazard Z17: both clients in one process choose the same crypto provider, and none panics; each shows
/// its certificate, leads, keeps its leadership, and hands it over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_speak_tls_in_one_process() {
    let authority = Authority::new();
    let client = Client::new(&authority, &authority);
    let servers = servers(&authority, "127.0.0.1").await;
    let mut terms = Vec::new();
    for (scheme, endpoint, _) in &servers {
        let elector = connect(scheme, endpoint, &client.settings()).await;
        let leadership =
            within("leading", elector.campaign("e")).await.unwrap_or_else(|e| panic!("{scheme}: {e}"));
        terms.push((elector, leadership));
    }
    for (elector, leadership) in terms {
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
        leadership.resign().await.unwrap();
        let once = within("leading once more", elector.campaign("e")).await.unwrap();
        once.resign().await.unwrap();
        elector.close().await;
    }
}

/// A server whose certificate names another host, or that nobody trusted vouches for, is never spoken to; nor does a
/// server listen to a client without a certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_vouched_for_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let impostors = servers(&authority, "impostor.example").await;
    let honest = servers(&authority, "127.0.0.1").await;
    let ours = Client::new(&authority, &authority);
    let distrustful = Client::new(&stranger, &authority);
    let unknown = Client::new(&authority, &stranger);
    let ca_only = format!("ca={}", ours.path("ca").display());
    for (servers, settings) in [
        (&impostors, ours.settings()),
        (&honest, distrustful.settings()),
        (&honest, unknown.settings()),
        (&honest, ca_only),
        (&honest, String::new()),
    ] {
        for (scheme, endpoint, _) in servers {
            let elector = connect(scheme, endpoint, &settings).await;
            let campaign = {
                let elector = Arc::clone(&elector);
                tokio::spawn(async move { elector.campaign("e").await })
            };
            until("a request failed", async || elector.status().connection == Connection::Retrying).await;
            assert!(!campaign.is_finished(), "{scheme} {settings}");
            campaign.abort();
            elector.close().await;
        }
    }
}

/// What cannot work is said at once, and says which file.
#[tokio::test]
async fn files_that_are_none_are_refused() {
    let authority = Authority::new();
    let client = Client::new(&authority, &authority);
    let [ca, cert] = ["ca", "cert"].map(|name| client.path(name).display().to_string());
    for scheme in ["etcd", "zookeeper"] {
        for (settings, reason) in [
            ("ca=/nowhere/ca.pem".to_owned(), "ca=/nowhere/ca.pem cannot be read"),
            (format!("cert={cert}"), "it has a cert or a key but no ca"),
            (format!("ca={ca}&cert={cert}"), "it has one of cert and key; give both"),
            (format!("ca={ca}&cert={cert}&key={cert}"), "has no private key in PEM"),
        ] {
            let error = tenure::connect(&format!("{scheme}://h?{settings}")).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{scheme}: {error}");
        }
    }
}
