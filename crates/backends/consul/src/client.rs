//! Requests to one agent at a time, over HTTP.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode, redirect::Policy};
use tenure_core::{
    Secret, TlsPem,
    internal::ClientCache,
    spi::{
        BackendError,
        BackendErrorKind::{self, Forbidden, Invalid, Unauthorized, Unavailable},
    },
};
use tokio::{sync::watch, time::timeout};

use crate::config::ConsulConfig;

/// The largest answer that is read: a value has at most 512 KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// How much of the text of a refusal is repeated in an error.
const MAX_REFUSAL_CHARS: usize = 300;
const TOKEN_HEADER: &str = "X-Consul-Token";
const INDEX_HEADER: &str = "X-Consul-Index";

/// The agents, and the connections to them.
#[derive(Debug)]
pub(crate) struct Agents {
    pub(crate) config: ConsulConfig,
    addresses: Vec<String>,
    /// The number of the agent that is used.
    pub(crate) current: watch::Sender<usize>,
    client: ClientCache<Client>,
}

/// What is asked for: a path below `/v1/`, with its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) what: &'static str,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Vec<u8>>,
    /// How much longer than others it may take.
    pub(crate) wait: Duration,
    /// How large the answer may be.
    pub(crate) max_bytes: usize,
}

impl Request {
    pub(crate) fn get(what: &'static str, path: String) -> Self {
        Self {
            what,
            method: Method::GET,
            path,
            body: None,
            wait: Duration::ZERO,
            max_bytes: MAX_ANSWER_BYTES,
        }
    }

    pub(crate) fn put(what: &'static str, path: String, body: Vec<u8>) -> Self {
        Self { method: Method::PUT, body: Some(body), ..Self::get(what, path) }
    }
}

/// An answer of Consul that is not an error.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Consul's index, if the answer has one.
    pub(crate) index: Option<u64>,
    pub(crate) body: Vec<u8>,
}

impl Agents {
    pub(crate) fn new(config: ConsulConfig) -> Self {
        let addresses = config.addresses();
        Self { config, addresses, current: watch::Sender::new(0), client: ClientCache::default() }
    }

    /// Sends a request to the agent that is used. One that does not serve it makes the next request go to the next agent.
    pub(crate) async fn send(&self, request: &Request) -> Result<Answer, BackendError> {
        let host = *self.current.borrow();
        let answer = self.send_to(host, request).await;
        if answer.as_ref().is_err_and(BackendError::is_retryable) {
            let next = (host + 1) % self.addresses.len();
            // Unless another request has done so.
            self.current
                .send_if_modified(|current| *current == host && std::mem::replace(current, next) != next);
        }
        answer
    }

    /// Sends a request to the agent with this number.
    pub(crate) async fn send_to(&self, host: usize, request: &Request) -> Result<Answer, BackendError> {
        let name = &self.config.hosts[host];
        let limit = self.config.settings.request_timeout() + request.wait;
        let answer = timeout(limit, self.log_in_and_send(host, request)).await;
        answer.unwrap_or_else(|_| Err(failure(name, request, format!("no answer within {limit:?}"))))
    }

    /// Sends a request with the token. A file with the token is read again when it may have changed, and a refused token is retried for a
    /// while (hazard G33).
    async fn log_in_and_send(&self, host: usize, request: &Request) -> Result<Answer, BackendError> {
        let name = &self.config.hosts[host];
        let Some(token) = &self.config.token else {
            let answer = self.attempt(host, request, None).await?;
            return self.classify_response(name, request, answer);
        };
        let attempt = async |secret: Secret| {
            let answer = self.attempt(host, request, Some(&secret)).await?;
            match answer.status == StatusCode::FORBIDDEN && is_unknown_token(&text_of(&answer.body)) {
                true => self.classify_response(name, request, answer),
                false => Ok(answer),
            }
        };
        self.classify_response(name, request, token.try_each(attempt).await?)
    }

