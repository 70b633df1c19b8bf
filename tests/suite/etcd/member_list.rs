//! Clients follow the member list of an etcd cluster.

use std::sync::Arc;

use tenure::{Connection, Elector, LossReason};
use tenure_containers::{EtcdCluster, EtcdServer, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::wait_for_heartbeats;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// An elector that reads the member list every second, or never.
async fn connect(cluster: &EtcdCluster, member_list: &str) -> Arc<dyn Elector> {
    let hosts = cluster.endpoints().join(",");
    tenure::connect(&format!("etcd://{hosts}/acme?ttl=10s&member_list={member_list}")).await.unwrap()
}

/// An endpoint that stands for the server which `server` names at the time. A change resets all connections.
async fn changing_endpoint(server: watch::Receiver<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = server.clone();
            tokio::spawn(async move {
                let upstream = server.borrow_and_update().clone();
                let Ok(mut upstream) = TcpStream::connect(upstream).await else { return };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut upstream) => {}
                    _ = server.changed() => {}
                }
            });
        }
    });
    endpoint
}

/// Hazard G34: the only server of the URL comes back as another cluster, where other processes with this URL lead. The leader
/// loses its leadership in the former cluster, although the members that its list named still answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_cluster_is_noticed_while_listed_members_answer() {
    let flags = ["--advertise-client-urls=http://{ip}:2379"];
    let cluster = EtcdCluster::start_with(Version::Etcd35, &flags).await.unwrap();
    let other = EtcdServer::start_with(Version::Etcd35, &["--initial-cluster-token=another"]).await.unwrap();
    let (server, changes) = watch::channel(cluster.endpoints().remove(0));
    let url = format!("etcd://{}/acme?ttl=10s", changing_endpoint(changes).await);
    let elector = tenure::connect(&url).await.unwrap();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    wait_for_heartbeats(&leadership).await;
    // Nobody listens there.
    server.send("127.0.0.1:1".to_owned()).unwrap();
    wait_for_heartbeats(&leadership).await;
    server.send(other.endpoint()).unwrap();
    assert_eq!(within("the loss", leadership.lost()).await, LossReason::SessionExpired);
    let next = within("leading in the other cluster", elector.campaign("e")).await.unwrap();
    assert_eq!(other.admin().list("/acme/e/").await.unwrap().len(), 1);
    next.resign().await.unwrap();
    elector.close().await;
}

/// Every member is replaced by one at another address. A leader stays leader, a candidate that waits is elected, and new
/// campaigns work, although no host of the URL exists any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_replaced_one_after_another_strand_nobody() {
    let flags = ["--advertise-client-urls=http://{ip}:2379"];
    let mut cluster = EtcdCluster::start_with(Version::Etcd35, &flags).await.unwrap();
    let hosts = cluster.endpoints();
    let (a, b) = (connect(&cluster, "1s").await, connect(&cluster, "1s").await);
    let unaware = connect(&cluster, "off").await;
    let leadership = within("leading", a.campaign("e")).await.unwrap();
    let elector = Arc::clone(&b);
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
    for index in 0..3 {
        cluster.replace(index).await.unwrap();
        wait_for_heartbeats(&leadership).await;
    }
    for host in &hosts {
        assert!(TcpStream::connect(host).await.is_err(), "{host} still exists");
    }
    wait_for_heartbeats(&leadership).await;
    within("resigning", leadership.resign()).await.unwrap();
    let next = within("the handover", waiting).await.unwrap().unwrap();
    assert_eq!(within("reading", a.leader("e")).await.unwrap().unwrap().id, b.candidate_id().as_str());
    within("resigning", next.resign()).await.unwrap();
    within("leading again", a.campaign("another")).await.unwrap().resign().await.unwrap();

    // An elector that does not read the list finds nobody.
    let stranded = {
        let unaware = Arc::clone(&unaware);
        tokio::spawn(async move { unaware.campaign("another").await })
    };
    until("it retries", async || unaware.status().connection == Connection::Retrying).await;
    stranded.abort();
    for elector in [a, b] {
        elector.close().await;
    }
}

/// Hazard G34: advertised addresses that do not answer, or where a member of another cluster answers, are not used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_advertised_address_does_no_harm() {
    let other = EtcdCluster::start(Version::Etcd35).await.unwrap();
    // Packets to the first address (RFC 5737) are dropped.
    let advertised = format!("--advertise-client-urls=http://192.0.2.1:2379,http://{}:2379", other.ip(0));
    let cluster = EtcdCluster::start_with(Version::Etcd35, &[&advertised]).await.unwrap();
    let elector = connect(&cluster, "1s").await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    for index in 0..3 {
        let fault = cluster.member(index).kill().await.unwrap();
        wait_for_heartbeats(&leadership).await;
        for n in 0..3 {
            within("leading", elector.campaign(&format!("e{n}"))).await.unwrap().resign().await.unwrap();
        }
        fault.heal().await.unwrap();
        cluster.leader().await.unwrap();
    }
    leadership.resign().await.unwrap();
    elector.close().await;
    assert!(other.member(0).admin().list("/acme/").await.unwrap().is_empty(), "nobody has entered there");
}
