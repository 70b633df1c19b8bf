//! A URL that names servers of two clusters.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector, Error, Level, LossReason};
use tenure_containers::{ConsulServer, EtcdServer, NatsServer, Version, ZookeeperServer};
use tenure_testkit::{
    proxy::{Direction, Proxy},
    suite::{until, within},
};
use tenure_tests::{promptly, wait_for_heartbeats};

/// Longer than a server takes to restart.
const TTL: Duration = Duration::from_secs(20);

async fn connect(scheme: &str, hosts: &[String]) -> Arc<dyn Elector> {
    let url = format!("{scheme}://{}/acme", hosts.join(","));
    tenure::connect_with(&url, Config::new().with_ttl(TTL)).await.unwrap()
}

fn both_orders(hosts: &[String; 2]) -> [[String; 2]; 2] {
    let [one, two] = hosts.clone();
    [[one.clone(), two.clone()], [two, one]]
}

/// Asserts that campaigns and reads with both servers in the URL fail with an error that names both and is not retryable,
/// and that the diagnosis names both.
async fn assert_refused(scheme: &str, hosts: &[String; 2]) {
    let urls = || both_orders(hosts).into_iter().cycle().take(8);
    let electors = futures::future::join_all(urls().map(async |hosts| connect(scheme, &hosts).await)).await;
    let campaigns = electors.iter().map(|elector| within("the refusal", refused_campaign(&**elector)));
    for (elector, refused) in electors.iter().zip(futures::future::join_all(campaigns).await) {
        assert!(!refused.is_retryable(), "{refused:?}");
        assert_names_both(&refused, hosts);
        let error = within("the refusal", refused_read(&**elector)).await;
        assert_names_both(&error, hosts);
    }
    for hosts in urls().take(2) {
        let url = format!("{scheme}://{}/acme?ttl=20s", hosts.join(","));
        let checked = promptly("the refusal", tenure::connect_checked(&url)).await;
        assert_names_both(&checked.unwrap_err(), &hosts);
    }
    for elector in &electors[..2] {
        let diagnoses = within("the diagnosis", elector.diagnose()).await;
        let problem = diagnoses
            .iter()
            .find(|diagnosis| diagnosis.level == Level::Problem && names(&diagnosis.text, hosts));
        assert!(problem.is_some(), "{diagnoses:?}");
    }
    for elector in electors {
        within("closing", elector.close()).await;
    }
}

/// Campaigns until that is refused. A server of the other cluster that answers late is noticed late: the leadership ends
/// then, and the next campaign is refused.
async fn refused_campaign(elector: &dyn Elector) -> Error {
    loop {
        match elector.campaign("e").await {
            Ok(leadership) => {
                leadership.lost().await;
            }
            Err(error) => return error,
        }
    }
}

/// Reads until that is refused.
async fn refused_read(elector: &dyn Elector) -> Error {
    loop {
        if let Err(error) = elector.leader("e").await {
            return error;
        }
    }
}

fn names(text: &str, hosts: &[String; 2]) -> bool {
    hosts.iter().all(|host| text.contains(host.as_str()))
}

fn assert_names_both(error: &Error, hosts: &[String; 2]) {
    let mut text = error.to_string();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    assert!(names(&text, hosts), "{text}");
}

/// Hazard G34: a URL with the members of two etcd clusters is refused in either order, and nobody leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_etcd_clusters_in_one_url_are_refused() {
    for version in Version::ETCD {
        let token = "--initial-cluster-token=another";
        let one = EtcdServer::start(version).await.unwrap();
        let two = EtcdServer::start_with(version, &[token]).await.unwrap();
        // Started with the same flags, so that its cluster id is that of the first.
        let same_id = EtcdServer::start(version).await.unwrap();
        for other in [&two, &same_id] {
            let servers = [&one, other];
            assert_refused("etcd", &servers.map(EtcdServer::endpoint)).await;
            for server in servers {
                assert!(server.admin().list("/acme/").await.unwrap().is_empty(), "nobody has entered");
            }
        }
    }
}

/// Hazard G34: the same for ZooKeeper.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_zookeeper_ensembles_in_one_url_are_refused() {
    for version in Version::ZOOKEEPER {
        let servers =
            [ZookeeperServer::start(version).await.unwrap(), ZookeeperServer::start(version).await.unwrap()];
        // Each has a root. A late answer of a server without one would end nothing.
        for server in &servers {
            let elector = connect("zookeeper", &[server.endpoint()]).await;
            drop(within("leading there", elector.campaign("e")).await.unwrap());
            elector.close().await;
        }
        assert_refused("zookeeper", &[servers[0].endpoint(), servers[1].endpoint()]).await;
        for server in &servers {
            assert!(server.admin().children("/acme/e").await.unwrap().is_empty(), "nobody has entered");
        }
    }
}

