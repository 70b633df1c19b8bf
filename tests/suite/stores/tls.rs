//! TLS to etcd and ZooKeeper in one process.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tenure::{Config, Connection, Elector, Error};
use tenure_containers::{EtcdServer, Permission, TlsFiles, Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{Authority, ClientFiles, wait_for_heartbeats};

async fn connect(scheme: &str, endpoint: &str, settings: &str) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(5));
    tenure::connect_with(&format!("{scheme}://{endpoint}/acme?{settings}"), config).await.unwrap()
}

fn client_files(trusted: &Authority, issuer: &Authority) -> ClientFiles {
    ClientFiles::new(&trusted.pem(), &issuer.issue("client"))
}

async fn servers(authority: &Authority, name: &str) -> [(&'static str, String, Box<dyn std::any::Any>); 2] {
    let files = authority.server_files_for(name, &authority.pem());
    let etcd = EtcdServer::start_tls(Version::Etcd35, &files).await;
    let etcd = etcd.unwrap_or_else(|error| panic!("{error}"));
    let settings = ZookeeperSettings::default().tls(files);
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await;
    let zookeeper = zookeeper.unwrap_or_else(|error| panic!("{error}"));
    [
        ("etcd", etcd.tls_endpoint().unwrap(), Box::new(etcd)),
        ("zookeeper", zookeeper.tls_endpoint().unwrap(), Box::new(zookeeper)),
    ]
}

/// Hazard Z17: both clients in one process use the same crypto provider, and none panics. Each presents its certificate,
/// leads, keeps its leadership, and resigns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_speak_tls_in_one_process() {
    let authority = Authority::new();
    let client = client_files(&authority, &authority);
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
        let again = within("leading again", elector.campaign("e")).await.unwrap();
        again.resign().await.unwrap();
        elector.close().await;
    }
}

/// A client sends nothing to a server whose certificate names another host or comes from an untrusted authority, and a server
/// refuses clients without a valid certificate. The status says why, and the client retries: its files may change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_certificates_are_refused() {
    let (authority, other_authority) = (Authority::new(), Authority::new());
    let wrong_host = servers(&authority, "impostor.example").await;
    let valid = servers(&authority, "127.0.0.1").await;
    let client = client_files(&authority, &authority);
    let distrustful = client_files(&other_authority, &authority);
    let untrusted = client_files(&authority, &other_authority);
    let ca_only = format!("ca={}", client.path("ca").display());
    for (servers, settings, on_etcd) in [
        (&wrong_host, client.settings(), "certificate not valid for name \"127.0.0.1\""),
        (&valid, distrustful.settings(), "invalid peer certificate: UnknownIssuer"),
        (&valid, untrusted.settings(), "the member refused our certificate"),
        (&valid, ca_only, "the member refused our certificate"),
        (
            &valid,
            String::new(),
            "the member speaks TLS, and its authority is not configured: add the setting ca=",
        ),
    ] {
        for (scheme, endpoint, _) in servers {
            let elector = connect(scheme, endpoint, &settings).await;
            let campaign = {
                let elector = Arc::clone(&elector);
                tokio::spawn(async move { elector.campaign("e").await })
            };
            // ZooKeeper's client library does not report why a connection failed.
            let expected = if *scheme == "etcd" { on_etcd } else { "" };
            until(&format!("{scheme} {settings}: {expected}"), async || {
                let status = elector.status();
                let error = status.last_error.unwrap_or_default();
                status.connection == Connection::Retrying && error.contains(expected)
            })
            .await;
            assert!(!campaign.is_finished(), "{scheme} {settings}");
            campaign.abort();
            elector.close().await;
        }
    }
    // The servers accept a client with valid files.
    for (scheme, endpoint, _) in &valid {
        let elector = connect(scheme, endpoint, &client.settings()).await;
        within("leading", elector.campaign("e")).await.unwrap().resign().await.unwrap();
        elector.close().await;
    }
}

/// Invalid files are refused at once with an error that names the file.
#[tokio::test]
async fn invalid_files_are_refused() {
    let authority = Authority::new();
    let client = client_files(&authority, &authority);
    let [ca, cert] = ["ca", "cert"].map(|name| client.path(name).display().to_string());
    let other_client = client_files(&authority, &authority);
    let other_key = other_client.path("key").display().to_string();
    for scheme in ["etcd", "zookeeper"] {
        for (settings, reason) in [
            ("ca=/nowhere/ca.pem".to_owned(), "ca=/nowhere/ca.pem cannot be read"),
            (format!("cert={cert}"), "it has a cert or a key but no ca"),
            (format!("ca={ca}&cert={cert}"), "it has one of cert and key; give both"),
            (format!("ca={ca}&cert={cert}&key={cert}"), "has no private key in PEM"),
            (
                format!("ca={ca}&cert={cert}&key={other_key}"),
                "the private key is not that of the certificate",
            ),
        ] {
            let error = tenure::connect(&format!("{scheme}://h?{settings}")).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{scheme}: {error}");
        }
    }
}

