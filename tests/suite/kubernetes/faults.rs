//! Faults of Kubernetes: an API server that is silent for long, and Leases that others delete and change.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use serde_json::json;
use tenure::{BootClock, BootInstant, Clock as _, Config, Elector, Error, Leadership, StoreElector};
use tenure_containers::{KubernetesCluster, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{Kubeconfig, Kubernetes, new_namespace, wait_for_heartbeats};
use tokio::task::JoinHandle;

const TTL: Duration = Duration::from_secs(5);

/// Two API servers, a namespace, and a candidate of each server.
struct TwoServers {
    namespace: String,
    electors: [Arc<dyn Elector>; 2],
    _kubeconfigs: [Kubeconfig; 2],
    cluster: KubernetesCluster,
}

impl TwoServers {
    async fn start() -> Self {
        let cluster = KubernetesCluster::start(Version::Kubernetes120).await;
        let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
        let namespace = new_namespace(cluster.server(0).admin()).await;
        let kubeconfig = async |server| {
            let server = cluster.server(server);
            Kubeconfig::new(server.admin(), &server.endpoint(), "admin-token", &namespace).await
        };
        let kubeconfigs = [kubeconfig(0).await, kubeconfig(1).await];
        let electors = [elector(&kubeconfigs[0]), elector(&kubeconfigs[1])];
        Self { namespace, electors, _kubeconfigs: kubeconfigs, cluster }
    }

    /// A leader, and a candidate of the other server that waits and has seen it.
    async fn lead(&self, election: &'static str) -> (Leadership, JoinHandle<Elected>) {
        let leadership = within("leading", self.electors[0].campaign(election)).await.unwrap();
        let waiting = campaign(&self.electors[1], election);
        until("the other has seen it", async || {
            self.electors[1].candidates(election).await.is_ok_and(|all| all.len() == 1)
        })
        .await;
        wait_for_heartbeats(&leadership).await;
        (leadership, waiting)
    }

    async fn close(self) {
        for elector in self.electors {
            elector.close().await;
        }
    }
}

fn elector(kubeconfig: &Kubeconfig) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(TTL);
    Arc::new(StoreElector::new(Arc::new(kubeconfig.backend()), config).unwrap())
}

/// A leadership, and when it began.
type Elected = Result<(Leadership, BootInstant), Error>;

fn campaign(elector: &Arc<dyn Elector>, election: &'static str) -> JoinHandle<Elected> {
    let elector = Arc::clone(elector);
    tokio::spawn(async move {
        let leadership = elector.campaign(election).await?;
        Ok((leadership, BootClock.now()))
    })
}

/// Checks that the next one led only after the former one's deadline, with a greater token.
fn assert_no_overlap(former: &Leadership, (next, elected_at): &(Leadership, BootInstant)) {
    assert!(former.deadline() <= *elected_at, "{:?} {elected_at:?}", former.deadline());
    assert!(!former.is_leader() && next.is_leader());
    assert!(next.fencing_token() > former.fencing_token());
}

/// The leader's API server is frozen, or cut off from its etcd, for longer than the TTL: the candidate at the other API server leads, and not
/// before the deadline of the former leader. Afterwards, the server's outdated cache elects no second leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_server_is_silent_has_another_leader_after_the_ttl() {
    let servers = TwoServers::start().await;
    for election in ["frozen", "cut-off"] {
        let (former, waiting) = servers.lead(election).await;
        let fault = match election {
            "frozen" => servers.cluster.server(0).pause().await.unwrap(),
            _ => servers.cluster.isolate_from_etcd(0).await.unwrap(),
        };
        within("the loss", former.lost()).await;
        let next = within("the takeover", waiting).await.unwrap().unwrap();
        assert_no_overlap(&former, &next);
        drop(former);
        let again = campaign(&servers.electors[0], election);
        fault.heal().await.unwrap();
        wait_for_heartbeats(&next.0).await;
        assert!(!again.is_finished());
        let token = next.0.fencing_token();
        next.0.resign().await.unwrap();
        let (again, _) = within("leading again", again).await.unwrap().unwrap();
        assert!(again.fencing_token() > token);
        again.resign().await.unwrap();
    }
    servers.close().await;
}

