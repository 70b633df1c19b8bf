//! Axum services on real TCP connections, with elections in the memory store.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::OriginalUri,
    http::HeaderMap,
    routing::{get, post},
};
use reqwest::{Client, StatusCode, redirect};
use serde_json::Value;
use tenure_axum::{FENCING_TOKEN, FenceLayer, Fencing, ForwardToLeader, Leading, Readiness};
use tenure_core::{
    CandidateId, Config, Elector, Fence, FencingToken, Leadership, StatusHandle, StoreElector,
    memory::MemoryStore,
};
use tokio::{net::TcpListener, sync::Notify};

struct Node {
    url: String,
    elector: Arc<StoreElector>,
    link: tenure_core::memory::Link,
    status: StatusHandle,
    /// Notified when the handler of `/gated` has started, and to let it continue.
    gate: (Arc<Notify>, Arc<Notify>),
}

impl Node {
    async fn start(
        store: &MemoryStore,
        id: &str,
        layer: impl FnOnce(ForwardToLeader) -> ForwardToLeader,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config::new()
            .with_ttl(Duration::from_secs(3))
            .with_id(CandidateId::new(id).unwrap())
            .with_value(address.to_string());
        let backend = store.backend();
        let link = backend.link().clone();
        let elector = Arc::new(StoreElector::new(Arc::new(backend), config).unwrap());
        let refresh = Duration::from_millis(100);
        let status = StatusHandle::with_refresh(elector.clone(), "e", refresh).unwrap();
        let own_id = id.to_owned();
        let gate = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let inner = Router::new().route(
            "/work",
            post(
                move |Leading(leadership): Leading,
                      OriginalUri(uri): OriginalUri,
                      headers: HeaderMap,
                      body: Bytes| async move {
                    let end_to_end_header =
                        headers.get("x-kept").and_then(|value| value.to_str().ok()).unwrap_or("-");
                    let token = leadership.fencing_token();
                    format!("{own_id} {token} {uri} {end_to_end_header} {} bytes", body.len())
                },
            ),
        );
        let (started, may_continue) = gate.clone();
        let gated = Router::new().route(
            "/gated",
            post(move |_: Leading| async move {
                started.notify_one();
                may_continue.notified().await;
                "handled"
            }),
        );
        let slow = Router::new().route("/slow", get(|_: Leading| std::future::pending::<()>()));
        let app = Router::new()
            .nest("/api", inner.merge(slow).merge(gated).layer(layer(ForwardToLeader::new(status.clone()))))
            .merge(tenure_axum::router(status.clone()))
            .nest("/lenient", tenure_axum::router_with(status.clone(), Readiness::WasKnown));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url: format!("http://{address}"), elector, link, status, gate }
    }

    async fn lead(&self) -> Leadership {
        self.elector.campaign("e").await.unwrap()
    }

    /// The status code and the body of an endpoint.
    async fn get_json(&self, path: &str) -> (StatusCode, Value) {
        let response = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// Waits until the status of this node shows this leader.
    async fn wait_for_leader(&mut self, leader: Option<&str>) {
        let shown = async {
            while self.status.get().leader.map(|leader| leader.id).as_deref() != leader
                || !self.status.get().known
            {
                assert!(self.status.changed().await);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), shown).await.unwrap();
    }
}

#[tokio::test]
async fn a_followers_requests_reach_the_leader() {
    let store = MemoryStore::new();
    let (mut a, mut b) =
        (Node::start(&store, "a", |layer| layer).await, Node::start(&store, "b", |layer| layer).await);
    b.wait_for_leader(None).await;
    let client = Client::new();
    let post = |url: &str| {
        let request = client.post(format!("{url}/api/work?x=1")).header("x-kept", "yes");
        request.header("connection", "x-own").header("x-own", "1").body(vec![7; 200_000]).send()
    };
    let vacant = post(&b.url).await.unwrap();
    assert_eq!(
        (vacant.status(), vacant.headers()["retry-after"].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "1")
    );

    let leadership = a.lead().await;
    a.wait_for_leader(Some("a")).await;
    b.wait_for_leader(Some("a")).await;
    let token = leadership.fencing_token();
    for url in [&a.url, &b.url] {
        let response = post(url).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.text().await.unwrap(), format!("a {token} /api/work?x=1 yes 200000 bytes"));
    }
    // A follower does not forward a request that was already forwarded.
    let forwarded = client.post(format!("{}/api/work", b.url)).header("tenure-forwarded", "e").send();
    assert_eq!(forwarded.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);

    let next = b.elector.campaign("e");
    leadership.resign().await.unwrap();
    let _second = next.await.unwrap();
    a.wait_for_leader(Some("b")).await;
    assert!(
        post(&a.url).await.unwrap().text().await.unwrap().starts_with("b "),
        "the former leader forwards to the new one"
    );
}