/// A certificate is rotated while a leader leads. On etcd a connection with the new certificate replaces the old one by
/// itself; on ZooKeeper the next connection uses it. A new certificate without its key has no effect, and leadership survives
/// the expiry of the old certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem(), new.pem());
    let client = client_files(&old, &old);
    let files: TlsFiles = old.server_files(&both);
    let etcd = EtcdServer::start_tls(Version::Etcd35, &files).await.unwrap();
    let settings = ZookeeperSettings::default().tls(files);
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let expires = SystemTime::now() + Duration::from_secs(40);
    client.replace_identity(&old.issue_until("client", Some(expires)));
    let mut leaders = Vec::new();
    for (scheme, endpoint) in
        [("etcd", etcd.tls_endpoint().unwrap()), ("zookeeper", zookeeper.tls_endpoint().unwrap())]
    {
        let proxy = Proxy::start(endpoint).await.unwrap();
        let elector = connect(scheme, &proxy.endpoint(), &client.settings()).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        leaders.push((scheme, proxy, elector, leadership));
    }
    // A certificate whose key has not been replaced yet.
    client.replace_certificate(&new.issue("client").0);
    for (_, proxy, _, leadership) in &leaders {
        proxy.reset_connections();
        wait_for_heartbeats(leadership).await;
    }
    let accepted = leaders[0].1.accepted();
    client.replace_ca(&both);
    client.replace_identity(&new.issue("client"));
    until("the etcd client has reconnected", async || leaders[0].1.accepted() > accepted).await;
    assert!(SystemTime::now() < expires, "the old certificate has not expired yet");
    until("the old certificate has expired", async || SystemTime::now() > expires).await;
    for (scheme, proxy, elector, leadership) in leaders {
        proxy.reset_connections();
        wait_for_heartbeats(&leadership).await;
        leadership.resign().await.unwrap();
        let again = within("leading again", elector.campaign("e")).await;
        assert!(again.is_ok_and(|again| again.is_leader()), "{scheme}");
        elector.close().await;
    }
}

/// When an authority is removed from the file, the client closes the open connection to a server whose certificate it
/// issued; the leader loses its leadership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_authority_is_no_longer_trusted() {
    let (client_authority, removed) = (Authority::new(), Authority::new());
    let client = client_files(&removed, &client_authority);
    let files = removed.server_files(&client_authority.pem());
    let etcd = EtcdServer::start_tls(Version::Etcd35, &files).await.unwrap();
    let elector = connect("etcd", &etcd.tls_endpoint().unwrap(), &client.settings()).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    client.replace_ca(&client_authority.pem());
    client.replace_identity(&client_authority.issue("client"));
    within("the loss", leadership.lost()).await;
    let status = elector.status();
    assert_eq!(status.connection, Connection::Retrying, "{status:?}");
    elector.close().await;
}

/// Hazard Z19: znodes can belong to a client that a server identifies by its certificate alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn znodes_belong_to_the_certificate_that_created_them() {
    let authority = Authority::new();
    let client = client_files(&authority, &authority);
    let settings = ZookeeperSettings::default().tls(authority.server_files(&authority.pem()));
    let server = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let settings = format!("{}&acl=creator", client.settings());
    let elector = connect("zookeeper", &server.tls_endpoint().unwrap(), &settings).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let refused = server.admin().delete(leadership.entry()).await.unwrap_err().to_string();
    assert!(refused.contains("code -102"), "NoAuth: {refused}");
    leadership.resign().await.unwrap();
    elector.close().await;
    // Without TLS the server does not know the user.
    let plain = format!("{}/other?acl=creator", server.endpoint());
    let anonymous = tenure::connect(&format!("zookeeper://{plain}")).await.unwrap();
    let error = within("the refusal", anonymous.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    anonymous.close().await;
}

/// With authentication enabled, etcd takes the common name of a certificate as the user's name and checks the user's
/// permissions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_a_user_on_etcd() {
    for version in Version::ETCD {
        let authority = Authority::new();
        let server = EtcdServer::start_tls(version, &authority.server_files(&authority.pem())).await;
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let admin = server.admin();
        admin.add_user("app", "never-shown", Permission::ReadWrite, "/acme/").await.unwrap();
        admin.enable_auth("root-password").await.unwrap();
        let [app, nobody] =
            ["app", "nobody"].map(|name| ClientFiles::new(&authority.pem(), &authority.issue(name)));
        let endpoint = server.tls_endpoint().unwrap();
        let [a, b] = [
            connect("etcd", &endpoint, &app.settings()).await,
            connect("etcd", &endpoint, &app.settings()).await,
        ];
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waiter = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waiter.campaign("e").await });
        until("it waits", async || b.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        wait_for_heartbeats(&first).await;
        first.resign().await.unwrap();
        let second = within("the handover", waiting).await.unwrap().unwrap();
        wait_for_heartbeats(&second).await;
        for elector in [a, b] {
            elector.close().await;
        }
        let unknown = connect("etcd", &endpoint, &nobody.settings()).await;
        let error = within("the refusal", unknown.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
        unknown.close().await;
        let url = format!("etcd://{endpoint}/other?{}", app.settings());
        let forbidden = tenure::connect(&url).await.unwrap();
        let error = within("the refusal", forbidden.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
        forbidden.close().await;
    }
}
