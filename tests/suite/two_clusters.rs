//! One URL that names servers of two clusters.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector, Error, Level};
use tenure_containers::{EtcdServer, Version, ZookeeperServer};
use tenure_testkit::suite::{until, within};
use tenure_tests::{goes_on, promptly};

/// Longer than a server takes to start again.
const TTL: Duration = Duration::from_secs(20);

async fn connect(scheme: &str, hosts: &[String]) -> Arc<dyn Elector> {
    let url = format!("{scheme}://{}/acme", hosts.join(","));
    tenure::connect_with(&url, Config::new().with_ttl(TTL)).await.unwrap()
}

fn both_orders(hosts: &[String; 2]) -> [[String; 2]; 2] {
    let [one, two] = hosts.clone();
    [[one.clone(), two.clone()], [two, one]]
}

/// Whoever names both is refused for good, in words that name both; the same is what an operator is told.
async fn are_refused(scheme: &str, hosts: &[String; 2]) {
    let both = || both_orders(hosts).into_iter().cycle().take(8);
    let electors = futures::future::join_all(both().map(async |hosts| connect(scheme, &hosts).await)).await;
    let campaigns = electors.iter().map(|elector| promptly("the refusal", elector.campaign("e")));
    for (elector, outcome) in electors.iter().zip(futures::future::join_all(campaigns).await) {
        let refused = outcome.err().unwrap_or_else(|| panic!("{scheme}: it leads: {:?}", elector.status()));
        assert!(!refused.is_retryable(), "{refused:?}");
        says_both(&refused, hosts);
        let looked = promptly("the refusal", elector.leader("e")).await.unwrap_err();
        says_both(&looked, hosts);
    }
    for elector in &electors[..2] {
        let diagnoses = within("examining", elector.diagnose()).await;
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

fn says_both(error: &Error, hosts: &[String; 2]) {
    let mut text = error.to_string();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    assert!(names(&text, hosts), "{text}");
}

/// Hazard G34: a URL with the members of two etcd clusters is refused, whichever comes first, and nobody leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_etcd_clusters_in_one_url_are_refused() {
    for version in Version::ETCD {
        let token = "--initial-cluster-token=another";
        let one = EtcdServer::start(version).await.unwrap();
        let two = EtcdServer::start_with(version, &[token]).await.unwrap();
        // Started with the same flags, so that its id is that of the first.
        let alike = EtcdServer::start(version).await.unwrap();
        for other in [&two, &alike] {
            let servers = [&one, other];
            are_refused("etcd", &servers.map(EtcdServer::endpoint)).await;
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
        // First with two empty stores, and then with what the first candidates have left.
        for _ in 0..2 {
            are_refused("zookeeper", &[servers[0].endpoint(), servers[1].endpoint()]).await;
        }
        for server in &servers {
            assert!(server.admin().children("/acme/e").await.unwrap().is_empty(), "nobody has entered");
        }
    }
}

/// Hazard G34: a server that was away when a session began, and comes back as one of another cluster, is not used; the
/// session goes on with its own. Whoever starts then is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_cluster_that_comes_later_is_not_used() {
    let token = "--initial-cluster-token=another";
    let one = EtcdServer::start(Version::Etcd35).await.unwrap();
    let two = EtcdServer::start_with(Version::Etcd35, &[token]).await.unwrap();
    let hosts = [one.endpoint(), two.endpoint()];
    let away = two.kill().await.unwrap();
    let elector = connect("etcd", &hosts).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    away.heal().await.unwrap();
    // While its own cluster is away, everything is asked of the other.
    let down = one.kill().await.unwrap();
    let asks = Arc::clone(&elector);
    let looking = tokio::spawn(async move { asks.leader("e").await });
    let was_asked =
        async || elector.status().last_error.is_some_and(|said| said.contains("it is a member of cluster"));
    until("the other one was asked", was_asked).await;
    assert!(!looking.is_finished(), "its answer does not count");
    down.heal().await.unwrap();
    goes_on(&leadership).await;
    within("looking", looking).await.unwrap().unwrap().unwrap();
    drop(leadership);
    let late = connect("etcd", &hosts).await;
    says_both(&promptly("the refusal", late.campaign("e")).await.unwrap_err(), &hosts);
    late.close().await;
    elector.close().await;
    assert!(two.admin().list("/acme/").await.unwrap().is_empty(), "nobody has entered there");
}