/// Hazard K5: the Lease of a living leader is deleted, or replaced by an empty one, or its namespace is: the leader loses it, and who has
/// seen it waits until its deadline. Tokens rise all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_lease_is_deleted_has_another_leader_after_the_ttl() {
    let servers = TwoServers::start().await;
    let TwoServers { namespace, cluster, .. } = &servers;
    let admin = cluster.server(0).admin();
    for election in ["deleted", "replaced", "without-namespace"] {
        let (former, waiting) = servers.lead(election).await;
        match election {
            "without-namespace" => admin.delete_namespace(namespace).await.unwrap(),
            _ => admin.delete_lease(namespace, election).await.unwrap(),
        }
        if election == "replaced" {
            // The other candidate may have created it meanwhile.
            let _ = admin.create_lease(namespace, election, &json!({})).await;
        }
        within("the loss", former.lost()).await;
        if election == "without-namespace" {
            until("the other says why it waits", async || {
                let error = servers.electors[1].status().last_error;
                error.is_some_and(|error| error.contains("does the namespace exist?"))
            })
            .await;
            assert!(!waiting.is_finished());
            admin.create_namespace(namespace).await.unwrap();
        }
        let next = within("the takeover", waiting).await.unwrap().unwrap();
        assert_no_overlap(&former, &next);
        next.0.resign().await.unwrap();
    }
    servers.close().await;
}

/// Hazard K4: a holder that is no candidate of tenure's, and never renews, is waited for its duration, also while somebody changes a
/// label of the Lease all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_never_renews_is_taken_over() {
    let kubernetes = Kubernetes::new(Version::Kubernetes120).await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace().to_owned());
    let duration = Duration::from_secs(3);
    let spec = json!({
        "holderIdentity": "somebody", "leaseDurationSeconds": duration.as_secs(), "leaseTransitions": 7,
        "acquireTime": "2020-01-01T00:00:00.000000Z", "renewTime": "2020-01-01T00:00:00.000000Z",
    });
    admin.create_lease(&namespace, "e", &spec).await.unwrap();
    let labels = tokio::spawn({
        let (admin, name) = (admin.clone(), namespace.clone());
        async move {
            for round in 0_u64.. {
                let patch = json!({ "metadata": { "labels": { "round": round.to_string() } } });
                admin.patch_lease(&name, "e", &patch).await.unwrap();
            }
        }
    });
    let kubeconfig = kubernetes.kubeconfig("admin-token").await;
    let elector = elector(&kubeconfig);
    let began = BootClock.now();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    assert!(BootClock.now().since(began) >= duration);
    wait_for_heartbeats(&leadership).await;
    assert!(!labels.is_finished());
    labels.abort();
    let lease = admin.lease(&namespace, "e").await.unwrap().unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 8);
    leadership.resign().await.unwrap();
    let lease = admin.lease(&namespace, "e").await.unwrap().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "");
    elector.close().await;
}

/// Electors that are closed at any moment of their campaigns leave no Lease held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn electors_that_are_closed_leave_no_lease_held() {
    let kubernetes = Kubernetes::new(Version::Kubernetes120).await;
    let kubeconfig = kubernetes.kubeconfig("admin-token").await;
    for round in 0..100 {
        let electors: Vec<_> = (0..5).map(|_| elector(&kubeconfig)).collect();
        let campaigns: Vec<_> = electors
            .iter()
            .flat_map(|elector| ["a", "b", "c"].map(|election| (Arc::clone(elector), election)))
            .map(|(elector, election)| {
                tokio::spawn(async move {
                    while let Ok(leadership) = elector.campaign(election).await {
                        match fastrand::bool() {
                            true => drop(leadership),
                            false => drop(leadership.resign().await),
                        }
                    }
                })
            })
            .collect();
        until("there is a leader", async || !electors[0].candidates("a").await.unwrap().is_empty()).await;
        join_all(electors.iter().map(|elector| elector.close())).await;
        join_all(campaigns).await;
        let leases = kubernetes.admin().leases(kubernetes.namespace()).await.unwrap();
        let held: Vec<_> = leases.iter().filter(|lease| lease["spec"]["holderIdentity"] != "").collect();
        assert!(held.is_empty(), "round {round}: {held:#?}");
    }
}
