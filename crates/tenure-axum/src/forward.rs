//! Forwarding of requests from followers to the leader.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequestParts, OriginalUri, Request},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header,
        request::Parts,
        uri::{Authority, PathAndQuery, Scheme},
    },
    response::{IntoResponse, Response},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tenure_core::{Candidate, LeadershipHandle, StatusHandle};
use tower::{Layer, Service};
use tracing::debug;

/// Contains the elections in which a follower has forwarded this request, so that it is forwarded only once per election.
const FORWARDED_HEADER: HeaderName = HeaderName::from_static("tenure-forwarded");
/// Headers that apply to a single connection (RFC 9110, section 7.6.1).
pub(crate) const HOP_BY_HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// How long the leader may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After this time without data a connection is probed, so that the failure of the leader's machine is noticed during a
/// response.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// How long the leader may take to begin its response, by default.
const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The answer to a request that cannot be forwarded.
pub(crate) const UNSUPPORTED_URI: &str =
    "this request cannot be forwarded: its target has no path; use a path that begins with /";

/// A layer under which handlers run on the leader only. Followers forward requests to the leader, and return its response.
///
/// The address of the leader is its candidate's value: `http://HOST:PORT`, or `HOST:PORT` for short. A request causes no
/// request to the store.
///
/// - On the leader the handler runs under [`run`](LeadershipHandle::run). It gets the leadership with [`Leading`]. A
///   resignation waits for the handler. A handler that still runs just before the deadline is dropped, and the response is
///   503. The body of a response that is streamed is not covered by this. Whether this process leads is decided by its
///   clock.
/// - A follower forwards the method, path, query, headers and body unchanged. It does not forward upgrades (WebSockets).
///   Use [`redirecting`](Self::redirecting) for upgrades, and for leaders with an `https://` address.
/// - While no candidate leads, or leadership changes, the response is 503 with `Retry-After`. It is 502 if the leader does
///   not accept the connection or its value is not an address, and 504 if the leader does not begin its response in time
///   ([`with_timeout`](Self::with_timeout)). A request that was sent may have been carried out nevertheless.
/// - A request is forwarded once. If the process that receives it does not lead, its response is 503.
///
/// Every user who can write to the election in the store can direct the requests to an address of their choice.
#[derive(Clone)]
pub struct ForwardToLeader {
    status: StatusHandle,
    redirect: bool,
    timeout: Duration,
    client: Client<HttpConnector, Body>,
}

impl fmt::Debug for ForwardToLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardToLeader")
            .field("election", self.status.election())
            .field("redirect", &self.redirect)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl ForwardToLeader {
    /// A layer that forwards requests to the leader of the handle's election.
    pub fn new(status: StatusHandle) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(TCP_KEEPALIVE));
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self { status, redirect: false, timeout: DEFAULT_RESPONSE_TIMEOUT, client }
    }

    /// Responds with 307 Temporary Redirect to the leader instead of forwarding, for clients that can reach the leader.
    pub fn redirecting(mut self) -> Self {
        self.redirect = true;
        self
    }

    /// Sets how long the leader may take to begin its response. The default is 30 s.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn forward(&self, request: Request) -> Response {
        let own_election = self.status.election().as_str();
        if request.headers().get_all(&FORWARDED_HEADER).iter().any(|election| election == own_election) {
            return retry_later(
                "this process is not the leader: another one forwarded the request to it; try again",
            );
        }
        let status = self.status.get();
        let Some(leader) = status.leader.filter(|leader| leader.id != self.status.candidate_id().as_str())
        else {
            return retry_later("no candidate leads at the moment; try again");
        };
        let address = match LeaderAddress::from_candidate(&leader) {
            Ok(address) => address,
            Err(reason) => return text_response(StatusCode::BAD_GATEWAY, &reason),
        };
        let (mut parts, body) = request.into_parts();
        // A nested router removes its prefix from the path of the request.
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        let Some(uri) = address.target_uri(uri) else {
            return text_response(StatusCode::BAD_REQUEST, UNSUPPORTED_URI);
        };
        if self.redirect {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, uri.to_string())]).into_response();
        }
        if address.scheme != Scheme::HTTP {
            return text_response(
                StatusCode::BAD_GATEWAY,
                "cannot forward the request: the leader's address is https://; configure the followers to redirect",
            );
        }
        debug!(leader = leader.id, %uri, "forwarding a request to the leader");
        remove_hop_by_hop_headers(&mut parts.headers);
        if let Some(host) = parts.headers.remove(header::HOST) {
            parts.headers.entry(HeaderName::from_static("x-forwarded-host")).or_insert(host);
        }
        if let Ok(election) = HeaderValue::from_str(own_election) {
            parts.headers.append(FORWARDED_HEADER, election);
        }
        parts.uri = uri;
        parts.version = axum::http::Version::HTTP_11;
        let response = self.client.request(Request::from_parts(parts, body));
        match tokio::time::timeout(self.timeout, response).await {
            Ok(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                remove_hop_by_hop_headers(&mut parts.headers);
                Response::from_parts(parts, Body::new(body))
            }
            Ok(Err(error)) if error.is_connect() => {
                debug!(leader = leader.id, %error, "the leader does not accept connections");
                let mut response = text_response(
                    StatusCode::BAD_GATEWAY,
                    "the leader cannot be reached: it does not accept connections; try again",
                );
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                response
            }
            Ok(Err(_)) => text_response(
                StatusCode::BAD_GATEWAY,
                "the connection to the leader failed; the request may have been carried out",
            ),
            Err(_) => text_response(
                StatusCode::GATEWAY_TIMEOUT,
                "the leader did not respond in time; the request may have been carried out",
            ),
        }
    }
}

