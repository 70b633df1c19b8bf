//! Rights, tokens, certificates and throttling on a real API server.

use std::{sync::Arc, time::Duration};

use http::Method;
use tenure::{Config, Elector as _, Level, StoreElector, spi::Backend as _};
use tenure_containers::Version;
use tenure_kubernetes::{KubernetesBackend, KubernetesConfig};
use tenure_testkit::suite::{until, within};
use tenure_tests::{Authority, Kubeconfig, Kubernetes, wait_for_heartbeats};

const CANDIDATE: [&str; 3] = ["get", "create", "update"];

async fn new() -> Kubernetes {
    Kubernetes::new(Version::Kubernetes120).await
}

fn elector(kubeconfig: &Kubeconfig) -> Arc<StoreElector> {
    let config = Config::new().with_ttl(Duration::from_secs(4));
    Arc::new(StoreElector::new(Arc::new(kubeconfig.backend()), config).unwrap())
}

/// The warnings and problems, by their subjects.
async fn findings(kubeconfig: &Kubeconfig) -> Vec<String> {
    let found = kubeconfig.backend().diagnose().await;
    found.into_iter().filter(|found| found.level != Level::Good).map(|found| found.subject).collect()
}

/// Hazard G8: a missing verb is named; the least role is `get`, `create` and `update`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_role_suffices_and_a_missing_verb_is_named() {
    let kubernetes = new().await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace());
    let alice = kubernetes.kubeconfig("alice-token").await;
    let elector = elector(&alice);
    for (n, missing) in CANDIDATE.into_iter().enumerate() {
        let verbs: Vec<_> = CANDIDATE.into_iter().filter(|verb| *verb != missing).collect();
        admin.allow(namespace, "alice", &verbs).await.unwrap();
        let election = format!("e{n}");
        if missing == "update" {
            // A candidate that creates the Lease needs the verb only at the first renewal.
            admin.create_lease(namespace, &election, &serde_json::json!({})).await.unwrap();
        }
        let refused = within("a refusal", elector.try_campaign(&election)).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("the verb {missing:?}")), "{refused}");
        assert_eq!(findings(&alice).await, [missing, "watch", "list"].map(|verb| format!("verb {verb}")));
    }
    admin.allow(namespace, "alice", &CANDIDATE).await.unwrap();
    assert_eq!(findings(&alice).await, ["verb watch", "verb list"]);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    wait_for_heartbeats(&leadership).await;
    // Without the verb `watch` a candidate reads the Lease again and again.
    let bob = kubernetes.kubeconfig("bob-token").await;
    admin.allow(namespace, "bob", &CANDIDATE).await.unwrap();
    let waiting = self::elector(&bob);
    assert!(waiting.try_campaign("e").await.unwrap().is_none());
    let campaign = tokio::spawn(async move { waiting.campaign("e").await.unwrap() });
    wait_for_heartbeats(&leadership).await;
    let token = leadership.fencing_token();
    leadership.resign().await.unwrap();
    let next = within("the handover", campaign).await.unwrap();
    assert!(next.fencing_token() > token);
    assert_eq!(findings(&kubernetes.kubeconfig("admin-token").await).await, [""; 0]);
    let found = kubernetes.kubeconfig("wrong").await.backend().diagnose().await;
    assert_eq!((found.len(), &*found[0].subject, found[0].level), (1, "API server", Level::Problem));
    assert!(found[0].text.contains("401") && found[0].text.contains("check the token"), "{found:?}");
}

/// The label of the leader's pod, by which a Service selects it, moves with the leadership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pod_of_the_leader_has_the_label() {
    let kubernetes = new().await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace());
    let kubeconfig = kubernetes.kubeconfig("admin-token").await;
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let mut electors = Vec::new();
    for pod in ["a", "b"] {
        let spec = serde_json::json!({ "containers": [{ "name": "main", "image": "none" }] });
        let manifest = serde_json::json!({ "metadata": { "name": pod }, "spec": spec });
        admin.request(Method::POST, &pods, Some(&manifest)).await.unwrap();
        let config = KubernetesConfig::new().kubeconfig(kubeconfig.path()).leader_label(pod);
        let backend = Arc::new(KubernetesBackend::new(config).unwrap());
        let config = Config::new().with_ttl(Duration::from_secs(4));
        electors.push(StoreElector::new(backend, config).unwrap());
    }
    let selected = async || {
        let path = format!("{pods}?labelSelector=tenure%2Fleader%3De");
        let found = admin.request(Method::GET, &path, None).await.unwrap();
        let names = found["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    for (elector, pod) in electors.iter().zip(["\"a\"", "\"b\""]) {
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        until("its pod has the label", async || selected().await == pod).await;
        leadership.resign().await.unwrap();
        until("no pod has it", async || selected().await.is_empty()).await;
    }
    for elector in electors {
        elector.close().await;
    }
}

