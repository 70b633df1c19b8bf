//! What a refused request means.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde::Deserialize;
use tenure_core::spi::{
    BackendError,
    BackendErrorKind::{Forbidden, Invalid, Unauthorized, Unavailable},
};

/// How long to wait if the server does not say.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest time that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A request, for error messages: its verb, as in a Role, and the object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) verb: &'static str,
    pub(crate) name: Option<&'a str>,
    pub(crate) namespace: &'a str,
}

impl Request<'_> {
    /// `cannot get lease "billing" in namespace "default"`.
    pub(crate) fn failure(&self) -> String {
        let Self { verb, name, namespace } = self;
        match name {
            Some(name) => format!("cannot {verb} lease {name:?} in namespace {namespace:?}"),
            None => format!("cannot {verb} leases in namespace {namespace:?}"),
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
    let (kind, text) = match code {
        StatusCode::UNAUTHORIZED => (
            Unauthorized,
            format!(
                "{failure}: {text}; check the token or the certificate of the service account or the kubeconfig"
            ),
        ),
        // The namespace is being deleted, and may come again.
        StatusCode::FORBIDDEN if status.has_cause("NamespaceTerminating") => {
            (Unavailable, format!("{failure}: {text}"))
        }
        StatusCode::FORBIDDEN => {
            let verb = request.verb;
            let advice = format!(
                "grant the verb {verb:?} on the resource \"leases\" of the API group \"coordination.k8s.io\" by a Role and a RoleBinding in the namespace {:?}",
                request.namespace
            );
            (Forbidden, format!("{failure}: {text}; {advice}"))
        }
        StatusCode::NOT_FOUND if request.verb == "create" => {
            (Unavailable, format!("{failure}: {text}; does the namespace exist?"))
        }
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
