//! Elections on two API servers over one etcd, of which one fails.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Connection, Elector as _, Leadership, StoreElector};
use tenure_containers::{Fault, KubernetesCluster, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{Kubeconfig, new_namespace, wait_for_heartbeats};

const TTL: Duration = Duration::from_secs(8);

struct Candidate {
    elector: Arc<StoreElector>,
    _kubeconfig: Kubeconfig,
}

impl Candidate {
    /// A candidate who reaches the server with this number only.
    async fn new(cluster: &KubernetesCluster, server: usize, namespace: &str) -> Self {
        let server = cluster.server(server);
        let kubeconfig = Kubeconfig::new(server.admin(), &server.endpoint(), "admin-token", namespace).await;
        let config = Config::new().with_ttl(TTL);
        let elector = Arc::new(StoreElector::new(Arc::new(kubeconfig.backend()), config).unwrap());
        Self { elector, _kubeconfig: kubeconfig }
    }

    async fn lead(&self) -> Leadership {
        within("leading", self.elector.campaign("e")).await.unwrap()
    }
}

async fn inject(cluster: &KubernetesCluster, fault: &str) -> Fault {
    let injected = match fault {
        "frozen" => cluster.server(0).pause().await,
        "killed" => cluster.server(0).kill().await,
        "cut off from its etcd" => cluster.isolate_from_etcd(0).await,
        _ => cluster.etcd().pause().await,
    };
    injected.unwrap_or_else(|error| panic!("{error}"))
}

/// Hazards K3, G1: a leader whose API server fails stops before a candidate of the other server leads, and tokens rise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_of_the_other_server_of_the_cluster_takes_over() {
    let cluster = KubernetesCluster::start(Version::Kubernetes120).await;
    let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
    let namespace = new_namespace(cluster.server(0).admin()).await;
    let (first, second) =
        (Candidate::new(&cluster, 0, &namespace).await, Candidate::new(&cluster, 1, &namespace).await);
    let mut last = 0;
    for fault in ["frozen", "killed", "cut off from its etcd"] {
        let leadership = first.lead().await;
        assert!(leadership.fencing_token().get() > last, "{fault}");
        last = leadership.fencing_token().get();
        let elector = Arc::clone(&second.elector);
        let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
        wait_for_heartbeats(&leadership).await;

        let injected = inject(&cluster, fault).await;
        let successor = within("the takeover", campaign).await.unwrap();
        assert!(!leadership.is_leader() && successor.is_leader(), "{fault}");
        assert!(successor.fencing_token().get() > last, "{fault}");
        last = successor.fencing_token().get();
        within("the recovery", injected.heal()).await.unwrap();
        wait_for_heartbeats(&successor).await;
        successor.resign().await.unwrap();
    }
    first.elector.close().await;
    second.elector.close().await;
}

/// A failure that ends soon after a request has failed costs no leadership; one of the etcd that is longer ends every leadership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_a_cluster_outlasts_short_failures_only() {
    let cluster = KubernetesCluster::start(Version::Kubernetes120).await;
    let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
    let namespace = new_namespace(cluster.server(0).admin()).await;
    let candidate = Candidate::new(&cluster, 0, &namespace).await;
    let leadership = candidate.lead().await;
    for fault in ["frozen", "etcd frozen"] {
        wait_for_heartbeats(&leadership).await;
        let injected = inject(&cluster, fault).await;
        let is_noticed = async || candidate.elector.status().connection == Connection::Retrying;
        until("a request fails", is_noticed).await;
        injected.heal().await.unwrap();
        wait_for_heartbeats(&leadership).await;
    }
    let frozen = inject(&cluster, "etcd frozen").await;
    within("the loss", leadership.lost()).await;
    frozen.heal().await.unwrap();
    let next = candidate.lead().await;
    assert!(next.fencing_token() > leadership.fencing_token());
    candidate.elector.close().await;
}
