//! Interoperability with client-go's `leaderelection` in the same election, on real API servers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tenure::{Config, Elector as _, Leadership, StoreElector};
use tenure_containers::{GoCandidate, GoCandidateSettings, GoEvent, KubernetesCluster, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{Kubeconfig, new_namespace};
use tokio::task::JoinHandle;

/// The duration of the Lease, for all candidates.
const TTL: Duration = Duration::from_secs(6);

/// Two API servers, an election, and a candidate of tenure who reaches the first server through a proxy.
struct Election {
    cluster: KubernetesCluster,
    namespace: String,
    proxy: Proxy,
    elector: Arc<StoreElector>,
    _kubeconfig: Kubeconfig,
}

impl Election {
    async fn new() -> Self {
        let cluster = KubernetesCluster::start(Version::Kubernetes120).await;
        let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
        let admin = cluster.server(0).admin();
        let namespace = new_namespace(admin).await;
        let proxy = Proxy::start(cluster.server(0).endpoint()).await.unwrap();
        let kubeconfig = Kubeconfig::new(admin, &proxy.endpoint(), "admin-token", &namespace).await;
        let config = Config::new().with_ttl(TTL).with_id("tenure".parse().unwrap());
        let elector = Arc::new(StoreElector::new(Arc::new(kubeconfig.backend()), config).unwrap());
        Self { cluster, namespace, proxy, elector, _kubeconfig: kubeconfig }
    }

    /// Starts a candidate of client-go, who reaches the second server.
    async fn go(&self, identity: &str) -> GoCandidate {
        let settings = GoCandidateSettings { lease_duration: TTL, ..GoCandidateSettings::default() };
        let lease = (self.namespace.as_str(), "e");
        GoCandidate::start(&self.cluster, 1, lease, identity, &settings).await.unwrap()
    }

    async fn holder(&self) -> String {
        let lease = self.cluster.server(1).admin().lease(&self.namespace, "e").await.unwrap();
        lease.unwrap()["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    /// Campaigns in a task, and waits until the candidate has seen the leader with this identity.
    async fn campaign(&self, leader: &str) -> JoinHandle<Leadership> {
        assert!(self.elector.try_campaign("e").await.unwrap().is_none(), "client-go leads");
        assert_eq!(self.elector.leader("e").await.unwrap().unwrap().id, leader);
        let elector = Arc::clone(&self.elector);
        tokio::spawn(async move { elector.campaign("e").await.unwrap() })
    }
}

async fn leads(candidate: &mut GoCandidate, identity: &str) {
    within("client-go leads", candidate.wait_for(&GoEvent::Started(identity.to_owned()))).await.unwrap();
}

async fn sees(candidate: &mut GoCandidate, identity: &str) {
    within("client-go sees the leader", candidate.wait_for(&GoEvent::Leader(identity.to_owned())))
        .await
        .unwrap();
}

async fn stops(candidate: &mut GoCandidate, identity: &str) {
    within("client-go stops", candidate.wait_for(&GoEvent::Stopped(identity.to_owned()))).await.unwrap();
}

/// A candidate of client-go waits for a leader of tenure that resigns, and for one that is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_go_follows_tenure_in_a_cluster() {
    let election = Election::new().await;
    let first = within("leading", election.elector.campaign("e")).await.unwrap();
    let holder = election.holder().await;
    assert!(holder.starts_with("tenure_"), "{holder}");
    let mut go = election.go("go").await;
    sees(&mut go, &holder).await;
    let token = first.fencing_token();
    first.resign().await.unwrap();
    leads(&mut go, "go").await;
    assert_eq!(election.holder().await, "go");

    go.terminate().await.unwrap();
    stops(&mut go, "go").await;
    let second = within("leading", election.elector.campaign("e")).await.unwrap();
    assert!(second.fencing_token() > token);
    let mut next = election.go("next").await;
    sees(&mut next, &election.holder().await).await;
    election.proxy.cut();
    leads(&mut next, "next").await;
    assert!(!second.is_leader(), "both lead");
    next.kill().await.unwrap();
    election.proxy.heal();

    let third = within("leading", election.elector.campaign("e")).await.unwrap();
    assert!(third.fencing_token() > second.fencing_token());
    third.resign().await.unwrap();
    assert_eq!(election.holder().await, "");
    election.elector.close().await;
}

/// A candidate of tenure waits for a leader of client-go that releases the Lease, is killed, is frozen, or is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenure_follows_client_go_in_a_cluster() {
    let election = Election::new().await;
    let mut go = election.go("released").await;
    leads(&mut go, "released").await;
    let campaign = election.campaign("released").await;
    go.terminate().await.unwrap();
    stops(&mut go, "released").await;
    let leadership = within("the handover", campaign).await.unwrap();
    let mut last = leadership.fencing_token();
    leadership.resign().await.unwrap();

    for fault in ["killed", "frozen", "isolated"] {
        let mut go = election.go(fault).await;
        leads(&mut go, fault).await;
        let campaign = election.campaign(fault).await;
        let begun = Instant::now();
        let leadership = match fault {
            "killed" => {
                go.kill().await.unwrap();
                within("the takeover", campaign).await.unwrap()
            }
            "frozen" => {
                let frozen = go.pause().await.unwrap();
                let leadership = within("the takeover", campaign).await.unwrap();
                frozen.heal().await.unwrap();
                stops(&mut go, fault).await;
                leadership
            }
            _ => {
                let isolated = go.isolate().await.unwrap();
                let leadership = within("the takeover", campaign).await.unwrap();
                stops(&mut go, fault).await;
                drop(isolated);
                leadership
            }
        };
        // The last renewal was at most a retry period earlier.
        assert!(begun.elapsed() > TTL - Duration::from_secs(1), "{fault}: {:?}", begun.elapsed());
        assert!(leadership.is_leader() && leadership.fencing_token() > last);
        last = leadership.fencing_token();
        leadership.resign().await.unwrap();
    }
    until("the Lease is released", async || election.holder().await.is_empty()).await;
    election.elector.close().await;
}
