//! TLS to etcd and to ZooKeeper, in one process.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tenure::{Config, Connection, Elector, Error, Leadership};
use tenure_containers::{EtcdServer, Permission, TlsFiles, Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};

/// An authority of the test's own, and who it vouches for.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // ZooKeeper keeps one authority of each name.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:016x}", fastrand::u64(..)));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key.
    fn vouches_for(&self, name: &str) -> (String, String) {
        self.vouches_until(name, None)
    }

    fn vouches_until(&self, name: &str, expires: Option<SystemTime>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(expires) = expires {
            params.not_after = date_time_ymd(1970, 1, 1) + expires.duration_since(UNIX_EPOCH).unwrap();
        }
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
        let client = Self(tempfile::tempdir().unwrap());
        client.write(&trusted.pem(), &vouched_by.vouches_for("client"));
        client
    }

    fn write(&self, ca: &str, (certificate, key): &(String, String)) {
        for (name, text) in [("ca", ca), ("cert", certificate), ("key", key)] {
            fs::write(self.path(name), text).unwrap();
        }
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
/// server listen to a client without a certificate. The status says what is wrong, and the store is asked again: the
/// files may be the next to change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_vouched_for_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let impostors = servers(&authority, "impostor.example").await;
    let honest = servers(&authority, "127.0.0.1").await;
    let ours = Client::new(&authority, &authority);
    let distrustful = Client::new(&stranger, &authority);
    let unknown = Client::new(&authority, &stranger);
    let ca_only = format!("ca={}", ours.path("ca").display());
    for (servers, settings, on_etcd) in [
        (&impostors, ours.settings(), "certificate not valid for name \"127.0.0.1\""),
        (&honest, distrustful.settings(), "invalid peer certificate: UnknownIssuer"),
        (&honest, unknown.settings(), "the member refused our certificate"),
        (&honest, ca_only, "the member refused our certificate"),
        (&honest, String::new(), ""),
    ] {
        for (scheme, endpoint, _) in servers {
            let elector = connect(scheme, endpoint, &settings).await;
            let campaign = {
                let elector = Arc::clone(&elector);
                tokio::spawn(async move { elector.campaign("e").await })
            };
            // ZooKeeper's client library does not say why it has no connection.
            let expected = if *scheme == "etcd" { on_etcd } else { "" };
            until(&format!("{scheme} {settings}: {expected}"), async || {
                let status = elector.status();
                let said = status.last_error.unwrap_or_default();
                status.connection == Connection::Retrying && said.contains(expected)
            })
            .await;
            assert!(!campaign.is_finished(), "{scheme} {settings}");
            campaign.abort();
            elector.close().await;
        }
    }
    // It was none of the servers' fault.
    for (scheme, endpoint, _) in &honest {
        let elector = connect(scheme, endpoint, &ours.settings()).await;
        within("leading", elector.campaign("e")).await.unwrap().resign().await.unwrap();
        elector.close().await;
    }
}

/// What cannot work is said at once, and says which file.
#[tokio::test]
async fn files_that_are_none_are_refused() {
    let authority = Authority::new();
    let client = Client::new(&authority, &authority);
    let [ca, cert] = ["ca", "cert"].map(|name| client.path(name).display().to_string());
    let stranger = Client::new(&authority, &authority);
    let other = stranger.path("key").display().to_string();
    for scheme in ["etcd", "zookeeper"] {
        for (settings, reason) in [
            ("ca=/nowhere/ca.pem".to_owned(), "ca=/nowhere/ca.pem cannot be read"),
            (format!("cert={cert}"), "it has a cert or a key but no ca"),
            (format!("ca={ca}&cert={cert}"), "it has one of cert and key; give both"),
            (format!("ca={ca}&cert={cert}&key={cert}"), "has no private key in PEM"),
            (format!("ca={ca}&cert={cert}&key={other}"), "the private key is not that of the certificate"),
        ] {
            let error = tenure::connect(&format!("{scheme}://h?{settings}")).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{scheme}: {error}");
        }
    }
}

