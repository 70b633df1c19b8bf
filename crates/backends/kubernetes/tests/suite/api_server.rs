//! An API server for Leases and pods within the process, with the semantics of a real one: one counter of versions, conflicts, uids, watches with
//! bookmarks and 410, access rights, and faults.

mod pods;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_stream::stream;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{Method, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tenure_kubernetes::{KubernetesBackend, KubernetesConfig};
use tokio::sync::watch;

pub(crate) const NAMESPACE: &str = "elections";

/// How long a request may take in tests that are not about that: a busy machine is slow.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

/// What happens to the next request of a verb.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is executed, and not answered.
    LoseAnswer,
    /// It is answered when the gate opens, after it was executed.
    DelayAnswer(Gate),
    /// It is executed when the gate opens, and not answered: its client has given up.
    ExecuteLater(Gate),
    /// It is executed, and a proxy on the way answers with this code and `Retry-After`.
    ExecuteAndRefuse(u16, u64),
    /// It is not executed, and refused with this code and, if given, `Retry-After`.
    Refuse(u16, Option<u64>),
}

/// How watches fail.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BrokenWatch {
    /// They are closed at once.
    Closed,
    /// They show the present state and end with an error.
    Ended,
    /// They are refused with this code.
    Refused(u16),
}

/// Something that requests wait for.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn wait(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

#[derive(Clone, Debug)]
struct Event {
    version: u64,
    kind: &'static str,
    object: Value,
}

#[derive(Debug, Default)]
struct Cluster {
    version: u64,
    uids: u64,
    leases: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    events: Vec<Event>,
    /// Events up to this version are not kept.
    compacted: u64,
    /// Watches show nothing after this version, as a cache that lags.
    visible: Option<u64>,
    /// The number of bookmarks that each watch sends.
    bookmarks: u64,
    /// Watches that began earlier end.
    watch_generation: u64,
    broken_watches: Option<BrokenWatch>,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    forbidden: BTreeSet<String>,
    tokens: Option<BTreeSet<String>>,
    is_frozen: bool,
    requests: Vec<String>,
    /// The number of requests that were executed.
    executed: usize,
    open_watches: usize,
    /// The number of watches that were opened so far.
    opened_watches: usize,
}

/// The API server. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    port: u16,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
    kubeconfig: tempfile::NamedTempFile,
}

