//! Faults of Kubernetes: API servers and their etcd that are silent, and Leases that others delete and change.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tenure::{BootClock, BootInstant, Clock as _, Elector, Error, Leadership};
use tenure_containers::{KubernetesCluster, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{KubernetesNamespace, wait_for_heartbeats};
use tokio::task::JoinHandle;

const TTL: Duration = Duration::from_secs(5);

/// Two API servers, a namespace, and a candidate of each server.
struct TwoServers {
    namespace: KubernetesNamespace,
    electors: [Arc<dyn Elector>; 2],
    cluster: KubernetesCluster,
}

impl TwoServers {
    async fn start() -> Self {
        let cluster = KubernetesCluster::start(Version::Kubernetes120).await;
        let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
        let namespace = KubernetesNamespace::on(cluster.server(0).admin()).await;
        let [first, second] = [0, 1].map(|server| cluster.server(server).endpoint());
        let electors = [namespace.elector_at(&first, TTL).await, namespace.elector_at(&second, TTL).await];
        Self { namespace, electors, cluster }
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

/// An API server that is silent for less than the TTL, and an etcd that is, cost no leadership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_of_the_cluster_costs_no_leadership() {
    let servers = TwoServers::start().await;
    let (leadership, waiting) = servers.lead("e").await;
    let failed = || async {
        until("a request fails", async || servers.electors[0].status().last_error.is_some()).await;
    };
    let fault = servers.cluster.server(0).pause().await.unwrap();
    failed().await;
    fault.heal().await.unwrap();
    wait_for_heartbeats(&leadership).await;
    until("it recovers", async || servers.electors[0].status().last_error.is_none()).await;
    let fault = servers.cluster.etcd().pause().await.unwrap();
    failed().await;
    fault.heal().await.unwrap();
    wait_for_heartbeats(&leadership).await;
    assert!(!waiting.is_finished());
    leadership.resign().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap().0.resign().await.unwrap();
    servers.close().await;
}

/// The leader's API server is frozen, or cut off from its etcd, for longer than the TTL: the candidate of the other one leads, and only
/// then. A server whose cache is old misleads nobody afterwards.
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

/// The etcd beneath is silent for longer than the TTL: nobody leads meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_etcd_is_silent_has_no_leader() {
    let servers = TwoServers::start().await;
    let (former, waiting) = servers.lead("e").await;
    let fault = servers.cluster.etcd().pause().await.unwrap();
    within("the loss", former.lost()).await;
    until("the other says why it waits", async || servers.electors[1].status().last_error.is_some()).await;
    assert!(!waiting.is_finished());
    fault.heal().await.unwrap();
    let next = within("the takeover", waiting).await.unwrap().unwrap();
    assert_no_overlap(&former, &next);
    next.0.resign().await.unwrap();
    servers.close().await;
}

/// Hazard K5: the Lease of a living leader is deleted, or replaced by an empty one, or its namespace is: the leader loses it, and who has
/// seen it waits until its deadline. Tokens rise all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_lease_is_deleted_has_another_leader_after_the_ttl() {
    let servers = TwoServers::start().await;
    let TwoServers { namespace, .. } = &servers;
    let admin = &namespace.admin;
    for election in ["deleted", "replaced", "without-namespace"] {
        let (former, waiting) = servers.lead(election).await;
        match election {
            "without-namespace" => admin.delete_namespace(&namespace.name).await.unwrap(),
            _ => admin.delete_lease(&namespace.name, election).await.unwrap(),
        }
        if election == "replaced" {
            // The other candidate may have created it meanwhile.
            let _ = admin.create_lease(&namespace.name, election, &json!({})).await;
        }
        within("the loss", former.lost()).await;
        if election == "without-namespace" {
            until("the other says why it waits", async || {
                let error = servers.electors[1].status().last_error;
                error.is_some_and(|error| error.contains("does the namespace exist?"))
            })
            .await;
            assert!(!waiting.is_finished());
            admin.create_namespace(&namespace.name).await.unwrap();
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
    let namespace = KubernetesNamespace::shared().await;
    let duration = Duration::from_secs(3);
    let spec = json!({
        "holderIdentity": "somebody", "leaseDurationSeconds": duration.as_secs(), "leaseTransitions": 7,
        "acquireTime": "2020-01-01T00:00:00.000000Z", "renewTime": "2020-01-01T00:00:00.000000Z",
    });
    namespace.admin.create_lease(&namespace.name, "e", &spec).await.unwrap();
    let (admin, name) = (namespace.admin.clone(), namespace.name.clone());
    let labels = tokio::spawn(async move {
        for round in 0_u64.. {
            let patch = json!({ "metadata": { "labels": { "round": round.to_string() } } });
            admin.patch_lease(&name, "e", &patch).await.unwrap();
        }
    });
    let elector = namespace.elector_at(namespace.admin.endpoint(), TTL).await;
    let began = BootClock.now();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    assert!(BootClock.now().since(began) >= duration);
    wait_for_heartbeats(&leadership).await;
    labels.abort();
    let lease = namespace.admin.lease(&namespace.name, "e").await.unwrap().unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 8);
    leadership.resign().await.unwrap();
    let lease = namespace.admin.lease(&namespace.name, "e").await.unwrap().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "");
    elector.close().await;
}
