//! The client: connects, sends requests, and bounds them in time.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use k8s_openapi::{List, api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;
use tenure_core::{
    internal::lock,
    spi::{
        BackendError,
        BackendErrorKind::{self, Invalid, Unavailable},
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{
    load::{Loaded, auth_error, describe, describe_auth, load},
    refusal::{Refusals, Request, Resource, Status, classify, retry_after},
};
use crate::{config::KubernetesConfig, record::Record};

/// How many requests are sent concurrently. Each has a connection of its own.
const MAX_CONCURRENT_REQUESTS: usize = 100;
/// How many Leases are watched concurrently. Each watch has a connection of its own; further Leases are polled.
const MAX_WATCHES: usize = 100;
/// How often a request is sent again that the server refuses because it has too many.
const MAX_THROTTLED_ATTEMPTS: usize = 5;
/// How often at most a credential plugin is run because requests are not answered.
const PLUGIN_INTERVAL: Duration = Duration::from_secs(5);
/// The size of a page when Leases are listed, and the largest number of pages.
const PAGE: usize = 500;
const MAX_PAGES: usize = 40;

/// A client of one namespace.
pub(crate) struct Client {
    config: KubernetesConfig,
    connected: Mutex<Option<Connected>>,
    /// The cluster's URL and the namespace, as they were first.
    cluster: OnceLock<(String, Arc<str>)>,
    /// Whether the configuration was usable once: what is unreadable later may be about to be replaced.
    was_connected: AtomicBool,
    /// The client that is being made.
    loading: tokio::sync::Mutex<Option<JoinHandle<Result<Loaded, BackendError>>>>,
    refusals: Refusals,
    requests: Semaphore,
    watches: Arc<Semaphore>,
}

/// A client of an API server. Its credentials are read from their files again as they rotate.
#[derive(Clone)]
struct Connected {
    kube: kube::Client,
    namespace: Arc<str>,
    /// The namespace of the service account, or of the context: that of the pod.
    pod_namespace: Arc<str>,
    /// When a credential plugin was run, if there is one.
    plugin_run: Option<Instant>,
}

/// A request to be sent.
struct Call<'a> {
    verb: &'static str,
    resource: Resource,
    name: Option<&'a str>,
    query: &'a str,
    body: Option<Vec<u8>>,
    /// For how long it waits, in total, if the server has too many requests.
    patience: Duration,
}

/// The answer to a request, with its body.
struct Answer {
    code: StatusCode,
    body: Vec<u8>,
    resource: Resource,
    namespace: Arc<str>,
}

/// Of a pod only the metadata are read.
#[derive(Deserialize)]
struct Pod {
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct Pods {
    items: Vec<Pod>,
}

impl<'a> Call<'a> {
    /// A request without a body, which waits for as long as the server asks for.
    fn new(verb: &'static str, resource: Resource, name: Option<&'a str>) -> Self {
        Self { verb, resource, name, query: "", body: None, patience: Duration::MAX }
    }
}

impl Connected {
    fn namespace_of(&self, resource: Resource) -> Arc<str> {
        Arc::clone(match resource {
            Resource::Leases => &self.namespace,
            Resource::Pods => &self.pod_namespace,
        })
    }
}

/// Why a watch could not be started.
pub(super) struct WatchRefused {
    /// The code of the answer, if there was one.
    pub(super) code: Option<StatusCode>,
    /// How long the server asks to wait.
    pub(super) wait: Option<Duration>,
    pub(super) error: BackendError,
}

impl From<BackendError> for WatchRefused {
    fn from(error: BackendError) -> Self {
        Self { code: None, wait: None, error }
    }
}

impl Client {
    pub(crate) fn new(config: KubernetesConfig) -> Self {
        Self {
            config,
            connected: Mutex::default(),
            cluster: OnceLock::new(),
            was_connected: AtomicBool::new(false),
            loading: tokio::sync::Mutex::default(),
            refusals: Refusals::default(),
            requests: Semaphore::new(MAX_CONCURRENT_REQUESTS),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
        }
    }

    pub(crate) fn config(&self) -> &KubernetesConfig {
        &self.config
    }

    /// Reads a Lease from a quorum: without a `resourceVersion` no cache answers. Every method with a `patience` waits no longer than
    /// that in total when the server has too many requests.
    pub(crate) async fn get(&self, name: &str, patience: Duration) -> Result<Option<Record>, BackendError> {
        let answer =
            self.request(Call { patience, ..Call::new("get", Resource::Leases, Some(name)) }).await?;
        match answer.code {
            StatusCode::OK => answer.record().map(Some),
            StatusCode::NOT_FOUND if Status::parse(&answer.body).is_object_absent(name) => Ok(None),
            _ => Err(self.refused(&answer, "get", Some(name))),
        }
    }

    /// Creates a Lease. `None` if it exists already.
    pub(crate) async fn create(
        &self,
        name: &str,
        lease: &Lease,
        patience: Duration,
    ) -> Result<Option<Record>, BackendError> {
        let body = encode(lease)?;
        let call = Call { body, patience, ..Call::new("create", Resource::Leases, Some(name)) };
        let answer = self.request(call).await?;
        match answer.code {
            StatusCode::OK | StatusCode::CREATED => answer.record().map(Some),
            StatusCode::CONFLICT => Ok(None),
            _ => Err(self.refused(&answer, "create", Some(name))),
        }
    }

    /// Replaces a Lease, if its uid and its `resourceVersion` are those of `lease`. `None` if they are not.
    ///
    /// A server creates a Lease that is absent by this verb, too, unless the request names a uid: then it is a conflict.
    pub(crate) async fn replace(
        &self,
        name: &str,
        lease: &Lease,
        patience: Duration,
    ) -> Result<Option<Record>, BackendError> {
        let body = encode(lease)?;
        let call = Call { body, patience, ..Call::new("update", Resource::Leases, Some(name)) };
        let answer = self.request(call).await?;
        match answer.code {
            StatusCode::OK => answer.record().map(Some),
            StatusCode::CONFLICT => Ok(None),
            StatusCode::NOT_FOUND if Status::parse(&answer.body).is_object_absent(name) => Ok(None),
            _ => Err(self.refused(&answer, "update", Some(name))),
        }
    }

    /// All Leases of the namespace.
    pub(crate) async fn list(&self) -> Result<Vec<Record>, BackendError> {
        let (mut found, mut after) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let query = format!("limit={PAGE}{after}");
            let answer =
                self.request(Call { query: &query, ..Call::new("list", Resource::Leases, None) }).await?;
            if answer.code != StatusCode::OK {
                return Err(self.refused(&answer, "list", None));
            }
            let page: List<Lease> = answer.parse()?;
            for lease in page.items {
                found.push(Record::new(lease)?);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                None => return Ok(found),
                Some(token) => {
                    let token: String = token.bytes().map(|byte| format!("%{byte:02X}")).collect();
                    after = format!("&continue={token}");
                }
            }
        }
        Err(BackendError::new(
            Invalid,
            format!("cannot list the elections: the namespace has more than {} leases", PAGE * MAX_PAGES),
        ))
    }

    /// The pod with this name.
    pub(crate) async fn pod(&self, name: &str) -> Result<ObjectMeta, BackendError> {
        let answer = self.request(Call::new("get", Resource::Pods, Some(name))).await?;
        match answer.code {
            StatusCode::OK => Ok(answer.parse::<Pod>()?.metadata),
            _ => Err(self.refused(&answer, "get", Some(name))),
        }
    }

    /// The pods with this label.
    pub(crate) async fn pods_with(&self, label: &str, value: &str) -> Result<Vec<ObjectMeta>, BackendError> {
        let query = format!("limit={PAGE}&labelSelector={}%3D{value}", label.replace('/', "%2F"));
        let answer = self.request(Call { query: &query, ..Call::new("list", Resource::Pods, None) }).await?;
        match answer.code {
            StatusCode::OK => Ok(answer.parse::<Pods>()?.items.into_iter().map(|pod| pod.metadata).collect()),
            _ => Err(self.refused(&answer, "list", None)),
        }
    }

    /// Changes the metadata of a pod by a merge patch. Returns whether it is still there, with the uid and the version that the patch names.
    pub(crate) async fn patch_pod(&self, name: &str, metadata: &Value) -> Result<bool, BackendError> {
        let body = Some(serde_json::json!({ "metadata": metadata }).to_string().into_bytes());
        let answer = self.request(Call { body, ..Call::new("patch", Resource::Pods, Some(name)) }).await?;
        match answer.code {
            StatusCode::OK => Ok(true),
            // Another uid is invalid: a patch may not change it.
            StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => Ok(false),
            _ => Err(self.refused(&answer, "patch", Some(name))),
        }
    }

    /// Whether the user may do `verb` with the resource. By a request that every user may send.
    pub(crate) async fn may(&self, verb: &str, resource: Resource) -> Result<bool, BackendError> {
        let connected = self.connect().await?;
        let namespace = connected.namespace_of(resource);
        let attributes = serde_json::json!({
            "namespace": &*namespace, "verb": verb, "group": resource.group(), "resource": resource.name(),
        });
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let body = Some(review.to_string().into_bytes());
        let call = Call { body, ..Call::new("review access to", resource, None) };
        let answer = self.send(&call, Method::POST, path).await?;
        let answer = self.collect(answer, resource, namespace).await?;
        let review: Value = answer.parse()?;
        let allowed = review["status"]["allowed"].as_bool();
        allowed.ok_or_else(|| self.refused(&answer, "review access to", None))
    }

    /// The version of the API server, such as `v1.35.0`.
    pub(crate) async fn version(&self) -> Result<String, BackendError> {
        let namespace = self.connect().await?.namespace;
        let call = Call::new("use the API server for", Resource::Leases, None);
        let answer = self.send(&call, Method::GET, "/version").await?;
        let answer = self.collect(answer, call.resource, namespace).await?;
        match answer.code {
            StatusCode::OK => {
                Ok(answer.parse::<Value>()?["gitVersion"].as_str().unwrap_or("unknown").to_owned())
            }
            // Candidates need no right to it.
            StatusCode::FORBIDDEN => Ok("it does not show its version to this user".to_owned()),
            _ => Err(self.refused(&answer, call.verb, None)),
        }
    }

    /// Starts a watch on a Lease. Without `from` it begins with the present state.
    pub(super) async fn watch(&self, name: &str, from: Option<&str>) -> Result<Body, WatchRefused> {
        // Of different lengths, so that the watches of many candidates do not end together.
        let seconds = fastrand::u32(240..300);
        let from = from.map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
        let query = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&fieldSelector=metadata.name%3D{name}{from}"
        );
        let namespace = self.connect().await?.namespace;
        let path = Resource::Leases.path(&namespace, None, &query);
        let call = Call { patience: Duration::ZERO, ..Call::new("watch", Resource::Leases, Some(name)) };
        let response = self.send(&call, Method::GET, &path).await?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let wait = retry_after(response.status(), response.headers());
        let answer = self.collect(response, call.resource, namespace).await?;
        let error = self.refused(&answer, "watch", Some(name));
        Err(WatchRefused { code: Some(answer.code), wait, error })
    }

    /// A permit for a watch, if there are few.
    pub(super) fn watch_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.watches).try_acquire_owned().ok()
    }

    /// Drops the connections.
    pub(crate) fn disconnect(&self) {
        *lock(&self.connected) = None;
    }

    /// Sends a request, and reads its answer.
    async fn request(&self, call: Call<'_>) -> Result<Answer, BackendError> {
        let Call { verb, resource, name, query, .. } = call;
        let namespace = self.connect().await?.namespace_of(resource);
        let (method, in_path) = match verb {
            "create" => (Method::POST, None),
            "update" => (Method::PUT, name),
            "patch" => (Method::PATCH, name),
            _ => (Method::GET, name),
        };
        let path = resource.path(&namespace, in_path, query);
        let failure = || Request { verb, resource, name, namespace: &namespace }.failure();
        let response = self
            .send(&call, method, &path)
            .await
            .map_err(|error| BackendError::with_source(error.kind(), failure(), error))?;
        self.collect(response, resource, Arc::clone(&namespace)).await
    }

    /// Sends a request, and waits for the head of its answer.
    ///
    /// If the server has too many requests, this one waits as the server asks for, and others go on: a renewal must not wait because a list
    /// was refused. A wait takes at most half of the patience that is left, so that the request is sent again in time.
    async fn send(
        &self,
        call: &Call<'_>,
        method: Method,
        path: &str,
    ) -> Result<http::Response<Body>, BackendError> {
        let mut is_renewed = false;
        let (mut attempts, mut patience) = (1, call.patience);
        loop {
            let response = self.attempt(&method, path, call.body.as_deref().unwrap_or_default()).await?;
            let code = response.status();
            if let Some(asked) = retry_after(code, response.headers()) {
                attempts += 1;
                // A write that is refused for want of room (429) was not executed. One that a proxy answers with 503 may have been.
                let is_repeatable = method == Method::GET || code == StatusCode::TOO_MANY_REQUESTS;
                if is_repeatable && attempts <= MAX_THROTTLED_ATTEMPTS && !patience.is_zero() {
                    // Later than asked for by a random time: others were refused at the same moment.
                    let wait = asked.mul_f64(1.0 + fastrand::f64() / 4.0).min(patience / 2);
                    patience -= wait;
                    sleep(wait).await;
                    continue;
                }
            }
            // The token may have expired before its file was read again.
            if code == StatusCode::UNAUTHORIZED && !is_renewed {
                is_renewed = true;
                self.disconnect();
                continue;
            }
            self.refusals.answered((call.resource, call.verb), call.name, code);
            return Ok(response);
        }
    }

    /// Sends a request once.
    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        body: &[u8],
    ) -> Result<http::Response<Body>, BackendError> {
        let _permit = self.requests.acquire().await;
        let connected = self.connect().await?;
        let content_type = match *method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = http::Request::builder().method(method.clone()).uri(path);
        let request = request
            .header(CONTENT_TYPE, content_type)
            .body(Body::from(body.to_vec()))
            .map_err(|error| BackendError::with_source(Unavailable, "making a request", error))?;
        let limit = self.config.attempt_timeout;
        match timeout(limit, connected.kube.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(not_sent(error)),
            Err(_) => {
                // The time may have gone by in the plugin, whose answer the client throws away then. It is run apart from requests.
                if connected.plugin_run.is_some_and(|run| run.elapsed() > PLUGIN_INTERVAL) {
                    self.disconnect();
                }
                Err(no_answer(limit))
            }
        }
    }

    /// The error of a request that was refused. One that was served before may be again soon.
    fn refused(&self, answer: &Answer, verb: &'static str, name: Option<&str>) -> BackendError {
        let request = Request { verb, resource: answer.resource, name, namespace: &answer.namespace };
        let error = classify(request, answer.code, &Status::parse(&answer.body));
        self.refusals.judge((answer.resource, verb), name, error)
    }

    async fn collect(
        &self,
        response: http::Response<Body>,
        resource: Resource,
        namespace: Arc<str>,
    ) -> Result<Answer, BackendError> {
        let limit = self.config.attempt_timeout;
        let code = response.status();
        let body = match timeout(limit, response.into_body().collect()).await {
            Ok(Ok(body)) => body.to_bytes().to_vec(),
            Ok(Err(error)) => {
                return Err(BackendError::with_source(Unavailable, "the answer broke off", error));
            }
            Err(_) => return Err(no_answer(limit)),
        };
        Ok(Answer { code, body, resource, namespace })
    }

    /// The client, made when it is needed first: in the engine's runtime, whose tasks it uses.
    ///
    /// On a thread for blocking calls, as files and credential plugins may hang. One that does is waited for by the next call, too: there is
    /// never more than one such thread.
    async fn connect(&self) -> Result<Connected, BackendError> {
        let known = || lock(&self.connected).clone();
        if let Some(connected) = known() {
            return Ok(connected);
        }
        let limit = self.config.attempt_timeout;
        let connecting = async {
            let mut loading = self.loading.lock().await;
            if let Some(connected) = known() {
                return Ok(connected);
            }
            let task = loading.get_or_insert_with(|| {
                let (config, kind) = (self.config.clone(), self.kind());
                spawn_blocking(move || load(&config, kind))
            });
            let loaded = task.await;
            *loading = None;
            self.adopt(loaded.map_err(|error| {
                BackendError::with_source(Unavailable, "reading the credentials was not finished", error)
            })??)
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| {
            let text = format!(
                "the credentials could not be read within {limit:?}: a file system or a credential plugin is slow"
            );
            Err(BackendError::new(Unavailable, text))
        })
    }

    /// Uses a client that was made, if it is of the same cluster as the one before.
    fn adopt(
        &self,
        Loaded { kube, cluster_url, default_namespace, has_plugin }: Loaded,
    ) -> Result<Connected, BackendError> {
        let namespace = self.config.namespace.as_ref().unwrap_or(&default_namespace);
        let namespace = Arc::from(namespace.as_str());
        // A kubeconfig may name another cluster later: its Leases are others, and somebody may lead by those of the first (hazard G34).
        let cluster = (cluster_url, Arc::clone(&namespace));
        if *self.cluster.get_or_init(|| cluster.clone()) != cluster {
            let text = "the kubeconfig names another cluster or namespace than before; restart all candidates at the same time";
            return Err(BackendError::new(Unavailable, text));
        }
        let plugin_run = has_plugin.then(Instant::now);
        let connected = Connected { kube, namespace, pod_namespace: default_namespace.into(), plugin_run };
        self.was_connected.store(true, Ordering::Relaxed);
        *lock(&self.connected) = Some(connected.clone());
        Ok(connected)
    }

    /// The kind of an error of the configuration: permanent, unless it was usable before.
    fn kind(&self) -> BackendErrorKind {
        if self.was_connected.load(Ordering::Relaxed) { Unavailable } else { Invalid }
    }
}

impl Answer {
    fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, BackendError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            BackendError::with_source(Unavailable, "the API server's answer is not understood", error)
        })
    }

    fn record(&self) -> Result<Record, BackendError> {
        Record::new(self.parse()?)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

fn encode(lease: &Lease) -> Result<Option<Vec<u8>>, BackendError> {
    let body = serde_json::to_vec(lease);
    body.map(Some).map_err(|error| BackendError::with_source(Unavailable, "encoding a Lease", error))
}

fn no_answer(limit: Duration) -> BackendError {
    BackendError::new(Unavailable, format!("the API server did not answer within {limit:?}"))
}

fn not_sent(error: kube::Error) -> BackendError {
    match &error {
        // The file of the token may be about to be replaced.
        kube::Error::Auth(_) => {
            BackendError::new(Unavailable, format!("no credentials: {}", describe(&error)))
        }
        _ => match auth_error(&error) {
            Some(auth) => BackendError::new(Unavailable, format!("no credentials: {}", describe_auth(auth))),
            None => BackendError::with_source(Unavailable, "the API server does not answer", error),
        },
    }
}
