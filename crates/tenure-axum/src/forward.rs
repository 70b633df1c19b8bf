//! Followers send requests to the leader.

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

/// Says in which elections a follower has sent this request on: nobody does so twice.
const FORWARDED: HeaderName = HeaderName::from_static("tenure-forwarded");
/// What concerns one connection only (RFC 9110, section 7.6.1).
pub(crate) const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// How long a leader is given to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// After how much silence a connection is probed, so that a leader whose machine is gone is noticed in mid-answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long a leader is given to begin its answer, unless said otherwise.
const ANSWER: Duration = Duration::from_secs(30);

/// A layer under which only the leader's handlers run: followers send their requests to the leader, and pass its answer back.
///
/// The leader is found by its candidate's value: `http://HOST:PORT`, or `HOST:PORT` for short. No store is asked for a request.
///
/// - On the leader the handler runs, under [`run`](LeadershipHandle::run): it finds the leadership by [`Leading`], a resignation waits for it, and it is dropped just
///   before the deadline, with 503. What the body of its response streams comes after that. Whether it leads is asked of the clock.
/// - A follower sends method, path, query, headers and body on, as they come. Upgrades (WebSockets) are not sent on: use
///   [`redirecting`](Self::redirecting) for them, and for leaders at `https://`.
/// - 503 with `Retry-After` while nobody leads or leadership moves; 502 when the leader does not accept or its value is no address;
///   504 when it does not begin its answer in time ([`with_timeout`](Self::with_timeout)). A request that was sent may have been carried out then.
/// - A request is sent on once: the one who gets it and does not lead answers 503.
///
/// Whoever may write to the election in the store decides where requests go.
#[derive(Clone)]
pub struct ForwardToLeader {
    status: StatusHandle,
    redirects: bool,
    timeout: Duration,
    client: Client<HttpConnector, Body>,
}

impl fmt::Debug for ForwardToLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardToLeader")
            .field("election", self.status.election())
            .field("redirects", &self.redirects)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl ForwardToLeader {
    /// A layer that sends requests on to the leader of the handle's election.
    pub fn new(status: StatusHandle) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self { status, redirects: false, timeout: ANSWER, client }
    }

    /// Answers with 307 Temporary Redirect to the leader instead: for clients that can reach it.
    pub fn redirecting(mut self) -> Self {
        self.redirects = true;
        self
    }

    /// How long the leader may take to begin its answer: 30 s by default.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn send(&self, request: Request) -> Response {
        let own = self.status.election().as_str();
        if request.headers().get_all(&FORWARDED).iter().any(|election| election == own) {
            return retry("this node was taken for the leader, and is not");
        }
        let status = self.status.get();
        let Some(leader) = status.leader.filter(|leader| leader.id != self.status.candidate().as_str())
        else {
            return retry("nobody leads at the moment");
        };
        let at = match Address::of(&leader) {
            Ok(at) => at,
            Err(why) => return answer(StatusCode::BAD_GATEWAY, &why),
        };
        let (mut parts, body) = request.into_parts();
        // Under a nested router the path has lost its beginning.
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        let Some(uri) = at.uri(uri) else {
            return answer(StatusCode::BAD_REQUEST, "this path cannot be sent on");
        };
        if self.redirects {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, uri.to_string())]).into_response();
        }
        if at.scheme != Scheme::HTTP {
            return answer(
                StatusCode::BAD_GATEWAY,
                "the leader is at https://, for which followers have to redirect",
            );
        }
        debug!(leader = leader.id, %uri, "sent on to the leader");
        end_to_end(&mut parts.headers);
        if let Some(host) = parts.headers.remove(header::HOST) {
            parts.headers.entry(HeaderName::from_static("x-forwarded-host")).or_insert(host);
        }
        if let Ok(own) = HeaderValue::from_str(own) {
            parts.headers.append(FORWARDED, own);
        }
        parts.uri = uri;
        parts.version = axum::http::Version::HTTP_11;
        let asked = self.client.request(Request::from_parts(parts, body));
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                end_to_end(&mut parts.headers);
                Response::from_parts(parts, Body::new(body))
            }
            Ok(Err(error)) if error.is_connect() => {
                debug!(leader = leader.id, %error, "the leader does not accept");
                let mut refused = answer(StatusCode::BAD_GATEWAY, "the leader cannot be reached");
                refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                refused
            }
            Ok(Err(_)) => {
                answer(StatusCode::BAD_GATEWAY, "the leader broke off; the request may have been carried out")
            }
            Err(_) => answer(
                StatusCode::GATEWAY_TIMEOUT,
                "the leader does not answer; the request may have been carried out",
            ),
        }
    }
}