#[derive(Debug)]
struct Shared {
    cluster: Mutex<Cluster>,
    changed: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Changes the cluster, and wakes up what waits for that.
    fn change<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    async fn until(&self, condition: impl Fn(&Cluster) -> bool) {
        let mut changes = self.changed.subscribe();
        while !condition(&self.lock()) {
            changes.changed().await.unwrap();
        }
    }
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared {
            cluster: Mutex::new(Cluster { version: 1000, ..Cluster::default() }),
            changed: watch::Sender::new(0),
        });
        let (stop, mut stopped) = watch::channel(false);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let leases = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases";
        let pods = "/api/v1/namespaces/{namespace}/pods";
        let router = Router::new()
            .route(pods, get(pods::list))
            .route(&format!("{pods}/{{name}}"), get(pods::read).patch(pods::patch))
            .route(leases, get(list_or_watch).post(create))
            .route(&format!("{leases}/{{name}}"), get(read).put(replace))
            .route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", post(review))
            .route("/version", get(|| async { Json(json!({ "gitVersion": "v1.35.0" })) }))
            .with_state(Arc::clone(&shared));
        // In a runtime of its own: the suite counts the tasks of its runtime.
        let thread = std::thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = async { axum::serve(listener, router).await } => served.unwrap(),
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
        });
        Self {
            shared,
            port,
            stop,
            thread: Some(thread.unwrap()),
            kubeconfig: tempfile::NamedTempFile::new().unwrap(),
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The configuration of a client of this server.
    pub(crate) fn config(&self) -> KubernetesConfig {
        write_kubeconfig(self.kubeconfig.path(), &self.endpoint(), "secret");
        KubernetesConfig::new().kubeconfig(self.kubeconfig.path()).attempt_timeout(PATIENT)
    }

    /// A client of this server.
    pub(crate) fn backend(&self) -> KubernetesBackend {
        KubernetesBackend::new(self.config()).unwrap()
    }

    /// The next request of this verb has this fault.
    pub(crate) fn inject(&self, verb: &'static str, fault: Fault) {
        self.shared.lock().faults.entry(verb).or_default().push_back(fault);
    }

    /// The number of faults that no request has had yet.
    pub(crate) fn faults_left(&self) -> usize {
        self.shared.lock().faults.values().map(VecDeque::len).sum()
    }

    pub(crate) fn forbid(&self, verb: &str) {
        self.shared.lock().forbidden.insert(verb.to_owned());
    }

    pub(crate) fn allow(&self, verb: &str) {
        self.shared.lock().forbidden.remove(verb);
    }

    /// Only this bearer token is accepted from now on.
    pub(crate) fn accept_token(&self, token: &str) {
        self.shared.lock().tokens = Some([token.to_owned()].into());
    }

    /// Answers nothing until it is thawed; then executes what has been received.
    pub(crate) fn freeze(&self) {
        self.shared.change(|cluster| cluster.is_frozen = true);
    }

    pub(crate) fn thaw(&self) {
        self.shared.change(|cluster| cluster.is_frozen = false);
    }

    /// The cache of watches stands still, or catches up.
    pub(crate) fn stop_watches(&self, stopped: bool) {
        self.shared.change(|cluster| cluster.visible = stopped.then_some(cluster.version));
    }

    /// All watches fail that begin from now on, or none does.
    pub(crate) fn break_watches(&self, how: Option<BrokenWatch>) {
        self.shared.lock().broken_watches = how;
    }

    /// Sends a bookmark by every watch.
    pub(crate) fn send_bookmarks(&self) {
        self.shared.change(|cluster| {
            cluster.version += 1;
            cluster.bookmarks += 1;
        });
    }

    /// Ends all watches.
    pub(crate) fn end_watches(&self) {
        self.shared.change(|cluster| cluster.watch_generation += 1);
    }

    /// Forgets all events.
    pub(crate) fn compact(&self) {
        self.shared.change(|cluster| {
            cluster.version += 1;
            cluster.compacted = cluster.version;
        });
    }

    /// The number of requests of this verb so far.
    pub(crate) fn count(&self, verb: &str) -> usize {
        self.shared.lock().requests.iter().filter(|request| *request == verb).count()
    }

    /// The number of requests that were executed so far.
    pub(crate) fn executed(&self) -> usize {
        self.shared.lock().executed
    }

    pub(crate) fn open_watches(&self) -> usize {
        self.shared.lock().open_watches
    }

    /// Whether one watch is open, and it is at least this one.
    pub(crate) fn is_watch_open(&self, number: usize) -> bool {
        let cluster = self.shared.lock();
        cluster.open_watches == 1 && cluster.opened_watches >= number
    }

    /// Waits until a condition on the requests holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let waiting = async {
            while !condition(self) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    pub(crate) fn lease(&self, name: &str) -> Option<Value> {
        self.shared.lock().leases.get(name).cloned()
    }

    pub(crate) fn leases(&self) -> Vec<Value> {
        self.shared.lock().leases.values().cloned().collect()
    }

    pub(crate) fn holder(&self, name: &str) -> String {
        let lease = self.lease(name).unwrap_or_default();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn spec(&self, name: &str) -> Value {
        self.lease(name).expect("the lease exists")["spec"].clone()
    }

    pub(crate) fn annotation(&self, lease: &str, name: &str) -> Option<String> {
        Some(self.lease(lease)?["metadata"]["annotations"][name].as_str()?.to_owned())
    }

    pub(crate) fn version_of(&self, name: &str) -> u64 {
        version(&self.lease(name).expect("the lease exists")).expect("it has a version")
    }

    /// Changes a Lease as another program does, and creates it if there is none.
    pub(crate) fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        self.shared.change(|cluster| {
            let found = cluster.leases.get(name).cloned();
            let is_new = found.is_none();
            let mut lease =
                found.unwrap_or_else(|| cluster.fresh(json!({ "metadata": { "name": name }, "spec": {} })));
            edit(&mut lease);
            cluster.store(name, lease, if is_new { "ADDED" } else { "MODIFIED" });
        });
    }

    pub(crate) fn delete(&self, name: &str) {
        self.shared.change(|cluster| cluster.delete(name));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A client by a kubeconfig.
pub(crate) fn backend_by(kubeconfig: &std::path::Path, attempt_timeout: Duration) -> KubernetesBackend {
    let config = KubernetesConfig::new().kubeconfig(kubeconfig).attempt_timeout(attempt_timeout);
    KubernetesBackend::new(config).unwrap()
}

pub(crate) fn write_kubeconfig(path: &std::path::Path, endpoint: &str, token: &str) {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": { "server": format!("http://{endpoint}") } }],
        "users": [{ "name": "test", "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": NAMESPACE } }],
    });
    std::fs::write(path, kubeconfig.to_string()).unwrap();
}

