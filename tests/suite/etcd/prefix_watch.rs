//! The watch of all deletions on etcd, which serves all waiting candidates of a process.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use tenure::{Config, Elector};
use tenure_containers::{EtcdServer, Version};
use tenure_testkit::suite::{until, within};

const ELECTIONS: usize = 50;

async fn connect(server: &EtcdServer) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(5));
    tenure::connect_with(&format!("etcd://{}/acme", server.endpoint()), config).await.unwrap()
}

/// How many watches the server serves.
async fn watches(server: &EtcdServer) -> usize {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let metrics = client.get(format!("http://{}/metrics", server.endpoint())).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let total = metrics.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    total.unwrap().parse().unwrap()
}

/// Each leader's entry has a watch of its own, and all waiting candidates of a process share one. They lead in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_watch_serves_all_waiting_candidates() {
    for version in Version::ETCD {
        let server = EtcdServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        let (a, b) = (connect(&server).await, connect(&server).await);
        let elections: Vec<_> = (0..ELECTIONS).map(|n| format!("e-{n}")).collect();
        let led =
            within("all are led", join_all(elections.iter().map(|election| a.campaign(election)))).await;
        until("each leader is watched", async || watches(&server).await == ELECTIONS).await;
        let waiting: Vec<_> = elections
            .iter()
            .map(|election| {
                let (b, election) = (Arc::clone(&b), election.clone());
                tokio::spawn(async move { b.campaign(&election).await })
            })
            .collect();
        until("all wait", async || server.admin().list("/acme/").await.unwrap().len() == 2 * ELECTIONS).await;
        until("they share a watch", async || watches(&server).await == ELECTIONS + 1).await;
        within("all resign", join_all(led.into_iter().map(|led| led.unwrap().resign()))).await;
        let led = within("all are led again", join_all(waiting)).await;
        assert!(led.iter().all(|led| led.as_ref().unwrap().as_ref().unwrap().is_leader()), "{version:?}");
        until("each new leader is watched", async || watches(&server).await == ELECTIONS + 1).await;
        drop(led);
        a.close().await;
        b.close().await;
    }
}