/// A certificate rotates while a leader leads: on etcd a connection with the new one takes the old one's place by itself, on
/// ZooKeeper the next connection has it. Half a rotation changes nothing, and once the old one has expired nobody misses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem(), new.pem());
    let client = Client::new(&old, &old);
    let trusting = TlsFiles { ca: both.clone(), ..old.server("127.0.0.1") };
    let etcd = EtcdServer::start_tls(Version::Etcd35, &trusting).await.unwrap();
    let settings = ZookeeperSettings::default().tls(trusting);
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let expires = SystemTime::now() + Duration::from_secs(40);
    client.write(&old.pem(), &old.vouches_until("client", Some(expires)));
    let mut leaders = Vec::new();
    for (scheme, endpoint) in
        [("etcd", etcd.secure_endpoint().unwrap()), ("zookeeper", zookeeper.secure_endpoint().unwrap())]
    {
        let proxy = Proxy::start(endpoint).await.unwrap();
        let elector = connect(scheme, &proxy.endpoint(), &client.settings()).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        leaders.push((scheme, proxy, elector, leadership));
    }
    // A certificate whose key has not come yet.
    fs::write(client.path("cert"), new.vouches_for("client").0).unwrap();
    for (_, proxy, _, leadership) in &leaders {
        proxy.reset_connections();
        goes_on(leadership).await;
    }
    let accepted = leaders[0].1.accepted();
    client.write(&both, &new.vouches_for("client"));
    until("etcd is connected to anew", async || leaders[0].1.accepted() > accepted).await;
    assert!(SystemTime::now() < expires, "not because the old one had expired");
    until("the old certificate has expired", async || SystemTime::now() > expires).await;
    for (scheme, proxy, elector, leadership) in leaders {
        proxy.reset_connections();
        goes_on(&leadership).await;
        leadership.resign().await.unwrap();
        let again = within("leading again", elector.campaign("e")).await;
        assert!(again.is_ok_and(|again| again.is_leader()), "{scheme}");
        elector.close().await;
    }
}

/// An authority that is taken out of the file is trusted no more, although the connection to a server that it vouches
/// for still serves: the leader loses its leadership rather than go on with that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_taken_away_is_trusted_no_more() {
    let (ours, withdrawn) = (Authority::new(), Authority::new());
    let client = Client::new(&withdrawn, &ours);
    let identity = ours.vouches_for("client");
    let trusting = TlsFiles { ca: ours.pem(), ..withdrawn.server("127.0.0.1") };
    let etcd = EtcdServer::start_tls(Version::Etcd35, &trusting).await.unwrap();
    let elector = connect("etcd", &etcd.secure_endpoint().unwrap(), &client.settings()).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    client.write(&ours.pem(), &identity);
    within("the loss", leadership.lost()).await;
    let status = elector.status();
    assert_eq!(status.connection, Connection::Retrying, "{status:?}");
    elector.close().await;
}

/// Waits until the store has confirmed two heartbeats.
async fn goes_on(leadership: &Leadership) {
    for _ in 0..2 {
        let deadline = leadership.deadline();
        let confirmed = async || leadership.deadline() > deadline || !leadership.is_leader();
        until("a heartbeat was confirmed", confirmed).await;
        assert!(leadership.is_leader(), "{:?}", leadership.loss());
    }
}

/// Hazard Z19: where a server knows us by our certificate alone, what we make can be ours alone too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_belongs_to_a_certificate() {
    let authority = Authority::new();
    let client = Client::new(&authority, &authority);
    let settings = ZookeeperSettings::default().tls(authority.server("127.0.0.1"));
    let server = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let settings = format!("{}&acl=creator", client.settings());
    let elector = connect("zookeeper", &server.secure_endpoint().unwrap(), &settings).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let refused = server.admin().delete(leadership.entry()).await.unwrap_err().to_string();
    assert!(refused.contains("code -102"), "NoAuth: {refused}");
    leadership.resign().await.unwrap();
    elector.close().await;
    // Nobody is known by name here.
    let plain = format!("{}/other?acl=creator", server.endpoint());
    let unknown = tenure::connect(&format!("zookeeper://{plain}")).await.unwrap();
    let error = within("the refusal", unknown.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    unknown.close().await;
}

/// With auth on, etcd takes the common name of a certificate for a user's, and looks at what that user may do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_a_user_on_etcd() {
    for version in Version::ETCD {
        let authority = Authority::new();
        let server = EtcdServer::start_tls(version, &authority.server("127.0.0.1")).await;
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let admin = server.admin();
        admin.add_user("app", "never-shown", Permission::ReadWrite, "/acme/").await.unwrap();
        admin.enable_auth("root-password").await.unwrap();
        let [app, nobody] = ["app", "nobody"].map(|name| {
            let client = Client::new(&authority, &authority);
            client.write(&authority.pem(), &authority.vouches_for(name));
            client
        });
        let endpoint = server.secure_endpoint().unwrap();
        let [a, b] = [
            connect("etcd", &endpoint, &app.settings()).await,
            connect("etcd", &endpoint, &app.settings()).await,
        ];
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waits = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waits.campaign("e").await });
        until("it waits", async || b.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        goes_on(&first).await;
        first.resign().await.unwrap();
        let second = within("the hand-over", waiting).await.unwrap().unwrap();
        goes_on(&second).await;
        for elector in [a, b] {
            elector.close().await;
        }
        let unknown = connect("etcd", &endpoint, &nobody.settings()).await;
        let error = within("the refusal", unknown.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
        unknown.close().await;
        let url = format!("etcd://{endpoint}/other?{}", app.settings());
        let elsewhere = tenure::connect(&url).await.unwrap();
        let error = within("the refusal", elsewhere.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
        elsewhere.close().await;
    }
}
