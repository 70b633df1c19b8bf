//! The label of the leader's pod.

use std::{future::poll_fn, sync::Arc, time::Duration};

use tenure_core::{
    CandidateId, Config, Elector as _, Level, StoreElector,
    spi::{Backend as _, EntryEvent},
};
use tenure_kubernetes::{KubernetesBackend, KubernetesConfig};

use crate::{
    api_server::{ApiServer, Fault, NAMESPACE},
    candidate::{Process, TTL, election, next_event, within},
    log::Log,
};

const LABEL: &str = "tenure/leader";

fn config(server: &ApiServer, pod: &str) -> KubernetesConfig {
    server.config().leader_label(pod)
}

/// An elector in a pod.
fn elector(server: &ApiServer, pod: &str) -> StoreElector {
    let backend = KubernetesBackend::new(config(server, pod)).unwrap();
    let config = Config::new().with_ttl(Duration::from_secs(2)).with_id(CandidateId::new(pod).unwrap());
    StoreElector::new(Arc::new(backend), config).unwrap()
}

fn server_with(pods: &[&str]) -> ApiServer {
    let server = ApiServer::start();
    pods.iter().for_each(|pod| server.start_pod(pod));
    server
}

/// Waits until a pod has this label.
async fn labeled(server: &ApiServer, pod: &str, value: Option<&str>) {
    let what = format!("{pod} has the label {value:?}");
    server.until(&what, |server| server.pod_label(pod, LABEL).as_deref() == value).await;
}

/// The leader's pod has the label, and others have not, after a resignation too.
#[tokio::test]
async fn the_leaders_pod_has_the_label() {
    let server = server_with(&["p0", "p1"]);
    let (a, b) = (elector(&server, "p0"), elector(&server, "p1"));
    let first = within("leading", a.campaign("billing")).await.unwrap();
    labeled(&server, "p0", Some("billing")).await;
    within("resigning", first.resign()).await.unwrap();
    labeled(&server, "p0", None).await;
    let second = within("leading", b.campaign("billing")).await.unwrap();
    labeled(&server, "p1", Some("billing")).await;
    assert_eq!(server.pod_label("p0", LABEL), None);
    assert_eq!(server.pod_label("p1", "app").as_deref(), Some("billing"), "other labels stay");
    drop(second);
    labeled(&server, "p1", None).await;
    for elector in [a, b] {
        elector.close().await;
    }
}

/// The label goes with a leadership that is lost, and when the elector is closed.
#[tokio::test]
async fn a_loss_removes_the_label() {
    let server = server_with(&["p0"]);
    let a = elector(&server, "p0");
    let first = within("leading", a.campaign("billing")).await.unwrap();
    labeled(&server, "p0", Some("billing")).await;
    server.edit("billing", |lease| lease["spec"]["holderIdentity"] = "somebody".into());
    within("the loss", first.lost()).await;
    labeled(&server, "p0", None).await;
    server.edit("billing", |lease| lease["spec"]["holderIdentity"] = "".into());
    let second = within("leading", a.campaign("billing")).await.unwrap();
    labeled(&server, "p0", Some("billing")).await;
    within("closing", a.close()).await;
    assert_eq!(server.pod_label("p0", LABEL), None, "removed before the elector is closed");
    drop(second);
}

/// A resign request ends no leadership yet: the label stays until the Lease is released.
#[tokio::test]
async fn a_resign_request_leaves_the_label() {
    let server = server_with(&["p0"]);
    let process = Process::with(KubernetesBackend::new(config(&server, "p0")).unwrap(), TTL);
    let (a, won) = process.leader("a").await;
    let mut watcher = a.watch(&won);
    tokio::select! {
        event = next_event(&mut watcher) => panic!("{event:?}"),
        () = labeled(&server, "p0", Some("e")) => {}
    }
    server.until("other pods are looked for", |server| server.count("list pods") == 1).await;
    server.backend().request_resign(&election()).await.unwrap();
    assert_eq!(next_event(&mut watcher).await, EntryEvent::ResignRequested);
    a.session.heartbeat().await.unwrap();
    assert_eq!((server.count("patch pods"), server.count("list pods")), (1, 1));
    a.leave().await.unwrap();
    labeled(&server, "p0", None).await;
    process.backend.close().await;
}

/// A label that somebody has removed comes back, and one that another pod has got is removed.
#[tokio::test]
async fn a_label_is_looked_for_now_and_then() {
    let server = server_with(&["p0", "p1"]);
    let process = Process::with(KubernetesBackend::new(config(&server, "p0")).unwrap(), TTL);
    let (a, won) = process.leader("a").await;
    let mut watcher = a.watch(&won);
    let checks = async {
        labeled(&server, "p0", Some("e")).await;
        server.until("other pods are looked for", |server| server.count("list pods") == 1).await;
        server.until("a watches", |server| server.open_watches() == 1).await;
        // It waits for the time of the next look.
        server.label_pod("p0", LABEL, None);
        server.label_pod("p1", LABEL, Some("e"));
        a.session.heartbeat().await.unwrap();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::resume();
        labeled(&server, "p0", Some("e")).await;
        labeled(&server, "p1", None).await;
    };
    tokio::select! {
        event = poll_fn(|context| watcher.poll_next(context)) => panic!("{event:?}"),
        () = checks => {}
    }
    process.backend.close().await;
    assert_eq!(server.pod_label("p0", LABEL), None);
}

