//! TLS to ZooKeeper: authorities that are replaced and removed, and users that log in over TLS.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Connection, Elector, Error, LossReason};
use tenure_containers::{Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{Authority, ClientFiles, promptly, wait_for_heartbeats};

const PASSWORD: &str = "correct-horse-7";

async fn connect(endpoint: &str, login: &str, settings: &str, ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("zookeeper://{login}{endpoint}/acme?{settings}"), config).await.unwrap()
}

async fn start(settings: ZookeeperSettings) -> ZookeeperServer {
    let server = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await;
    server.unwrap_or_else(|error| panic!("{error}"))
}

/// When an authority is removed from the file, the client closes the open connection to a server whose certificate it
/// issued; the leader loses its leadership, and the status says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_authority_is_no_longer_trusted() {
    let (client_authority, removed) = (Authority::new(), Authority::new());
    let client = ClientFiles::new(&removed.pem(), &client_authority.issue("client"));
    let server = start(ZookeeperSettings::default().tls(removed.server_files(&client_authority.pem()))).await;
    let elector = connect(&server.tls_endpoint().unwrap(), "", &client.settings(), 5).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    wait_for_heartbeats(&leadership).await;
    client.replace_ca(&client_authority.pem());
    assert_eq!(within("the loss", leadership.lost()).await, LossReason::Deadline);
    let status = elector.status();
    assert_eq!(status.connection, Connection::Retrying, "{status:?}");
    assert!(status.last_error.as_ref().is_some_and(|why| why.contains("certificate")), "{status:?}");
    drop(leadership);
    within("closing", elector.close()).await;
}

/// The servers' authority is replaced while a leader leads: the client trusts both, the server restarts with the new one, the
/// client removes the old one. Leadership is kept, and a new connection replaces the one that was made while the old authority
/// was trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_kept_while_authorities_are_replaced() {
    let (client_authority, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let client = ClientFiles::new(&old.pem(), &client_authority.issue("client"));
    let server = start(ZookeeperSettings::default().tls(old.server_files(&client_authority.pem()))).await;
    let proxy = Proxy::start(server.tls_endpoint().unwrap()).await.unwrap();
    let elector = connect(&proxy.endpoint(), "", &client.settings(), 30).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();

    let before = proxy.accepted();
    client.replace_ca(&format!("{}{}", old.pem(), new.pem()));
    server.replace_tls(&new.server_files(&client_authority.pem())).await.unwrap();
    server.stop().await.unwrap().heal().await.unwrap();
    until("it is connected again", async || proxy.accepted() > before).await;
    wait_for_heartbeats(&leadership).await;

    let before = proxy.accepted();
    client.replace_ca(&new.pem());
    until("another connection is made", async || proxy.accepted() > before).await;
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    within("closing", elector.close()).await;
}

/// Asserts that the user `app` leads, and that a wrong password is refused within seconds with an error that does not contain
/// it. `auth` is appended to the URL's settings.
async fn assert_only_app_leads(server: &ZookeeperServer, client: &ClientFiles, auth: &str) {
    let (endpoint, settings) = (server.tls_endpoint().unwrap(), format!("{}{auth}", client.settings()));
    let elector = connect(&endpoint, &format!("app:{PASSWORD}@"), &settings, 5).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let refused = server.admin().delete(leadership.entry()).await.unwrap_err().to_string();
    assert!(refused.contains("code -102"), "NoAuth: {refused}");
    let wrong = connect(&endpoint, "app:wrong-horse@", &settings, 5).await;
    let error = promptly("the refusal", wrong.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    let text = format!("{error} {error:?} {:?}", wrong.status());
    assert!(!text.contains("horse"), "{text}");
    wrong.close().await;
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    within("closing", elector.close()).await;
}

/// Hazard Z19: znodes of a digest user belong to it over TLS too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_a_password_leads_over_tls() {
    let authority = Authority::new();
    // Without client certificates, so that only the digest user owns the znodes.
    let settings = ZookeeperSettings::default().set("ssl.clientAuth", "none");
    let server = start(settings.tls(authority.server_files(&authority.pem()))).await;
    let client = ClientFiles::new(&authority.pem(), &authority.issue("client"));
    assert_only_app_leads(&server, &client, "").await;
}

/// Hazard Z19: the same for a SASL user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sasl_user_leads_over_tls() {
    let authority = Authority::new();
    let settings = ZookeeperSettings::default()
        .tls(authority.server_files(&authority.pem()))
        .sasl_users(&[("app", PASSWORD)])
        .set("ssl.clientAuth", "none");
    let server = start(settings).await;
    let client = ClientFiles::new(&authority.pem(), &authority.issue("client"));
    assert_only_app_leads(&server, &client, "&auth=sasl").await;
}