/// The address of a leader, from its candidate's value.
pub(crate) struct LeaderAddress {
    scheme: Scheme,
    authority: Authority,
}

impl LeaderAddress {
    pub(crate) fn from_candidate(leader: &Candidate) -> Result<Self, String> {
        let value = leader.value_lossy();
        let invalid = || {
            format!(
                "the leader's value, {:?}, is not an address: use http://HOST:PORT or HOST:PORT",
                value.chars().take(80).collect::<String>()
            )
        };
        let text = if value.contains("://") { value.to_string() } else { format!("http://{value}") };
        let parts = text.parse::<Uri>().map_err(|_| invalid())?.into_parts();
        let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
        // Only a host and a port are allowed: no user, path, query or fragment.
        let is_host_and_port = |authority: &Authority| {
            let has_plain_host = !authority.host().is_empty() && !authority.as_str().contains('@');
            has_plain_host && after_scheme.strip_suffix('/').unwrap_or(after_scheme) == authority.as_str()
        };
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority))
                if [Scheme::HTTP, Scheme::HTTPS].contains(&scheme) && is_host_and_port(&authority) =>
            {
                Ok(Self { scheme, authority })
            }
            _ => Err(invalid()),
        }
    }

    /// The URI of the same request at this address. `None` for a request of the whole server (`OPTIONS *`), because the
    /// asterisk would become part of the host.
    pub(crate) fn target_uri(&self, uri: &Uri) -> Option<Uri> {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let target = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        path.as_str().starts_with('/').then(|| target.path_and_query(path).build().ok())?
    }
}

/// Removes the headers that apply to a single connection.
pub(crate) fn remove_hop_by_hop_headers(headers: &mut HeaderMap) {
    let connection_options: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in connection_options.iter().chain(&HOP_BY_HOP_HEADERS) {
        headers.remove(name);
    }
}

fn text_response(code: StatusCode, text: &str) -> Response {
    (code, format!("{text}\n")).into_response()
}

/// A response after which the client should try again.
fn retry_later(text: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], format!("{text}\n")).into_response()
}

impl<S> Layer<S> for ForwardToLeader {
    type Service = ForwardService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ForwardService { forward: self.clone(), inner }
    }
}

/// The service that [`ForwardToLeader`] creates.
#[derive(Clone, Debug)]
pub struct ForwardService<S> {
    forward: ForwardToLeader,
    inner: S,
}

impl<S> Service<Request> for ForwardService<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if let Some(leadership) = self.forward.status.leadership() {
            request.extensions_mut().insert(Leading(leadership.clone()));
            let handling = self.inner.call(request);
            // `run` delays a resignation while the handler runs, and drops the handler before the deadline.
            return Box::pin(async move {
                leadership.run(handling).await.unwrap_or_else(|lost| {
                    Ok(retry_later(&format!("{lost}; the request may have been carried out in part")))
                })
            });
        }
        let forward = self.forward.clone();
        Box::pin(async move { Ok(forward.forward(request).await) })
    }
}

/// An extractor for the leadership under which a handler runs, for handlers under [`ForwardToLeader`].
///
/// The handler should call [`ensure`](LeadershipHandle::ensure) before each side effect, and send the fencing token with
/// it. Tasks that the handler spawns have to [`run`](LeadershipHandle::run) under the leadership themselves.
#[derive(Clone, Debug)]
pub struct Leading(pub LeadershipHandle);

/// The rejection of [`Leading`], 503: this process does not lead, or the handler is not under [`ForwardToLeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLeader;

impl IntoResponse for NotLeader {
    fn into_response(self) -> Response {
        retry_later("this process does not lead; try again")
    }
}

impl<S: Sync> FromRequestParts<S> for Leading {
    type Rejection = NotLeader;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().filter(|leading| leading.0.is_leader()).ok_or(NotLeader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(value: &str) -> Candidate {
        Candidate::decode("entry", "session", value.as_bytes(), None)
    }

    #[test]
    fn a_value_that_is_not_an_address_is_refused_with_the_reason() {
        for (value, expected) in [
            ("10.0.0.1:80", "http://10.0.0.1:80/a?b=c"),
            ("http://billing-1.internal:8080/", "http://billing-1.internal:8080/a?b=c"),
            ("https://billing", "https://billing/a?b=c"),
            ("[::1]:80", "http://[::1]:80/a?b=c"),
        ] {
            let address = LeaderAddress::from_candidate(&leader(value)).unwrap();
            assert_eq!(
                address.target_uri(&"/a?b=c".parse().unwrap()).unwrap().to_string(),
                expected,
                "{value}"
            );
        }
        for value in [
            "",
            "ftp://a",
            "http://a/path",
            "a b",
            "http://",
            ":80",
            "user:password@a",
            "http://a@b:80",
            "a#b",
            "a/?",
        ] {
            let error = LeaderAddress::from_candidate(&leader(value))
                .err()
                .unwrap_or_else(|| panic!("{value:?} was accepted"));
            assert!(error.contains("use http://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn hop_by_hop_headers_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, X-Own"), ("x-own", "1"), ("upgrade", "h2c"), ("accept", "*/*")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let not_ascii = HeaderValue::from_bytes(b"\xff, x-other").unwrap();
        headers.append(header::CONNECTION, not_ascii);
        headers.insert("x-other", HeaderValue::from_static("1"));
        remove_hop_by_hop_headers(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ACCEPT]);
    }
}
