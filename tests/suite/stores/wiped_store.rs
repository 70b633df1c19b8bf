//! A store that was wiped: its tokens start again, and the log, the metrics and the diagnosis say so.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Config, Elector};
use tenure_containers::{EtcdServer, Version, ZookeeperServer};
use tenure_testkit::suite::{until, within};
use tenure_tests::CapturedLog;

const TTL: Duration = Duration::from_secs(5);

async fn connect(url: &str) -> Arc<dyn Elector> {
    tenure::connect_with(url, Config::new().with_ttl(TTL)).await.unwrap()
}

/// Leads at `url`, wipes the store, and leads again: with a lower token, of which the leader and an observer report one.
async fn assert_reported(url: &str, wipe: impl AsyncFnOnce()) {
    let log = CapturedLog::default();
    let regressions = || log.lines_with("token_regression");
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Each elector logs to the subscriber that is current here.
    let _default = tracing::subscriber::set_default(subscriber);
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let (elector, observer) = (connect(url).await, connect(url).await);
    for _ in 0..20 {
        within("leading", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    }
    let first = within("leading", elector.campaign("e")).await.unwrap();
    let highest = first.fencing_token();
    let mut leaders = observer.observe("e");
    let mut sees = async |token| {
        while leaders.next().await.unwrap().unwrap().and_then(|leader| leader.token) != Some(token) {}
    };
    within("the observer to see the leader", sees(highest)).await;
    assert_eq!(regressions(), Vec::<String>::new());

    wipe().await;
    within("the loss", first.lost()).await;
    drop(first);
    let second = within("leading again", elector.campaign("e")).await.unwrap();
    let token = second.fencing_token();
    assert!(second.is_leader() && token < highest, "{token} after {highest}");
    within("the observer to see the leader", sees(token)).await;

    until("both have logged it", async || regressions().len() == 2).await;
    for line in regressions() {
        let fields = format!("election=e token={token} highest={highest} cause=\"token_regression\"");
        assert!(line.contains(" ERROR ") && line.contains(&fields), "{line}");
    }
    // Both electors are of this process.
    let regressions = "tenure_token_regressions_total{election=\"e\"} 2";
    until("it is measured", async || metrics.render().contains(regressions)).await;
    for elector in [&elector, &observer] {
        let diagnoses = elector.diagnose().await;
        let text = format!("the fencing token of the election e went back from {highest} to {token}");
        assert!(diagnoses.iter().any(|diagnosis| diagnosis.text == text), "{diagnoses:?}");
    }
    assert!(second.is_leader());
    second.resign().await.unwrap();
    elector.close().await;
    observer.close().await;
}

/// Hazard G35: a leader and an observer report that etcd was wiped.
#[tokio::test]
async fn tokens_that_go_back_on_etcd_are_reported() {
    let server = EtcdServer::start(Version::Etcd35).await.unwrap_or_else(|error| panic!("{error}"));
    assert_reported(&format!("etcd://{}/acme", server.endpoint()), async || server.wipe().await.unwrap())
        .await;
}

/// Hazard G35: a leader and an observer report that ZooKeeper was wiped.
#[tokio::test]
async fn tokens_that_go_back_on_zookeeper_are_reported() {
    let server = ZookeeperServer::start(Version::Zookeeper39).await.unwrap_or_else(|error| panic!("{error}"));
    assert_reported(&format!("zookeeper://{}/acme", server.endpoint()), async || {
        server.wipe().await.unwrap()
    })
    .await;
}
