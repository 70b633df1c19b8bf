//! What a refused request means.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde::Deserialize;
use tenure_core::{
    internal::lock,
    spi::{
        BackendError,
        BackendErrorKind::{Forbidden, Invalid, Unauthorized, Unavailable},
    },
};
use tokio::time::Instant;

/// How long to wait if the server does not say.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest time that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// How long a user that was served before may be refused until that is final. A control plane that restarts refuses everybody (403) before
/// it has read the roles, and a token that was rotated too late is refused (401). As long as for a password in a file (hazard G33).
const REFUSAL_RETRY_TIME: Duration = Duration::from_secs(120);
/// A verb on a resource.
type Verb = (Resource, &'static str);

/// Stands for the login in the place of a verb: a user that is unknown (401) may use none.
const LOGIN: Verb = (Resource::Leases, "login");

/// Which verbs were served, and since when objects are refused. A verb that never was may be missing in the Role: that is final at once.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Verbs>);

#[derive(Debug, Default)]
struct Verbs {
    /// Since when.
    served: BTreeMap<Verb, Instant>,
    /// By the object's name, because a Role may name objects.
    refused: BTreeMap<(Verb, String), Refused>,
}

/// Refusals in a row.
#[derive(Debug)]
struct Refused {
    first: Instant,
    last: Instant,
}

impl Refusals {
    /// Records an answer to a request with this verb.
    pub(crate) fn answered(&self, verb: Verb, name: Option<&str>, code: StatusCode) {
        let mut verbs = lock(&self.0);
        // These were let through. A server that is overloaded or fails may not have looked at the user.
        let is_served = code.is_success()
            || matches!(code, StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::GONE);
        if is_served || code == StatusCode::FORBIDDEN {
            verbs.serve(LOGIN, None);
        }
        if is_served {
            verbs.serve(verb, name);
        }
    }

    /// The error of a refusal: not permanent while it may pass by itself.
    pub(crate) fn judge(&self, verb: Verb, name: Option<&str>, error: BackendError) -> BackendError {
        let (verb, name) = match error.kind() {
            Unauthorized => (LOGIN, None),
            Forbidden => (verb, name),
            _ => return error,
        };
        let now = Instant::now();
        let mut verbs = lock(&self.0);
        // A candidate that has waited for long may need a verb for the first time while a server starts.
        let is_long_known = |since: &Instant| now - *since >= REFUSAL_RETRY_TIME;
        if !verbs.served.contains_key(&verb) && !verbs.served.get(&LOGIN).is_some_and(is_long_known) {
            return error;
        }
        // What was not asked for again in that time was not refused all the time.
        verbs.refused.retain(|_, refused| now - refused.last < REFUSAL_RETRY_TIME);
        let key = (verb, name.unwrap_or_default().to_owned());
        let refused = verbs.refused.entry(key).or_insert(Refused { first: now, last: now });
        refused.last = now;
        match REFUSAL_RETRY_TIME.checked_sub(now - refused.first).filter(|left| !left.is_zero()) {
            Some(left) => {
                let text = format!("refused, although allowed before; retrying for {} s", left.as_secs());
                BackendError::with_source(Unavailable, text, error)
            }
            None => error,
        }
    }
}

/// Whether a request was refused, so that the server has not executed it. Also if it is to be retried.
pub(crate) fn is_refused(error: &BackendError) -> bool {
    let Some(cause) = error.cause() else { return error.is_permanent() };
    let is_permanent = cause.downcast_ref().is_some_and(BackendError::is_permanent);
    error.is_permanent() || is_permanent || cause.is::<NotExecuted>()
}

/// What the server says of a request that it has not executed, and may execute later.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotExecuted(String);

impl Verbs {
    fn serve(&mut self, verb: Verb, name: Option<&str>) {
        self.served.entry(verb).or_insert_with(Instant::now);
        if !self.refused.is_empty() {
            self.refused.remove(&(verb, name.unwrap_or_default().to_owned()));
        }
    }
}

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Resource {
    Leases,
    Pods,
}

impl Resource {
    /// The name in a Role.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Leases => "leases",
            Self::Pods => "pods",
        }
    }

    fn singular(self) -> &'static str {
        match self {
            Self::Leases => "lease",
            Self::Pods => "pod",
        }
    }

    /// The API group in a Role.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Leases => "coordination.k8s.io",
            Self::Pods => "",
        }
    }

    /// The path of an object, or of all, in a namespace.
    pub(super) fn path(self, namespace: &str, name: Option<&str>, query: &str) -> String {
        let api = match self {
            Self::Leases => "/apis/coordination.k8s.io/v1",
            Self::Pods => "/api/v1",
        };
        let name = name.map(|name| format!("/{name}")).unwrap_or_default();
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        format!("{api}/namespaces/{namespace}/{}{name}{query}", self.name())
    }
}

