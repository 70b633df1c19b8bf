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
use k8s_openapi::{List, api::coordination::v1::Lease};
use kube::{
    Config,
    client::{AuthError, Body},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
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
    time::{Instant, sleep_until, timeout},
};

use super::refusal::{Request, Status, classify, retry_after};
use crate::{config::KubernetesConfig, record::Record};

/// How many requests are sent concurrently. Each has a connection of its own.
const MAX_CONCURRENT_REQUESTS: usize = 100;
/// How many Leases are watched concurrently. Each watch has a connection of its own; further Leases are polled.
const MAX_WATCHES: usize = 100;
/// How often a request is sent again that the server refuses because it has too many.
const MAX_THROTTLED_ATTEMPTS: usize = 5;
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
    requests: Semaphore,
    watches: Arc<Semaphore>,
    /// No request is sent before, because the server has asked for that.
    throttled_until: Mutex<Option<Instant>>,
}

/// A client of an API server. Its credentials are read from their files again as they rotate.
#[derive(Clone)]
struct Connected {
    kube: kube::Client,
    namespace: Arc<str>,
}

/// The answer to a request, with its body.
struct Answer {
    code: StatusCode,
    body: Vec<u8>,
    namespace: Arc<str>,
}

impl Client {
    pub(crate) fn new(config: KubernetesConfig) -> Self {
        Self {
            config,
            connected: Mutex::default(),
            cluster: OnceLock::new(),
            was_connected: AtomicBool::new(false),
            requests: Semaphore::new(MAX_CONCURRENT_REQUESTS),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
            throttled_until: Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> &KubernetesConfig {
        &self.config
    }

    /// Reads a Lease from a quorum: without a `resourceVersion` no cache answers.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Record>, BackendError> {
        let answer = self.request("get", Some(name), "", None).await?;
        match answer.code {
            StatusCode::OK => answer.record().map(Some),
            StatusCode::NOT_FOUND if Status::parse(&answer.body).is_object_absent(name) => Ok(None),
            _ => Err(answer.refused("get", Some(name))),
        }
    }

    /// Creates a Lease. `None` if it exists already.
    pub(crate) async fn create(&self, name: &str, lease: &Lease) -> Result<Option<Record>, BackendError> {
        let answer = self.request("create", Some(name), "", Some(lease)).await?;
        match answer.code {
            StatusCode::OK | StatusCode::CREATED => answer.record().map(Some),
            StatusCode::CONFLICT => Ok(None),
            _ => Err(answer.refused("create", Some(name))),
        }
    }

    /// Replaces a Lease, if its uid and its `resourceVersion` are those of `lease`. `None` if they are not.
    pub(crate) async fn replace(&self, name: &str, lease: &Lease) -> Result<Option<Record>, BackendError> {
        let answer = self.request("update", Some(name), "", Some(lease)).await?;
        match answer.code {
            StatusCode::OK | StatusCode::CREATED => answer.record().map(Some),
            StatusCode::CONFLICT => Ok(None),
            StatusCode::NOT_FOUND if Status::parse(&answer.body).is_object_absent(name) => Ok(None),
            _ => Err(answer.refused("update", Some(name))),
        }
    }

    /// All Leases of the namespace.
    pub(crate) async fn list(&self) -> Result<Vec<Record>, BackendError> {
        let (mut found, mut after) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let query = format!("limit={PAGE}{after}");
            let answer = self.request("list", None, &query, None).await?;
            if answer.code != StatusCode::OK {
                return Err(answer.refused("list", None));
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

    /// Whether the user may do `verb` with Leases. By a request that every user may send.
    pub(crate) async fn may(&self, verb: &str) -> Result<bool, BackendError> {
        let namespace = self.connect().await?.namespace;
        let attributes = serde_json::json!({
            "namespace": &*namespace, "verb": verb, "group": "coordination.k8s.io", "resource": "leases",
        });
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.send(Method::POST, path, Some(review.to_string().into_bytes())).await?;
        let answer = self.collect(answer, namespace).await?;
        let review: Value = answer.parse()?;
        review["status"]["allowed"].as_bool().ok_or_else(|| answer.refused("review access to", None))
    }

    /// The version of the API server, such as `v1.35.0`.
    pub(crate) async fn version(&self) -> Result<String, BackendError> {
        let namespace = self.connect().await?.namespace;
        let answer = self.send(Method::GET, "/version", None).await?;
        let version: Value = self.collect(answer, namespace).await?.parse()?;
        Ok(version["gitVersion"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Starts a watch on a Lease; `Err` with the answer's code if it is refused. Without `from` it begins with the present state.
    pub(super) async fn watch(
        &self,
        name: &str,
        from: Option<&str>,
    ) -> Result<Result<Body, (StatusCode, BackendError)>, BackendError> {
        // Of different lengths, so that the watches of many candidates do not end together.
        let seconds = fastrand::u32(240..300);
        let from = from.map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
        let query = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&fieldSelector=metadata.name%3D{name}{from}"
        );
        let namespace = self.connect().await?.namespace;
        let path = path(&namespace, None, &query);
        let response = self.send(Method::GET, &path, None).await?;
        if response.status() == StatusCode::OK {
            return Ok(Ok(response.into_body()));
        }
        let answer = self.collect(response, namespace).await?;
        Ok(Err((answer.code, answer.refused("watch", Some(name)))))
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
    async fn request(
        &self,
        verb: &'static str,
        name: Option<&str>,
        query: &str,
        lease: Option<&Lease>,
    ) -> Result<Answer, BackendError> {
        let namespace = self.connect().await?.namespace;
        let (method, in_path) = match verb {
            "create" => (Method::POST, None),
            "update" => (Method::PUT, name),
            _ => (Method::GET, name),
        };
        let path = path(&namespace, in_path, query);
        let body = lease.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| BackendError::with_source(Unavailable, "encoding a Lease", error))?;
        let failure = || Request { verb, name, namespace: &namespace }.failure();
        let response = self
            .send(method, &path, body)
            .await
            .map_err(|error| BackendError::with_source(error.kind(), failure(), error))?;
        self.collect(response, Arc::clone(&namespace)).await
    }

    /// Sends a request, and waits for the head of its answer. Waits as the server asks for if it has too many requests.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<http::Response<Body>, BackendError> {
        let mut is_renewed = false;
        let mut attempts = 1;
        loop {
            self.wait_throttled().await;
            let _permit = self.requests.acquire().await;
            let connected = self.connect().await?;
            let request = http::Request::builder().method(method.clone()).uri(path);
            let request = request
                .header(CONTENT_TYPE, "application/json")
                .body(Body::from(body.clone().unwrap_or_default()))
                .map_err(|error| BackendError::with_source(Unavailable, "making a request", error))?;
            let limit = self.config.attempt_timeout;
            let response = match timeout(limit, connected.kube.send(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(not_sent(error)),
                Err(_) => return Err(no_answer(limit)),
            };
            if let Some(wait) = retry_after(response.status(), response.headers()) {
                self.throttle(Instant::now() + wait);
                attempts += 1;
                // A write that is refused for want of room (429) was not executed. One that a proxy answers with 503 may have been.
                let is_repeatable =
                    method == Method::GET || response.status() == StatusCode::TOO_MANY_REQUESTS;
                if is_repeatable && attempts <= MAX_THROTTLED_ATTEMPTS {
                    continue;
                }
            }
            // The token may have expired before its file was read again.
            if response.status() == StatusCode::UNAUTHORIZED && !is_renewed {
                is_renewed = true;
                self.disconnect();
                continue;
            }
            return Ok(response);
        }
    }

    async fn collect(
        &self,
        response: http::Response<Body>,
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
        Ok(Answer { code, body, namespace })
    }

    fn throttle(&self, until: Instant) {
        let mut throttled_until = lock(&self.throttled_until);
        *throttled_until = throttled_until.max(Some(until));
    }

    async fn wait_throttled(&self) {
        let until = *lock(&self.throttled_until);
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    /// The client, made when it is needed first: in the engine's runtime, whose tasks it uses.
    async fn connect(&self) -> Result<Connected, BackendError> {
        let known = lock(&self.connected).clone();
        if let Some(connected) = known {
            return Ok(connected);
        }
        let mut config = self.load().await?;
        // Waits as the server says, and knows what was sent: see `send`.
        config.default_retry = false;
        let namespace = self.config.namespace.as_ref().unwrap_or(&config.default_namespace);
        let namespace = Arc::from(namespace.as_str());
        // A kubeconfig may name another cluster later: its Leases are others, and somebody may lead by those of the first (hazard G34).
        let cluster = (config.cluster_url.to_string(), Arc::clone(&namespace));
        if *self.cluster.get_or_init(|| cluster.clone()) != cluster {
            let text = "the kubeconfig names another cluster or namespace than before; restart all candidates at the same time";
            return Err(BackendError::new(Unavailable, text));
        }
        let kube = kube::Client::try_from(config).map_err(|error| {
            BackendError::new(self.kind(), format!("connecting to Kubernetes: {}", describe(&error)))
        })?;
        let connected = Connected { kube, namespace };
        self.was_connected.store(true, Ordering::Relaxed);
        *lock(&self.connected) = Some(connected.clone());
        Ok(connected)
    }

    /// The kind of an error of the configuration: permanent, unless it was usable before.
    fn kind(&self) -> BackendErrorKind {
        if self.was_connected.load(Ordering::Relaxed) { Unavailable } else { Invalid }
    }

    /// Reads the credentials.
    async fn load(&self) -> Result<Config, BackendError> {
        if self.config.is_in_cluster() {
            return Config::incluster().map_err(|error| {
                BackendError::with_source(self.kind(), "reading the service account of this pod", error)
            });
        }
        let kubeconfig = match &self.config.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let unreadable = |error: KubeconfigError| {
            let file = self.config.kubeconfig.as_ref().map(|file| format!(" {}", file.display()));
            let what = format!("reading the kubeconfig{}", file.unwrap_or_default());
            // Its text repeats lines of the file, which has credentials.
            let reason = match error {
                KubeconfigError::Parse(_) => "it is not valid YAML, or not a kubeconfig".to_owned(),
                error => error.to_string(),
            };
            BackendError::new(self.kind(), format!("{what}: {reason}"))
        };
        let kubeconfig = kubeconfig.map_err(unreadable)?;
        let options = KubeConfigOptions { context: self.config.context.clone(), ..Default::default() };
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unreadable)
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

    fn refused(&self, verb: &'static str, name: Option<&str>) -> BackendError {
        classify(Request { verb, name, namespace: &self.namespace }, self.code, &Status::parse(&self.body))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

fn path(namespace: &str, name: Option<&str>, query: &str) -> String {
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases{name}{query}")
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

/// The error without what a credential plugin has printed.
fn describe(error: &kube::Error) -> String {
    auth_error(error).map_or_else(|| error.to_string(), describe_auth)
}

fn describe_auth(error: &AuthError) -> String {
    match error {
        // Nor its arguments, which may have a password.
        AuthError::AuthExecRun { out, .. } => format!("the credential plugin has failed ({})", out.status),
        AuthError::AuthExecParse(_) | AuthError::AuthExec(_) => {
            "the answer of the credential plugin is not understood".to_owned()
        }
        error => error.to_string(),
    }
}

/// The error of the credentials that is the cause of another, if one is.
fn auth_error(error: &kube::Error) -> Option<&AuthError> {
    if let kube::Error::Auth(error) = error {
        return Some(error);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        match (error.downcast_ref::<AuthError>(), error.downcast_ref::<kube::Error>()) {
            (Some(error), _) | (_, Some(kube::Error::Auth(error))) => return Some(error),
            _ => cause = error.source(),
        }
    }
    None
}