/// Hazards G1, G25: the clock decides whether a handler runs, not the last answer of the store.
#[tokio::test]
async fn a_leader_past_its_deadline_handles_no_request() {
    let store = MemoryStore::new();
    let mut node = Node::start(&store, "a", |layer| layer).await;
    let leadership = node.lead().await;
    node.wait_for_leader(Some("a")).await;
    node.link.cut();
    leadership.lost().await;
    let response = Client::new().post(format!("{}/api/work", node.url)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(node.get_json("/leading").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        node.get_json("/readyz").await.0,
        StatusCode::SERVICE_UNAVAILABLE,
        "the store does not answer, so that the node is not ready"
    );
    let (code, body) = node.get_json("/lenient/readyz").await;
    assert_eq!(
        (code, &body["store"]),
        (StatusCode::OK, &"retrying".into()),
        "routes that need no leader go on"
    );
    assert_eq!(node.get_json("/healthz").await.0, StatusCode::OK, "a restart would not help");
}

#[tokio::test]
async fn clients_that_can_reach_the_leader_are_redirected() {
    let store = MemoryStore::new();
    let a = Node::start(&store, "a", |layer| layer).await;
    let mut b = Node::start(&store, "b", ForwardToLeader::redirecting).await;
    let _leadership = a.lead().await;
    b.wait_for_leader(Some("a")).await;
    let client = Client::builder().redirect(redirect::Policy::none()).build().unwrap();
    let response = client.post(format!("{}/api/work?x=1", b.url)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(response.headers()["location"], format!("{}/api/work?x=1", a.url));
}

#[tokio::test]
async fn an_unreachable_leader_is_a_bad_gateway_and_a_slow_one_a_timeout() {
    let store = MemoryStore::new();
    let mut b = Node::start(&store, "b", |layer| layer.with_timeout(Duration::from_millis(100))).await;
    let a = Node::start(&store, "a", |layer| layer).await;
    let leadership = a.lead().await;
    b.wait_for_leader(Some("a")).await;
    let url = b.url.clone();
    let get = |path: &str| reqwest::get(format!("{url}{path}"));
    assert_eq!(get("/api/slow").await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    // A port on which no process listens, and a value that is not an address.
    for (value, expected) in
        [("127.0.0.1:1", "cannot be reached"), ("nowhere in particular", "is not an address")]
    {
        leadership.set_value(value).await.unwrap();
        let seen = async {
            while b.status.get().leader.is_none_or(|leader| leader.value != value.as_bytes()) {
                assert!(b.status.changed().await);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
        let response = get("/api/slow").await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let body = response.text().await.unwrap();
        assert!(body.contains(expected), "{body}");
    }
}

#[tokio::test]
async fn the_endpoints_show_who_leads_and_whether_this_node_is_ready() {
    let store = MemoryStore::new();
    let (mut a, mut b) =
        (Node::start(&store, "a", |layer| layer).await, Node::start(&store, "b", |layer| layer).await);
    b.wait_for_leader(None).await;
    let (code, body) = b.get_json("/leader").await;
    assert_eq!((code, &body["leader"], &body["election"]), (StatusCode::OK, &Value::Null, &"e".into()));
    let leadership = a.lead().await;
    let elector = b.elector.clone();
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    a.wait_for_leader(Some("a")).await;
    b.wait_for_leader(Some("a")).await;
    while b.status.get().queue_position != Some(2) {
        assert!(b.status.changed().await);
    }
    let (code, body) = b.get_json("/leader").await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(body["leader"]["id"], "a");
    assert_eq!(body["leader"]["value"], a.url.strip_prefix("http://").unwrap());
    assert_eq!(body["leader"]["fencing_token"], leadership.fencing_token().get());
    assert_eq!(
        (&body["leads"], &body["queue_position"], &body["candidates"]),
        (&false.into(), &2.into(), &2.into())
    );
    assert_eq!((&body["store"], &body["fencing_token"]), (&"connected".into(), &Value::Null));
    for (node, path, expected) in [
        (&a, "/leading", StatusCode::OK),
        (&b, "/leading", StatusCode::SERVICE_UNAVAILABLE),
        (&a, "/readyz", StatusCode::OK),
        (&b, "/readyz", StatusCode::OK),
        (&b, "/healthz", StatusCode::OK),
    ] {
        assert_eq!(node.get_json(path).await.0, expected, "{path}");
    }
    waiting.abort();
}

/// Guarantee S2: a resource refuses the write of a stale leader by its token, and names the problem of other tokens.
#[tokio::test]
async fn a_resource_refuses_stale_missing_and_malformed_tokens() {
    let fence = Arc::new(Fence::new());
    let app = Router::new()
        .route("/", post(|Fencing(token): Fencing| async move { token.to_string() }).get(|| async { "read" }))
        .layer(FenceLayer::new(fence.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = Client::new();
    let write = async |tokens: &[&str]| {
        let mut request = client.post(&url);
        for token in tokens {
            request = request.header(FENCING_TOKEN.as_str(), *token);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(write(&["7"]).await, (200, "7".to_owned()));
    assert_eq!(write(&["9"]).await, (200, "9".to_owned()));
    let (code, body) = write(&["7"]).await;
    assert_eq!((code, body.trim()), (412, "stale fencing token 7: 9 has been seen"));
    assert_eq!(write(&[]).await.0, 428);
    assert_eq!(write(&["9", "9"]).await.0, 400);
    let (code, body) = write(&["-1"]).await;
    assert!(code == 400 && body.contains("must be a decimal number"), "{body}");
    assert_eq!(reqwest::get(&url).await.unwrap().text().await.unwrap(), "read", "reading needs no token");
    assert_eq!(fence.highest(), FencingToken::new(9));
}

/// Hazard G5: a resignation waits for the handlers that run under the leadership.
#[tokio::test]
async fn a_resignation_waits_for_running_handlers() {
    let store = MemoryStore::new();
    let mut a = Node::start(&store, "a", |layer| layer).await;
    let b = Node::start(&store, "b", |layer| layer).await;
    let leadership = a.lead().await;
    a.wait_for_leader(Some("a")).await;
    let url = format!("{}/api/gated", a.url);
    let request =
        tokio::spawn(async move { Client::new().post(url).send().await.unwrap().text().await.unwrap() });
    a.gate.0.notified().await;
    let resigning = tokio::spawn(leadership.resign());
    assert!(b.elector.try_campaign("e").await.unwrap().is_none(), "the handler still runs");
    assert!(!resigning.is_finished());
    a.gate.1.notify_one();
    assert_eq!(request.await.unwrap(), "handled");
    resigning.await.unwrap().unwrap();
    assert!(b.elector.try_campaign("e").await.unwrap().is_some());
}