/// A request, for error messages: its verb, as in a Role, and the object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) verb: &'static str,
    pub(crate) resource: Resource,
    pub(crate) name: Option<&'a str>,
    pub(crate) namespace: &'a str,
}

impl Request<'_> {
    /// `cannot get lease "billing" in namespace "default"`.
    pub(crate) fn failure(&self) -> String {
        let Self { verb, resource, name, namespace } = self;
        match name {
            Some(name) => {
                format!("cannot {verb} {} {name:?} in namespace {namespace:?}", resource.singular())
            }
            None => format!("cannot {verb} {} in namespace {namespace:?}", resource.name()),
        }
    }
}

/// The body of a refusal: a `Status`, or the text of a proxy.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    kind: String,
    message: String,
    reason: String,
    pub(crate) code: u16,
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    name: String,
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

impl Status {
    pub(crate) fn parse(body: &[u8]) -> Self {
        serde_json::from_slice(body).ok().filter(|status: &Self| status.kind == "Status").unwrap_or_else(
            || Self { message: String::from_utf8_lossy(body).into_owned(), ..Self::default() },
        )
    }

    /// Whether this says that the object does not exist, and not that there is no such API, or no such namespace.
    pub(crate) fn is_object_absent(&self, name: &str) -> bool {
        self.reason == "NotFound" && self.details.name == name
    }

    fn has_cause(&self, reason: &str) -> bool {
        self.details.causes.iter().any(|cause| cause.reason == reason)
    }
}

/// The error of a request that was refused.
pub(crate) fn classify(request: Request<'_>, code: StatusCode, status: &Status) -> BackendError {
    let failure = request.failure();
    let text = match status.message.trim() {
        "" => code.to_string(),
        message => format!("{}: {message}", code.as_u16()),
    };
    let not_executed =
        |text: String| BackendError::with_source(Unavailable, failure.clone(), NotExecuted(text));
    let (kind, text) = match code {
        StatusCode::UNAUTHORIZED => (
            Unauthorized,
            format!(
                "{failure}: {text}; check the token or the certificate of the service account or the kubeconfig"
            ),
        ),
        // The namespace is being deleted, and may come again.
        StatusCode::FORBIDDEN if status.has_cause("NamespaceTerminating") => return not_executed(text),
        StatusCode::FORBIDDEN => {
            let Request { verb, resource, namespace, .. } = request;
            let advice = format!(
                "grant the verb {verb:?} on the resource {:?} of the API group {:?} by a Role and a RoleBinding in the namespace {namespace:?}",
                resource.name(),
                resource.group()
            );
            (Forbidden, format!("{failure}: {text}; {advice}"))
        }
        StatusCode::NOT_FOUND if request.verb == "create" => {
            return not_executed(format!("{text}; does the namespace exist?"));
        }
        StatusCode::TOO_MANY_REQUESTS => return not_executed(text),
        StatusCode::BAD_REQUEST
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => (Invalid, format!("{failure}: {text}")),
        _ => (Unavailable, format!("{failure}: {text}")),
    };
    BackendError::new(kind, text)
}