/// Where a leader is.
pub(crate) struct Address {
    scheme: Scheme,
    authority: Authority,
}

impl Address {
    pub(crate) fn of(leader: &Candidate) -> Result<Self, String> {
        let value = leader.value_lossy();
        let wrong = || {
            format!(
                "the leader's value, {:?}, is no address: allowed are http://HOST:PORT and HOST:PORT",
                value.chars().take(80).collect::<String>()
            )
        };
        let text = if value.contains("://") { value.to_string() } else { format!("http://{value}") };
        let parts = text.parse::<Uri>().map_err(|_| wrong())?.into_parts();
        let behind = text.split_once("://").map_or("", |(_, behind)| behind);
        // Nothing but a host and its port: no user, no path, no query, no fragment.
        let bare = |authority: &Authority| {
            let host = !authority.host().is_empty() && !authority.as_str().contains('@');
            host && behind.strip_suffix('/').unwrap_or(behind) == authority.as_str()
        };
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority))
                if [Scheme::HTTP, Scheme::HTTPS].contains(&scheme) && bare(&authority) =>
            {
                Ok(Self { scheme, authority })
            }
            _ => Err(wrong()),
        }
    }

    /// The same request there; `None` for one of the whole server (`OPTIONS *`), whose asterisk would become part of the host.
    pub(crate) fn uri(&self, uri: &Uri) -> Option<Uri> {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let there = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        path.as_str().starts_with('/').then(|| there.path_and_query(path).build().ok())?
    }
}

/// Leaves the headers that are meant for whoever is at the end.
pub(crate) fn end_to_end(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn answer(code: StatusCode, text: &str) -> Response {
    (code, format!("{text}\n")).into_response()
}

/// It is worth trying again.
fn retry(text: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], format!("{text}\n")).into_response()
}

impl<S> Layer<S> for ForwardToLeader {
    type Service = ForwardService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ForwardService { forward: self.clone(), inner }
    }
}

/// What [`ForwardToLeader`] makes of a service.
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
            // Leadership is not handed over while handlers run, and they do not run past the deadline.
            return Box::pin(async move {
                leadership.run(handling).await.unwrap_or_else(|lost| {
                    Ok(retry(&format!("{lost}; the request may have been carried out in part")))
                })
            });
        }
        let forward = self.forward.clone();
        Box::pin(async move { Ok(forward.send(request).await) })
    }
}

/// The leadership under which a handler runs: an extractor, for handlers under [`ForwardToLeader`].
///
/// The handler checks [`ensure`](LeadershipHandle::ensure) before each side effect, and sends the fencing token with it. Tasks that it spawns have to
/// [`run`](LeadershipHandle::run) under it themselves.
#[derive(Clone, Debug)]
pub struct Leading(pub LeadershipHandle);

/// This process does not lead, or the handler is not under [`ForwardToLeader`]: 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLeading;

impl IntoResponse for NotLeading {
    fn into_response(self) -> Response {
        retry("this node does not lead")
    }
}

impl<S: Sync> FromRequestParts<S> for Leading {
    type Rejection = NotLeading;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().filter(|leading| leading.0.is_leader()).ok_or(NotLeading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(value: &str) -> Candidate {
        Candidate::decode("entry", "session", value.as_bytes(), None)
    }

    #[test]
    fn a_leaders_value_is_an_address_or_it_is_said_what_is_allowed() {
        for (value, expected) in [
            ("10.0.0.1:80", "http://10.0.0.1:80/a?b=c"),
            ("http://billing-1.internal:8080/", "http://billing-1.internal:8080/a?b=c"),
            ("https://billing", "https://billing/a?b=c"),
            ("[::1]:80", "http://[::1]:80/a?b=c"),
        ] {
            let address = Address::of(&leader(value)).unwrap();
            assert_eq!(address.uri(&"/a?b=c".parse().unwrap()).unwrap().to_string(), expected, "{value}");
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
            let said = Address::of(&leader(value)).err().unwrap_or_else(|| panic!("{value:?} is taken"));
            assert!(said.contains("allowed are http://HOST:PORT"), "{said}");
        }
    }

    #[test]
    fn what_concerns_one_connection_is_not_sent_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, X-Own"), ("x-own", "1"), ("upgrade", "h2c"), ("accept", "*/*")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let not_ascii = HeaderValue::from_bytes(b"\xff, x-other").unwrap();
        headers.append(header::CONNECTION, not_ascii);
        headers.insert("x-other", HeaderValue::from_static("1"));
        end_to_end(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ACCEPT]);
    }
}
