//! Kubernetes with rights: roles, tokens, certificates, and a server that has too many requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::http::Method;
use tenure::{Config, Connection, Elector, Error};
use tenure_containers::{ContainerError, KubernetesServer, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{KubernetesNamespace, promptly, wait_for_heartbeats};

/// What a candidate needs at least.
const LEAST: [&str; 4] = ["get", "create", "update", "watch"];
const ACCOUNT: &str = "billing";

async fn connect(url: &str) -> Arc<dyn Elector> {
    let connected = tenure::connect_with(url, Config::new().with_ttl(Duration::from_secs(5))).await;
    connected.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// A token of the namespace's service account.
async fn account_token(namespace: &KubernetesNamespace) -> String {
    let token = namespace.admin.request_token(&namespace.name, ACCOUNT, Duration::from_secs(600)).await;
    token.unwrap_or_else(|error| panic!("{error}"))
}

async fn create_account(namespace: &KubernetesNamespace, verbs: &[&str]) {
    namespace.admin.create_service_account(&namespace.name, ACCOUNT).await.unwrap();
    let user = format!("system:serviceaccount:{}:{ACCOUNT}", namespace.name);
    namespace.admin.allow(&namespace.name, &user, verbs).await.unwrap();
}

/// A campaign that is refused within seconds.
async fn refusal(url: &str) -> Error {
    let elector = connect(url).await;
    let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
    assert_eq!(elector.status().connection, Connection::Refused);
    elector.close().await;
    refused
}

/// A service account that may do no more leads, hands over, and observes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_role_suffices() {
    let namespace = KubernetesNamespace::shared().await;
    create_account(&namespace, &LEAST).await;
    let url = namespace.url(&account_token(&namespace).await).await;
    let (first, second) = (connect(&url).await, connect(&url).await);
    let leadership = within("leading", first.campaign("e")).await.unwrap();
    let waiting = tokio::spawn({
        let second = Arc::clone(&second);
        async move { second.campaign("e").await }
    });
    until("the other has seen it", async || second.candidates("e").await.unwrap().len() == 1).await;
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap().resign().await.unwrap();
    let refused = first.elections().await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    assert!(refused.to_string().contains("grant the verb \"list\" on the resource \"leases\""), "{refused}");
    first.close().await;
    second.close().await;
}

/// Hazard G8: what is said when a verb is missing. Without `watch` the Lease is polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_verb_is_named() {
    let namespace = KubernetesNamespace::shared().await;
    namespace.admin.create_service_account(&namespace.name, ACCOUNT).await.unwrap();
    let user = format!("system:serviceaccount:{}:{ACCOUNT}", namespace.name);
    let url = namespace.url(&account_token(&namespace).await).await;
    for missing in ["get", "create"] {
        let verbs: Vec<_> = LEAST.into_iter().filter(|verb| *verb != missing).collect();
        namespace.admin.allow(&namespace.name, &user, &verbs).await.unwrap();
        let refused = refusal(&url).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        let text = refused.to_string();
        let advice = format!(
            "grant the verb {missing:?} on the resource \"leases\" of the API group \"coordination.k8s.io\" by a Role and a \
             RoleBinding in the namespace {:?}",
            namespace.name
        );
        assert!(text.contains(&advice) && text.contains(&user), "{text}");
    }
    namespace.admin.allow(&namespace.name, &user, &["get", "create", "update"]).await.unwrap();
    let (first, second) = (connect(&url).await, connect(&url).await);
    let leadership = within("leading", first.campaign("e")).await.unwrap();
    let waiting = tokio::spawn({
        let second = Arc::clone(&second);
        async move { second.campaign("e").await }
    });
    until("the other has seen it", async || second.candidates("e").await.unwrap().len() == 1).await;
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap().resign().await.unwrap();
    first.close().await;
    second.close().await;
}

/// A token that the server does not know is refused at once, and is not shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_refused() {
    let namespace = KubernetesNamespace::shared().await;
    let refused = refusal(&namespace.url("correct-horse-7").await).await;
    assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("check the token or the certificate") && !text.contains("horse"), "{text}");
}

/// A server of another authority is not talked to, and the reason is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_is_not_trusted() {
    let namespace = KubernetesNamespace::shared().await;
    let other = KubernetesServer::start(Version::Kubernetes120).await.unwrap();
    // The authority of the one, and the address of the other.
    let elector = connect(&namespace.url_at(&other.endpoint(), "admin-token").await).await;
    let campaign = tokio::spawn({
        let elector = Arc::clone(&elector);
        async move { elector.campaign("e").await }
    });
    until("it says why", async || {
        let error = elector.status().last_error.unwrap_or_default();
        error.contains("certificate")
    })
    .await;
    assert!(!campaign.is_finished());
    elector.close().await;
}

/// A projected token is replaced by another one, and the old one does not count any more: the leadership is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_replaced_is_read_again() {
    let namespace = KubernetesNamespace::shared().await;
    create_account(&namespace, &LEAST).await;
    let token = namespace.file("token", &account_token(&namespace).await);
    let mut kubeconfig: serde_json::Value = serde_json::from_str(
        &namespace.admin.kubeconfig(namespace.admin.endpoint(), "", &namespace.name).await.unwrap(),
    )
    .unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "tokenFile": token });
    let file = namespace.file("kubeconfig", &kubeconfig.to_string());
    let url = format!("kubernetes:///{}?kubeconfig={}", namespace.name, file.display());
    let elector = connect(&url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    wait_for_heartbeats(&leadership).await;
    // With the account its tokens end.
    let account = format!("/api/v1/namespaces/{}/serviceaccounts/{ACCOUNT}", namespace.name);
    namespace.admin.request(Method::DELETE, &account, None).await.unwrap();
    namespace.admin.create_service_account(&namespace.name, ACCOUNT).await.unwrap();
    namespace.file("token", &account_token(&namespace).await);
    for _ in 0..3 {
        wait_for_heartbeats(&leadership).await;
    }
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// Requests that are refused because the server has too many (429) cost no leadership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_throttled_keeps_leading() {
    let flags = ["--max-requests-inflight=2", "--max-mutating-requests-inflight=1"];
    let settings = flags.into_iter().fold(Default::default(), tenure_containers::KubernetesSettings::flag);
    let server = KubernetesServer::start_with(Version::Kubernetes120, &settings).await.unwrap();
    server.admin().throttle("alice").await.unwrap();
    let namespace = KubernetesNamespace::on(server.admin()).await;
    namespace
        .admin
        .allow(&namespace.name, "alice", &["get", "create", "update", "watch", "list"])
        .await
        .unwrap();
    let elector = connect(&namespace.url("alice-token").await).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let (alice, refused) = (namespace.admin.with_token("alice-token"), Arc::new(AtomicUsize::new(0)));
    let others: Vec<_> = (0..20)
        .map(|_| {
            let (alice, name, refused) = (alice.clone(), namespace.name.clone(), Arc::clone(&refused));
            tokio::spawn(async move {
                loop {
                    if let Err(ContainerError::Refused { message, .. }) = alice.leases(&name).await {
                        refused.fetch_add(usize::from(message.contains("429")), Relaxed);
                    }
                }
            })
        })
        .collect();
    until("requests are refused", async || refused.load(Relaxed) > 20).await;
    for _ in 0..3 {
        wait_for_heartbeats(&leadership).await;
    }
    others.iter().for_each(tokio::task::JoinHandle::abort);
    leadership.resign().await.unwrap();
    elector.close().await;
}
