//! etcd whose database is full: it refuses puts, and allows deletes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tenure::{Config, Elector};
use tenure_containers::{EtcdServer, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};

/// Longer than the alarm lasts in any of the tests, so that no session ends by itself.
const TTL: Duration = Duration::from_secs(20);
/// An operation that nothing is in the way of takes less, on a busy machine too.
const PROMPT: Duration = Duration::from_secs(5);

async fn server(version: Version) -> EtcdServer {
    EtcdServer::start(version).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect(endpoint: &str, settings: &str) -> Arc<dyn Elector> {
    let url = format!("etcd://{endpoint}/acme{settings}");
    tenure::connect_with(&url, Config::new().with_ttl(TTL)).await.unwrap()
}

async fn entries(server: &EtcdServer) -> usize {
    server.admin().list("/acme/e/").await.unwrap().len()
}

/// Hazard E17: a leader whose request to enter was sent twice resigns under the NOSPACE alarm. The next one leads at once,
/// and the request is marked as withdrawn once there is space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_request_was_sent_twice_resigns_without_space() {
    for version in Version::ETCD {
        let server = server(version).await;
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        // Every request is sent a second time before its first attempt is answered.
        proxy.delay(Duration::from_millis(30));
        let (a, b) = (connect(&proxy.endpoint(), "?hedge=10ms").await, connect(&server.endpoint(), "").await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        proxy.heal();
        let waits = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waits.campaign("e").await });
        until("both stand", async || entries(&server).await == 2).await;

        server.admin().raise_no_space().await.unwrap();
        let begun = Instant::now();
        within("resigning", first.resign()).await.unwrap();
        assert!(begun.elapsed() < PROMPT, "{version}: resigning took {:?}", begun.elapsed());
        let second = within("the hand-over", waiting).await.unwrap().unwrap();
        assert_eq!(entries(&server).await, 1, "{version}");

        let marks = async || server.admin().list("/acme/~withdrawn/").await.unwrap().len();
        assert_eq!(marks().await, 0, "{version}: there is no space for a mark");
        server.admin().lift_no_space().await.unwrap();
        until("the request is marked as withdrawn", async || marks().await == 1).await;
        assert!(second.is_leader());
        second.resign().await.unwrap();
        a.close().await;
        b.close().await;
        until("nothing is left", async || server.admin().list("/acme/").await.unwrap().is_empty()).await;
    }
}

/// Hazard E17: a campaign whose request was carried out and not answered is given up under the NOSPACE alarm: its entry goes
/// all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_without_an_answer_leaves_nothing_without_space() {
    for version in Version::ETCD {
        let server = server(version).await;
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        let elector = connect(&proxy.endpoint(), "?hedge=10ms").await;
        // Another election, so that the session is there.
        let other = within("leading", elector.campaign("other")).await.unwrap();
        // Its entry stands long before an answer comes, and by then it has been sent several times.
        proxy.delay(Duration::from_millis(300));
        let campaigns = Arc::clone(&elector);
        let campaign = tokio::spawn(async move { campaigns.campaign("e").await.map(drop) });
        until("it stands", async || entries(&server).await == 1).await;
        server.admin().raise_no_space().await.unwrap();
        campaign.abort();
        until("its entry is gone", async || entries(&server).await == 0).await;
        proxy.heal();
        assert!(other.is_leader());
        within("resigning", other.resign()).await.unwrap();
        server.admin().lift_no_space().await.unwrap();
        elector.close().await;
        until("nothing is left", async || server.admin().list("/acme/").await.unwrap().is_empty()).await;
    }
}