/// How long the server asks to wait: with 429 in any case, as API priority and fairness answers, and with 503 if it says so.
pub(crate) fn retry_after(code: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let given = || {
        let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
    };
    match code {
        StatusCode::TOO_MANY_REQUESTS => Some(given().unwrap_or(DEFAULT_RETRY_AFTER)),
        StatusCode::SERVICE_UNAVAILABLE => given(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn refuse(refusals: &Refusals, verb: &'static str, code: u16) -> BackendError {
        refuse_object(refusals, verb, "e", code)
    }

    fn refuse_object(refusals: &Refusals, verb: &'static str, name: &str, code: u16) -> BackendError {
        let code = StatusCode::from_u16(code).unwrap();
        let (resource, name) = (Resource::Leases, Some(name));
        refusals.answered((resource, verb), name, code);
        let request = Request { verb, resource, name, namespace: "elections" };
        refusals.judge((resource, verb), name, classify(request, code, &Status::default()))
    }

    fn serve(refusals: &Refusals, verb: &'static str, name: &str) {
        refusals.answered((Resource::Leases, verb), Some(name), StatusCode::OK);
    }

    /// Hazard G33: what was allowed before is retried for two minutes, and what never was, not at all.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_after_two_minutes() {
        for (code, kind) in [(401, Unauthorized), (403, Forbidden)] {
            let refusals = Refusals::default();
            assert_eq!(refuse(&refusals, "get", code).kind(), kind);
            for _ in 0..2 {
                serve(&refusals, "get", "e");
                // Nor does an overloaded server say anything of the user.
                let overloaded = refuse(&refusals, "get", 429);
                assert!(overloaded.kind() == Unavailable && is_refused(&overloaded), "{overloaded}");
                let passing = refuse(&refusals, "get", code);
                assert_eq!(passing.kind(), Unavailable, "{passing}");
                assert!(passing.to_string().contains("retrying for 120 s"), "{passing}");
                assert!(is_refused(&passing));
                for _ in 0..119 {
                    advance(Duration::from_secs(1)).await;
                    assert_eq!(refuse(&refusals, "get", code).kind(), Unavailable);
                }
            }
            advance(Duration::from_secs(1)).await;
            assert_eq!(refuse(&refusals, "get", code).kind(), kind);
            // One long after that is another one.
            advance(REFUSAL_RETRY_TIME).await;
            assert_eq!(refuse(&refusals, "get", code).kind(), Unavailable);
        }
    }

    /// A verb that is missing in the Role is said at once, whatever other verbs were allowed.
    #[tokio::test]
    async fn a_verb_that_was_never_allowed_is_refused_at_once() {
        let refusals = Refusals::default();
        serve(&refusals, "get", "e");
        assert_eq!(refuse(&refusals, "update", 403).kind(), Forbidden);
        // The user is known, and may lose its token.
        assert_eq!(refuse(&refusals, "update", 401).kind(), Unavailable);
    }

    /// Unless the user was let in for long: a control plane that restarts refuses also what was not needed until then.
    #[tokio::test(start_paused = true)]
    async fn a_verb_that_is_needed_late_is_retried() {
        let refusals = Refusals::default();
        serve(&refusals, "get", "e");
        advance(REFUSAL_RETRY_TIME).await;
        assert_eq!(refuse(&refusals, "update", 403).kind(), Unavailable);
    }

    /// A Role may name Leases: one that is refused stays so while others are served.
    #[tokio::test(start_paused = true)]
    async fn the_refusal_of_one_object_is_final_although_others_are_served() {
        let refusals = Refusals::default();
        for _ in 0..120 {
            serve(&refusals, "update", "a");
            assert_eq!(refuse_object(&refusals, "update", "b", 403).kind(), Unavailable);
            advance(Duration::from_secs(1)).await;
        }
        serve(&refusals, "update", "a");
        assert_eq!(refuse_object(&refusals, "update", "b", 403).kind(), Forbidden);
    }
}
