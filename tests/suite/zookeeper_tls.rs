//! TLS to ZooKeeper: authorities that are exchanged and withdrawn, and users that log in over it.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Connection, Elector, Error, LossReason};
use tenure_containers::{Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{Authority, ClientFiles, goes_on, promptly};

const PASSWORD: &str = "correct-horse-7";

async fn connect(endpoint: &str, login: &str, settings: &str, ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("zookeeper://{login}{endpoint}/acme?{settings}"), config).await.unwrap()
}

async fn start(settings: ZookeeperSettings) -> ZookeeperServer {
    let server = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await;
    server.unwrap_or_else(|error| panic!("{error}"))
}

/// An authority that is taken out of the file is trusted no more, although the connection to a server that it vouches
/// for still serves: the leader loses its leadership rather than go on with that, and why is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_taken_away_is_trusted_no_more() {
    let (ours, withdrawn) = (Authority::new(), Authority::new());
    let client = ClientFiles::new(&withdrawn.pem(), &ours.vouches_for("client"));
    let server = start(ZookeeperSettings::default().tls(withdrawn.server(&ours.pem()))).await;
    let elector = connect(&server.secure_endpoint().unwrap(), "", &client.settings(), 5).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    goes_on(&leadership).await;
    client.trust(&ours.pem());
    assert_eq!(within("the loss", leadership.lost()).await, LossReason::Deadline);
    let status = elector.status();
    assert_eq!(status.connection, Connection::Retrying, "{status:?}");
    assert!(status.last_error.as_ref().is_some_and(|why| why.contains("certificate")), "{status:?}");
    drop(leadership);
    within("closing", elector.close()).await;
}

/// The authority of the servers is exchanged under a leader, step by step: both trusted, the server restarted under the new one, the
/// old one withdrawn. Leadership is kept, and the connection that was made when the old one was trusted gives way to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_keeps_its_leadership_while_authorities_are_exchanged() {
    let (ours, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let client = ClientFiles::new(&old.pem(), &ours.vouches_for("client"));
    let server = start(ZookeeperSettings::default().tls(old.server(&ours.pem()))).await;
    let proxy = Proxy::start(server.secure_endpoint().unwrap()).await.unwrap();
    let elector = connect(&proxy.endpoint(), "", &client.settings(), 30).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();

    let before = proxy.accepted();
    client.trust(&format!("{}{}", old.pem(), new.pem()));
    server.replace_tls(&new.server(&ours.pem())).await.unwrap();
    server.stop().await.unwrap().heal().await.unwrap();
    until("it is connected again", async || proxy.accepted() > before).await;
    goes_on(&leadership).await;

    let before = proxy.accepted();
    client.trust(&new.pem());
    until("another connection is made", async || proxy.accepted() > before).await;
    goes_on(&leadership).await;
    leadership.resign().await.unwrap();
    within("closing", elector.close()).await;
}

/// Whoever leads with this login, while the others are refused within seconds, in words without the password.
async fn leads_and_nobody_else(server: &ZookeeperServer, client: &ClientFiles, by: &str) {
    let (endpoint, settings) = (server.secure_endpoint().unwrap(), format!("{}{by}", client.settings()));
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
    goes_on(&leadership).await;
    leadership.resign().await.unwrap();
    within("closing", elector.close()).await;
}

/// Hazard Z19: what a user makes over TLS is its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_a_password_leads_over_tls() {
    let authority = Authority::new();
    // The digest's user alone is to own what it makes.
    let settings = ZookeeperSettings::default().set("ssl.clientAuth", "none");
    let server = start(settings.tls(authority.server(&authority.pem()))).await;
    let client = ClientFiles::new(&authority.pem(), &authority.vouches_for("client"));
    leads_and_nobody_else(&server, &client, "").await;
}

/// Hazard Z19: the same of a user that the servers know by SASL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_known_by_sasl_leads_over_tls() {
    let authority = Authority::new();
    let settings = ZookeeperSettings::default()
        .tls(authority.server(&authority.pem()))
        .users(&[("app", PASSWORD)])
        .set("ssl.clientAuth", "none");
    let server = start(settings).await;
    let client = ClientFiles::new(&authority.pem(), &authority.vouches_for("client"));
    leads_and_nobody_else(&server, &client, "&auth=sasl").await;
}