/// Hazard G34: the same for Consul, whether or not elections were held in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consul_clusters_in_one_url_are_refused() {
    let [one, two, three] = [(); 3].map(|()| ConsulServer::start(Version::Consul18));
    let servers = [one.await.unwrap(), two.await.unwrap(), three.await.unwrap()];
    // The first time both are empty, the second time one of them is, and then none.
    for other in [1, 2, 2] {
        assert_refused("consul", &[servers[0].endpoint(), servers[other].endpoint()]).await;
        for server in &servers {
            assert_eq!(server.admin().keys("acme/e/").await.unwrap(), [""; 0], "nobody has entered");
        }
    }
}

/// Hazard G34: the same for NATS, whether or not there is a bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nats_clusters_in_one_url_are_refused() {
    let [one, two, three] = [(); 3].map(|()| NatsServer::start(Version::Nats215));
    let servers = [one.await.unwrap(), two.await.unwrap(), three.await.unwrap()];
    // The first time both are empty, the second time one of them is, and then none.
    for other in [1, 2, 2] {
        assert_refused("nats", &[servers[0].endpoint(), servers[other].endpoint()]).await;
        let entries = serde_json::json!({ "subjects_filter": "$KV.acme.r.e.>" });
        for server in [&servers[0], &servers[other]] {
            let info = server.admin().request("$JS.API.STREAM.INFO.KV_acme", entries.clone()).await.unwrap();
            assert!(info["state"]["subjects"].is_null(), "nobody has entered: {info}");
        }
    }
}

/// Hazard G34: a server of another ensemble that answers only after a session is in use ends that session: its own ensemble
/// may have another leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_of_another_ensemble_ends_the_session() {
    let one = ZookeeperServer::start(Version::Zookeeper39).await.unwrap();
    let two = ZookeeperServer::start(Version::Zookeeper39).await.unwrap();
    // It has another root by now.
    let other = connect("zookeeper", &[two.endpoint()]).await;
    drop(within("leading there", other.campaign("e")).await.unwrap());
    other.close().await;
    let proxy = Proxy::start(two.endpoint()).await.unwrap();
    proxy.hold(Direction::ToClient);
    let hosts = [one.endpoint(), proxy.endpoint()];
    let elector = connect("zookeeper", &hosts).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    proxy.heal();
    assert_eq!(within("the loss", leadership.lost()).await, LossReason::SessionExpired);
    let refused = within("the refusal", refused_campaign(&*elector)).await;
    assert!(!refused.is_retryable(), "{refused:?}");
    assert_names_both(&refused, &hosts);
    elector.close().await;
    assert!(one.admin().children("/acme/e").await.unwrap().is_empty(), "nobody has entered");
}

/// Hazard G34: a server that was down when a session began, and returns as a member of another cluster, is not used; the
/// session continues with its own cluster. An elector that starts then is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_cluster_that_comes_later_is_not_used() {
    let token = "--initial-cluster-token=another";
    let one = EtcdServer::start(Version::Etcd35).await.unwrap();
    let two = EtcdServer::start_with(Version::Etcd35, &[token]).await.unwrap();
    let hosts = [one.endpoint(), two.endpoint()];
    let fault = two.kill().await.unwrap();
    let elector = connect("etcd", &hosts).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    fault.heal().await.unwrap();
    // While its own cluster is down, requests go to the other one.
    let own_down = one.kill().await.unwrap();
    let reader = Arc::clone(&elector);
    let reading = tokio::spawn(async move { reader.leader("e").await });
    let was_rejected =
        async || elector.status().last_error.is_some_and(|error| error.contains("it is a member of cluster"));
    until("the other cluster was rejected", was_rejected).await;
    assert!(!reading.is_finished(), "the answer of the other cluster is not used");
    own_down.heal().await.unwrap();
    wait_for_heartbeats(&leadership).await;
    within("reading", reading).await.unwrap().unwrap().unwrap();
    drop(leadership);
    let late = connect("etcd", &hosts).await;
    assert_names_both(&promptly("the refusal", late.campaign("e")).await.unwrap_err(), &hosts);
    late.close().await;
    elector.close().await;
    assert!(two.admin().list("/acme/").await.unwrap().is_empty(), "nobody has entered there");
}
