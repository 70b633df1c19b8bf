//! A URL that names servers of two clusters.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector, Error, Level};
use tenure_containers::{EtcdServer, Version, ZookeeperServer};
use tenure_testkit::suite::{until, within};
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
    let campaigns = electors.iter().map(|elector| promptly("the refusal", elector.campaign("e")));
    for (elector, outcome) in electors.iter().zip(futures::future::join_all(campaigns).await) {
        let refused = outcome.err().unwrap_or_else(|| panic!("{scheme}: it leads: {:?}", elector.status()));
        assert!(!refused.is_retryable(), "{refused:?}");
        assert_names_both(&refused, hosts);
        let error = promptly("the refusal", elector.leader("e")).await.unwrap_err();
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
        // First with two empty stores, and then with the znodes that the first candidates have left.
        for _ in 0..2 {
            assert_refused("zookeeper", &[servers[0].endpoint(), servers[1].endpoint()]).await;
        }
        for server in &servers {
            assert!(server.admin().children("/acme/e").await.unwrap().is_empty(), "nobody has entered");
        }
    }
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