/// A pod that starts removes what its earlier container has left, and who wins removes it from others.
#[tokio::test]
async fn labels_that_were_left_are_removed() {
    let server = server_with(&["p0", "dead", "other"]);
    server.label_pod("p0", LABEL, Some("billing"));
    server.label_pod("dead", LABEL, Some("billing"));
    server.label_pod("other", LABEL, Some("invoices"));
    // Another holder, so that this one does not lead.
    server.edit("billing", |lease| {
        lease["spec"] = serde_json::json!({ "holderIdentity": "somebody", "leaseDurationSeconds": 60 });
    });
    let a = Arc::new(elector(&server, "p0"));
    let campaign = {
        let a = Arc::clone(&a);
        tokio::spawn(async move { a.campaign("billing").await })
    };
    labeled(&server, "p0", None).await;
    assert!(server.pod_label("dead", LABEL).is_some(), "who does not lead changes its own pod only");
    server.edit("billing", |lease| lease["spec"]["holderIdentity"] = "".into());
    let leadership = within("leading", campaign).await.unwrap().unwrap();
    labeled(&server, "p0", Some("billing")).await;
    labeled(&server, "dead", None).await;
    assert_eq!(server.pod_label("other", LABEL).as_deref(), Some("invoices"));
    drop(leadership);
    a.close().await;
}

/// A process changes no pod that has replaced its own under the same name, as in a StatefulSet.
#[tokio::test]
async fn a_pod_that_has_replaced_this_one_keeps_its_label() {
    let server = server_with(&["p0"]);
    let a = elector(&server, "p0");
    let leadership = within("leading", a.campaign("billing")).await.unwrap();
    labeled(&server, "p0", Some("billing")).await;
    server.start_pod("p0");
    server.label_pod("p0", LABEL, Some("billing"));
    let patches = server.count("patch pods");
    within("resigning", leadership.resign()).await.unwrap();
    server.until("it has tried", |server| server.count("patch pods") > patches).await;
    within("closing", a.close()).await;
    assert_eq!(server.pod_label("p0", LABEL).as_deref(), Some("billing"));
}

/// Without the verbs, or while the server refuses patches, the election goes on; that is said once, and tried again.
#[tokio::test]
async fn a_label_that_cannot_be_set_delays_nobody() {
    let server = server_with(&["p0"]);
    server.forbid("patch pods");
    let log = Log::start();
    let a = elector(&server, "p0");
    let leadership = within("leading", a.campaign("billing")).await.unwrap();
    server.until("it is tried again", |server| server.count("patch pods") >= 2).await;
    assert!(leadership.is_leader());
    server.allow("patch pods");
    server.inject("list pods", Fault::Refuse(500, None));
    labeled(&server, "p0", Some("billing")).await;
    within("closing", a.close()).await;
    let warning = "cannot be kept; it is tried again";
    assert_eq!(log.lines_with(warning), 1, "{log:?}");
    assert_eq!(
        log.lines_with("cannot patch pod \\\"p0\\\"") + log.lines_with("cannot patch pod \"p0\""),
        1,
        "{log:?}"
    );
    assert_eq!(server.pod_label("p0", LABEL), None);
}

/// A label has one value: that of the election that was won first, and of the next one when that has ended.
#[tokio::test]
async fn the_label_of_a_pod_that_leads_several_elections_names_one() {
    let server = server_with(&["p0"]);
    let a = elector(&server, "p0");
    let first = within("leading", a.campaign("billing")).await.unwrap();
    labeled(&server, "p0", Some("billing")).await;
    let second = within("leading", a.campaign("billing-")).await.unwrap();
    within("resigning", first.resign()).await.unwrap();
    server
        .until("the label names the other", |server| {
            server.pod_label("p0", LABEL).is_some_and(|value| value.starts_with("tenure-x-"))
        })
        .await;
    drop(second);
    labeled(&server, "p0", None).await;
    a.close().await;
}

/// The verbs that the label needs are checked, if it is asked for.
#[tokio::test]
async fn a_missing_verb_on_pods_is_diagnosed() {
    let server = server_with(&["p0"]);
    server.forbid("list pods");
    let backend = KubernetesBackend::new(config(&server, "p0")).unwrap();
    let found = backend.diagnose().await;
    let bad: Vec<_> = found.iter().filter(|it| it.level != Level::Good).collect();
    assert_eq!(bad.len(), 1, "{found:?}");
    assert_eq!((bad[0].subject.as_str(), bad[0].level), ("verb list on pods", Level::Warning));
    assert!(!server.backend().diagnose().await.iter().any(|it| it.subject.contains("pods")));
    assert!(KubernetesBackend::new(server.config().namespace(NAMESPACE).leader_label("Pod")).is_err());
}