fn version(lease: &Value) -> Option<u64> {
    lease["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

impl Cluster {
    fn fresh(&mut self, mut lease: Value) -> Value {
        self.uids += 1;
        lease["apiVersion"] = "coordination.k8s.io/v1".into();
        lease["kind"] = "Lease".into();
        lease["metadata"]["uid"] = format!("00000000-0000-0000-0000-{:012}", self.uids).into();
        lease["metadata"]["namespace"] = NAMESPACE.into();
        lease
    }

    fn store(&mut self, name: &str, mut lease: Value, kind: &'static str) -> Value {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.leases.insert(name.to_owned(), lease.clone());
        self.events.push(Event { version: self.version, kind, object: lease.clone() });
        lease
    }

    fn delete(&mut self, name: &str) {
        let mut lease = self.leases.remove(name).expect("the lease exists");
        self.version += 1;
        lease["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.events.push(Event { version: self.version, kind: "DELETED", object: lease });
    }

    fn execute(&mut self, request: &Request) -> Response {
        self.executed += 1;
        let Request { verb, name, body } = request;
        match *verb {
            "get" => match self.leases.get(name) {
                Some(lease) => Json(lease.clone()).into_response(),
                None => status(404, "NotFound", "not found", name),
            },
            "create" => {
                let lease = body.clone();
                let name = lease["metadata"]["name"].as_str().unwrap().to_owned();
                if self.leases.contains_key(&name) {
                    return status(409, "AlreadyExists", "already exists", &name);
                }
                if let Some(refused) = invalid(&lease) {
                    return refused;
                }
                let lease = self.fresh(lease);
                (StatusCode::CREATED, Json(self.store(&name, lease, "ADDED"))).into_response()
            }
            "update" => {
                let Some(found) = self.leases.get(name) else {
                    // `AllowCreateOnUpdate` holds for Leases: without a uid this creates one, whatever version is named.
                    if !body["metadata"]["uid"].is_null() {
                        let failed = "StorageError: invalid object: Precondition failed: UID in precondition";
                        return status(409, "Conflict", failed, name);
                    }
                    let lease = self.fresh(body.clone());
                    return (StatusCode::CREATED, Json(self.store(name, lease, "ADDED"))).into_response();
                };
                let (given, metadata) = (&body["metadata"], &found["metadata"]);
                for field in ["uid", "resourceVersion"] {
                    if !given[field].is_null() && given[field] != metadata[field] {
                        return status(409, "Conflict", "the object has been modified", name);
                    }
                }
                if let Some(refused) = invalid(body) {
                    return refused;
                }
                let mut lease = body.clone();
                lease["apiVersion"] = found["apiVersion"].clone();
                lease["kind"] = found["kind"].clone();
                lease["metadata"]["uid"] = metadata["uid"].clone();
                lease["metadata"]["namespace"] = metadata["namespace"].clone();
                lease["metadata"]["resourceVersion"] = metadata["resourceVersion"].clone();
                // A write that changes nothing leaves the version.
                if lease == *found {
                    return Json(lease).into_response();
                }
                Json(self.store(name, lease, "MODIFIED")).into_response()
            }
            verb => unreachable!("{verb}"),
        }
    }
}

/// What a real server refuses of a Lease's spec and annotations.
fn invalid(lease: &Value) -> Option<Response> {
    let spec = &lease["spec"];
    let is_positive = |field: &str, least| spec[field].as_i64().is_none_or(|value| value >= least);
    let is_time = |field: &str| {
        spec[field]
            .as_str()
            .is_none_or(|time| time.len() == "2020-01-01T00:00:00.000000Z".len() && time.ends_with('Z'))
    };
    let annotations = lease["metadata"]["annotations"].as_object();
    let size: usize = annotations
        .map_or(0, |all| all.iter().map(|(name, value)| name.len() + value.as_str().unwrap().len()).sum());
    let name = lease["metadata"]["name"].as_str().unwrap();
    let is_legal = is_positive("leaseDurationSeconds", 1)
        && is_positive("leaseTransitions", 0)
        && is_time("acquireTime")
        && is_time("renewTime")
        && size <= 256 << 10
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'));
    (!is_legal).then(|| status(422, "Invalid", "Lease is invalid", name))
}

#[derive(Clone, Debug)]
struct Request {
    verb: &'static str,
    name: String,
    body: Value,
}

fn status(code: u16, reason: &str, message: &str, name: &str) -> Response {
    let details = json!({ "name": name, "group": "coordination.k8s.io", "kind": "leases" });
    let message = format!("leases.coordination.k8s.io {name:?}: {message}");
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "details": details, "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

type Context = State<Arc<Shared>>;

async fn read(shared: Context, path: Path<(String, String)>, headers: axum::http::HeaderMap) -> Response {
    let request = Request { verb: "get", name: path.0.1, body: Value::Null };
    handle(&shared, request, &headers).await
}

async fn replace(
    shared: Context,
    path: Path<(String, String)>,
    headers: axum::http::HeaderMap,
    body: Bytes,
) -> Response {
    let request = Request { verb: "update", name: path.0.1, body: serde_json::from_slice(&body).unwrap() };
    handle(&shared, request, &headers).await
}

async fn create(shared: Context, headers: axum::http::HeaderMap, body: Bytes) -> Response {
    let request =
        Request { verb: "create", name: String::new(), body: serde_json::from_slice(&body).unwrap() };
    handle(&shared, request, &headers).await
}

/// Counts the request, and checks its token and its verb. Returns the refusal.
fn admit(
    shared: &Shared,
    verb: &'static str,
    name: &str,
    headers: &axum::http::HeaderMap,
) -> Option<Response> {
    shared.change(|cluster| {
        cluster.requests.push(verb.to_owned());
        let token = headers.get("authorization").and_then(|it| it.to_str().ok()?.strip_prefix("Bearer "));
        if cluster.tokens.as_ref().is_some_and(|known| token.is_none_or(|token| !known.contains(token))) {
            return Some(status(401, "Unauthorized", "Unauthorized", ""));
        }
        let message =
            format!("User \"system:serviceaccount:{NAMESPACE}:app\" cannot {verb} resource \"leases\"");
        cluster.forbidden.contains(verb).then(|| status(403, "Forbidden", &message, name))
    })
}

async fn handle(shared: &Arc<Shared>, request: Request, headers: &axum::http::HeaderMap) -> Response {
    if let Some(refused) = admit(shared, request.verb, &request.name, headers) {
        return refused;
    }
    let fault = next_fault(shared, request.verb);
    if let Some(Fault::Refuse(code, retry_after)) = fault {
        return refuse(code, retry_after);
    }
    // Its client may give up.
    let executing = Arc::clone(shared);
    if let Some(Fault::ExecuteLater(gate)) = fault {
        tokio::spawn(async move {
            gate.wait().await;
            executing.change(|cluster| cluster.execute(&request));
        });
        return broken_off();
    }
    let executed = tokio::spawn(async move {
        executing.until(|cluster| !cluster.is_frozen).await;
        executing.change(|cluster| cluster.execute(&request))
    });
    let answer = executed.await.unwrap();
    match fault {
        Some(Fault::LoseAnswer) => return broken_off(),
        Some(Fault::ExecuteAndRefuse(code, seconds)) => {
            let mut refused = (StatusCode::from_u16(code).unwrap(), "upstream connect error").into_response();
            refused.headers_mut().insert(RETRY_AFTER, seconds.to_string().parse().unwrap());
            return refused;
        }
        Some(Fault::DelayAnswer(gate)) => gate.wait().await,
        _ => {}
    }
    answer
}

fn next_fault(shared: &Shared, verb: &str) -> Option<Fault> {
    shared.change(|cluster| cluster.faults.get_mut(verb).and_then(VecDeque::pop_front))
}

/// As API priority and fairness answers: no `Status`.
fn refuse(code: u16, retry_after: Option<u64>) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    let mut refused = (code, "Too many requests, please try again later.").into_response();
    if let Some(seconds) = retry_after {
        refused.headers_mut().insert(RETRY_AFTER, seconds.to_string().parse().unwrap());
    }
    refused
}

/// An answer that says nothing: the connection breaks.
fn broken_off() -> Response {
    let error = std::io::Error::other("the connection breaks");
    Response::new(Body::from_stream(futures::stream::iter([Err::<Bytes, _>(error)])))
}

async fn list_or_watch(
    shared: Context,
    query: Query<BTreeMap<String, String>>,
    headers: axum::http::HeaderMap,
) -> Response {
    let is_watch = query.get("watch").is_some_and(|it| it == "true");
    let verb = if is_watch { "watch" } else { "list" };
    if let Some(refused) = admit(&shared, verb, "", &headers) {
        return refused;
    }
    if let Some(Fault::Refuse(code, retry_after)) = next_fault(&shared, verb) {
        return refuse(code, retry_after);
    }
    shared.until(|cluster| !cluster.is_frozen).await;
    if !is_watch {
        let cluster = shared.lock();
        let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let after = query.get("continue").cloned().unwrap_or_default();
        let mut rest = cluster.leases.iter().filter(|(name, _)| **name > after);
        let items: Vec<_> = rest.by_ref().take(limit).collect();
        let next =
            rest.next().and_then(|_| items.last()).map(|(name, _)| (*name).clone()).unwrap_or_default();
        let items: Vec<_> = items.into_iter().map(|(_, lease)| lease.clone()).collect();
        let metadata = json!({ "resourceVersion": cluster.version.to_string(), "continue": next });
        return Json(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "metadata": metadata, "items": items,
        }))
        .into_response();
    }
    let broken = shared.lock().broken_watches;
    match broken {
        Some(BrokenWatch::Refused(code)) => status(code, "InternalError", "the watch fails", ""),
        Some(BrokenWatch::Closed) => Response::new(Body::empty()),
        Some(BrokenWatch::Ended) => {
            let ended = json!({ "type": "ERROR", "object": { "kind": "Status", "code": 500 } });
            let added = shared.lock().leases.values().next().cloned();
            let added = json!({ "type": "ADDED", "object": added });
            Response::new(Body::from(format!("{added}\n{ended}\n")))
        }
        None => watch_lease(Arc::clone(&shared), &query),
    }
}

fn watch_lease(shared: Arc<Shared>, query: &BTreeMap<String, String>) -> Response {
    let name = query["fieldSelector"].strip_prefix("metadata.name=").unwrap().to_owned();
    assert_eq!(query["allowWatchBookmarks"], "true");
    let from: Option<u64> = query.get("resourceVersion").map(|version| version.parse().unwrap());
    let line = |kind: &str, object: &Value| -> Result<String, std::io::Error> {
        Ok(format!("{}\n", json!({ "type": kind, "object": object })))
    };
    let body = stream! {
        let mut changes = shared.changed.subscribe();
        let open = OpenWatch::new(&shared);
        let OpenWatch { generation, mut bookmarks, compacted, .. } = open;
        if from.is_some_and(|from| from < compacted) {
            let object = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version" });
            yield line("ERROR", &object);
            return;
        }
        let mut sent = from;
        loop {
            let (lines, ends) = {
                let cluster = shared.lock();
                let visible = cluster.visible.unwrap_or(u64::MAX);
                let mut lines = Vec::new();
                let is_named = |object: &Value| object["metadata"]["name"] == *name;
                let from = sent.unwrap_or_else(|| {
                    // The present state, of the cache.
                    let known = cluster.events.iter().rev().find(|event| event.version <= visible && is_named(&event.object));
                    if let Some(event) = known.filter(|event| event.kind != "DELETED") {
                        lines.push(line("ADDED", &event.object));
                    }
                    cluster.version.min(visible)
                });
                for event in cluster.events.iter().filter(|it| it.version > from && it.version <= visible) {
                    if is_named(&event.object) {
                        lines.push(line(event.kind, &event.object));
                    }
                }
                sent = Some(cluster.version.min(visible).max(from));
                if std::mem::replace(&mut bookmarks, cluster.bookmarks) != cluster.bookmarks {
                    let version = cluster.version.min(visible).to_string();
                    lines.push(line("BOOKMARK", &json!({ "kind": "Lease", "metadata": { "resourceVersion": version } })));
                }
                (lines, cluster.watch_generation != generation)
            };
            for line in lines {
                yield line;
            }
            if ends || changes.changed().await.is_err() {
                return;
            }
        }
    };
    Response::new(Body::from_stream(body))
}

/// Counts a watch while it is open.
struct OpenWatch {
    shared: Arc<Shared>,
    generation: u64,
    bookmarks: u64,
    compacted: u64,
}

impl OpenWatch {
    /// As of one moment, so that what a test does to an open watch comes after it.
    fn new(shared: &Arc<Shared>) -> Self {
        shared.change(|cluster| {
            cluster.open_watches += 1;
            cluster.opened_watches += 1;
            let Cluster { watch_generation: generation, bookmarks, compacted, .. } = *cluster;
            Self { shared: Arc::clone(shared), generation, bookmarks, compacted }
        })
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.shared.change(|cluster| cluster.open_watches -= 1);
    }
}

async fn review(shared: Context, method: Method, body: Bytes) -> Response {
    assert_eq!(method, Method::POST);
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    let attributes = &review["spec"]["resourceAttributes"];
    let verb = attributes["verb"].as_str().unwrap();
    let verb = if attributes["resource"] == "pods" { format!("{verb} pods") } else { verb.to_owned() };
    let allowed = !shared.lock().forbidden.contains(&verb);
    review["status"] = json!({ "allowed": allowed });
    (StatusCode::CREATED, Json(review)).into_response()
}
