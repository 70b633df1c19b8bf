//! etcd with a full database: it refuses puts and allows deletes.

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

/// Longer than the alarm is active in any test, so that no session expires.
const TTL: Duration = Duration::from_secs(20);
/// The time limit of an operation that must not wait for the alarm to end; it allows for a busy machine.
const PROMPT_LIMIT: Duration = Duration::from_secs(5);

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

/// Hazard E17: a leader whose request to enter was sent twice, and answered once, resigns during the NOSPACE alarm. The next
/// candidate leads at once, and the request is marked as withdrawn once there is space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_request_was_sent_twice_resigns_without_space() {
    for version in Version::ETCD {
        let server = server(version).await;
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        // Every request is sent a second time before its first attempt is answered.
        proxy.delay(Duration::from_millis(150));
        let (a, b) =
            (connect(&proxy.endpoint(), "?hedge=200ms").await, connect(&server.endpoint(), "").await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        // The second attempt is not answered any more.
        proxy.reset_connections();
        proxy.heal();
        let waiter = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waiter.campaign("e").await });
        until("both candidates have entered", async || entries(&server).await == 2).await;

        server.admin().activate_no_space_alarm().await.unwrap();
        let begun = Instant::now();
        within("resigning", first.resign()).await.unwrap();
        assert!(begun.elapsed() < PROMPT_LIMIT, "{version}: resigning took {:?}", begun.elapsed());
        let second = within("the handover", waiting).await.unwrap().unwrap();
        assert_eq!(entries(&server).await, 1, "{version}");

        let marks = async || server.admin().list("/acme/~withdrawn/").await.unwrap().len();
        assert_eq!(marks().await, 0, "{version}: there is no space for a mark");
        server.admin().disarm_no_space_alarm().await.unwrap();
        until("the request is marked as withdrawn", async || marks().await == 1).await;
        assert!(second.is_leader());
        second.resign().await.unwrap();
        a.close().await;
        b.close().await;
        until("nothing is left", async || server.admin().list("/acme/").await.unwrap().is_empty()).await;
    }
}

/// Hazard E17: a campaign whose request was executed and not answered is cancelled during the NOSPACE alarm. Its entry is
/// deleted nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_without_an_answer_leaves_nothing_without_space() {
    for version in Version::ETCD {
        let server = server(version).await;
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        let elector = connect(&proxy.endpoint(), "?hedge=10ms").await;
        // Another election, which opens the session.
        let other = within("leading", elector.campaign("other")).await.unwrap();
        // The entry exists long before the answer arrives; until then the request is sent several times.
        proxy.delay(Duration::from_millis(300));
        let candidate = Arc::clone(&elector);
        let campaign = tokio::spawn(async move { candidate.campaign("e").await.map(drop) });
        until("it has entered", async || entries(&server).await == 1).await;
        server.admin().activate_no_space_alarm().await.unwrap();
        campaign.abort();
        until("its entry is gone", async || entries(&server).await == 0).await;
        proxy.heal();
        assert!(other.is_leader());
        within("resigning", other.resign()).await.unwrap();
        server.admin().disarm_no_space_alarm().await.unwrap();
        elector.close().await;
        until("nothing is left", async || server.admin().list("/acme/").await.unwrap().is_empty()).await;
    }
}