    async fn attempt(
        &self,
        host: usize,
        request: &Request,
        token: Option<&Secret>,
    ) -> Result<Answer, BackendError> {
        let name = &self.config.hosts[host];
        let failed = |error: reqwest::Error| {
            // The address is named already, and is repeated in each of its texts.
            BackendError::with_source(Unavailable, context(name, request), error.without_url())
        };
        let mut url = format!("{}/{}", self.addresses[host], request.path);
        if let Some(datacenter) = &self.config.datacenter {
            url += if url.contains('?') { "&dc=" } else { "?dc=" };
            url += datacenter;
        }
        let mut sent = self.client(name, request).await?.request(request.method.clone(), url);
        if let Some(token) = token {
            sent = sent.header(
                TOKEN_HEADER,
                secret_header(token).map_err(|kind| {
                    BackendError::new(
                        kind,
                        format!("{}: the token has characters that no token has", context(name, request)),
                    )
                })?,
            );
        }
        if let Some(body) = &request.body {
            sent = sent.body(body.clone());
        }
        let mut response = sent.send().await.map_err(failed)?;
        let index = response.headers().get(INDEX_HEADER).and_then(|index| index.to_str().ok()?.parse().ok());
        let (status, mut body) = (response.status(), Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > request.max_bytes {
                return Err(failure(
                    name,
                    request,
                    format!("the answer has more than {} bytes", request.max_bytes),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, index, body })
    }

    /// What an answer means: for some paths 404 and 409 are answers, too.
    fn classify_response(
        &self,
        name: &str,
        request: &Request,
        answer: Answer,
    ) -> Result<Answer, BackendError> {
        let text = text_of(&answer.body);
        let (kind, advice) = match answer.status {
            StatusCode::OK | StatusCode::CONFLICT => return Ok(answer),
            // Only a Consul agent has the header.
            StatusCode::NOT_FOUND if answer.index.is_some() => return Ok(answer),
            StatusCode::FORBIDDEN if is_unknown_token(&text) => (Unauthorized, UNKNOWN_TOKEN.to_owned()),
            StatusCode::FORBIDDEN => (Forbidden, self.grant()),
            StatusCode::UNAUTHORIZED => {
                (Unauthorized, "see that the host is a Consul agent, and the token".to_owned())
            }
            StatusCode::PAYLOAD_TOO_LARGE => (
                Invalid,
                "use fewer candidates or shorter values, or raise limits.kv_max_value_size".to_owned(),
            ),
            StatusCode::BAD_REQUEST if text.contains("HTTPS") => {
                (Invalid, "it speaks TLS only: give ca=/path/to/authorities.pem".to_owned())
            }
            StatusCode::BAD_REQUEST => {
                (Invalid, "see that the host is a Consul agent of version 1.8 or later".to_owned())
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                (Unavailable, "see the log of the agent".to_owned())
            }
            _ => (
                Unavailable,
                "this is no answer of Consul; see that the host is the HTTP address of an agent".to_owned(),
            ),
        };
        let status = answer.status;
        Err(BackendError::new(kind, format!("{}: {status}: {text}; {advice}", context(name, request))))
    }

    /// What the token needs.
    pub(crate) fn grant(&self) -> String {
        format!(
            "give its token a policy with: key_prefix \"{}/\" {{ policy = \"write\" }}",
            self.config.prefix
        )
    }

    /// The connections, with the current certificates.
    async fn client(&self, name: &str, request: &Request) -> Result<Client, BackendError> {
        let client = self.client.get(self.config.tls.as_ref(), build).await;
        client.map_err(|reason| BackendError::new(Invalid, format!("{}: {reason}", context(name, request))))
    }

    /// Closes the connections that no request uses.
    pub(crate) fn close(&self) {
        self.client.clear();
    }
}

fn build(pem: Option<&TlsPem>) -> Result<Client, String> {
    let builder = Client::builder().redirect(Policy::none()).no_proxy().tcp_nodelay(true);
    #[cfg(feature = "tls")]
    let builder = match pem {
        Some(pem) => builder.tls_backend_preconfigured(pem.client_config()?),
        // No authority of the system is trusted, and none is looked for.
        None => builder.tls_certs_only([]),
    };
    // `ConsulConfig::check` refuses TLS without the feature.
    #[cfg(not(feature = "tls"))]
    let _ = pem;
    builder.build().map_err(|error| format!("the HTTP client cannot be made: {error}"))
}

/// The value of the header with the token, which is never logged.
fn secret_header(token: &Secret) -> Result<reqwest::header::HeaderValue, BackendErrorKind> {
    let mut value = reqwest::header::HeaderValue::from_str(token.expose()).map_err(|_| Unauthorized)?;
    value.set_sensitive(true);
    Ok(value)
}

const UNKNOWN_TOKEN: &str = "Consul does not know the token: it was deleted, has expired, or is of another cluster; give another one in password_file";

fn is_unknown_token(text: &str) -> bool {
    text.contains("ACL not found")
}

/// The text of a refusal.
pub(crate) fn text_of(body: &[u8]) -> String {
    let bytes = &body[..body.len().min(4 * MAX_REFUSAL_CHARS)];
    String::from_utf8_lossy(bytes).trim().chars().take(MAX_REFUSAL_CHARS).collect()
}

fn context(name: &str, request: &Request) -> String {
    format!("{} in Consul at {name}", request.what)
}

fn failure(name: &str, request: &Request, text: String) -> BackendError {
    BackendError::new(Unavailable, format!("{}: {text}", context(name, request)))
}