/// Hazard G33: a service account's token is accepted no more, and the kubeconfig has another one by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_outlives_the_token_of_its_service_account() {
    let kubernetes = new().await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace());
    let user = format!("system:serviceaccount:{namespace}:billing");
    admin.allow(namespace, &user, &CANDIDATE).await.unwrap();
    admin.create_service_account(namespace, "billing").await.unwrap();
    let token = async || admin.request_token(namespace, "billing", Duration::from_secs(600)).await.unwrap();
    let first = token().await;
    let kubeconfig = kubernetes.kubeconfig(&first).await;
    let elector = elector(&kubeconfig);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();

    // A token ends with its account, and does not belong to one of the same name.
    admin.delete_service_account(namespace, "billing").await.unwrap();
    admin.create_service_account(namespace, "billing").await.unwrap();
    let next = kubernetes.kubeconfig(&token().await).await;
    std::fs::copy(next.path(), kubeconfig.path()).unwrap();
    let client = admin.with_token(&first);
    let is_refused = async || client.leases(namespace).await.unwrap_err().to_string().contains("401");
    until("the first token is refused", is_refused).await;
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
}

/// A server's certificate has to be of the authority in the kubeconfig.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_is_refused() {
    let kubernetes = new().await;
    let kubeconfig = kubernetes.kubeconfig("admin-token").await;
    let text = std::fs::read_to_string(kubeconfig.path()).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cluster = json["clusters"][0]["cluster"].as_object_mut().unwrap();
    cluster.remove("certificate-authority-data");
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), Authority::new().pem()).unwrap();
    cluster.insert("certificate-authority".to_owned(), other.path().display().to_string().into());
    std::fs::write(kubeconfig.path(), json.to_string()).unwrap();
    let found = kubeconfig.backend().diagnose().await;
    let found = format!("{:?}", found.first().unwrap());
    assert!(found.contains("certificate"), "{found}");
}

/// Priority and fairness: a user who sends too many requests is refused with 429, and elections go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_user_leads_once_there_is_room() {
    let kubernetes = new().await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace());
    admin.create_service_account(namespace, "billing").await.unwrap();
    let user = format!("system:serviceaccount:{namespace}:billing");
    admin.allow(namespace, &user, &["get", "create", "update", "list"]).await.unwrap();
    let token = admin.request_token(namespace, "billing", Duration::from_secs(600)).await.unwrap();
    admin.throttle(&user).await.unwrap();
    let kubeconfig = kubernetes.kubeconfig(&token).await;
    let elector = elector(&kubeconfig);
    let client = admin.with_token(&token);
    let is_throttled = async || {
        let requests = (0..20).map(|_| client.leases(namespace));
        let answers = futures::future::join_all(requests).await;
        answers.into_iter().filter_map(Result::err).any(|error| error.to_string().contains("429"))
    };
    until("requests are refused", is_throttled).await;
    let campaign = tokio::spawn(async move {
        let leadership = elector.campaign("e").await.unwrap();
        (elector, leadership)
    });
    until("requests are refused again", is_throttled).await;
    let (_elector, leadership) = within("leading", campaign).await.unwrap();
    until("requests are refused while it leads", is_throttled).await;
    wait_for_heartbeats(&leadership).await;
}

/// Hazards K1, K5: a namespace that is deleted and created again has other Leases, and tokens rise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_when_the_namespace_is_created_again() {
    let kubernetes = new().await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace());
    let kubeconfig = kubernetes.kubeconfig("admin-token").await;
    let elector = elector(&kubeconfig);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    admin.delete_namespace(namespace).await.unwrap();
    admin.create_namespace(namespace).await.unwrap();
    within("the loss", leadership.lost()).await;
    let next = within("leading", elector.campaign("e")).await.unwrap();
    assert!(next.fencing_token() > leadership.fencing_token());
}
