//! The HTTP client: TLS by our settings, answers of bounded size, and refusals as values.

use std::{
    error::Error as _,
    fmt, io,
    iter::successors,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use object_store::{
    ClientConfigKey, ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
        HttpService,
    },
};
use reqwest::redirect;
use tenure_core::{
    Tls, TlsPem,
    internal::{ClientCache, lock},
};
use thiserror::Error;

/// The largest answer that is read, in bytes. A record has at most 512 KiB, and a list of 1000 keys has less than 2 MiB.
const MAX_ANSWER_BYTES: usize = 4 << 20;
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// The HTTP client of a store. Clones share it.
#[derive(Clone)]
pub(crate) struct Http {
    shared: Arc<Shared>,
    allows_plain_text: bool,
}

struct Shared {
    tls: Option<Tls>,
    attempt_timeout: Duration,
    client: ClientCache<reqwest::Client>,
    /// What the server calls itself.
    server: Mutex<Option<String>>,
}

/// An answer that is neither a success nor the outcome of a condition.
#[derive(Debug, Error)]
#[error("{} {code}: {message}", status.as_u16())]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The code of S3, or the standard phrase of the status.
    pub(crate) code: String,
    pub(crate) message: String,
    /// Where the bucket is, if the server has said so.
    pub(crate) region: Option<String>,
}

impl Http {
    pub(crate) fn new(tls: Option<Tls>, attempt_timeout: Duration) -> Self {
        let shared =
            Shared { tls, attempt_timeout, client: ClientCache::default(), server: Mutex::default() };
        Self { shared: Arc::new(shared), allows_plain_text: false }
    }

    /// What the server calls itself, once it has answered.
    pub(crate) fn server(&self) -> Option<String> {
        lock(&self.shared.server).clone()
    }

    /// Closes the connections that are idle.
    pub(crate) fn close(&self) {
        self.shared.client.clear();
    }

    /// The client; a new one if the certificates have changed.
    async fn client(&self) -> Result<reqwest::Client, HttpError> {
        self.shared.client.get(self.shared.tls.as_ref(), |pem| self.build(pem)).await
    }

    fn build(&self, pem: Option<&TlsPem>) -> Result<reqwest::Client, HttpError> {
        let time = self.shared.attempt_timeout;
        let builder = reqwest::Client::builder()
            // A connection for each request at a time: none waits for another one.
            .http1_only()
            .redirect(redirect::Policy::none())
            .timeout(time)
            .connect_timeout(time)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        let builder = match pem {
            Some(pem) => {
                let config =
                    pem.client_config().map_err(|reason| unusable(io::Error::other(reason).into()))?;
                builder.tls_backend_preconfigured(config)
            }
            None => builder,
        };
        builder.build().map_err(|error| unusable(error.into()))
    }
}

/// The innermost cause says most.
fn no_answer(host: &str, error: &HttpError) -> HttpError {
    let causes = successors(error.source(), |&cause| cause.source());
    let cause = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
    HttpError::new_boxed(error.kind(), format!("{host}: {cause}").into())
}

fn unusable(error: Box<dyn std::error::Error + Send + Sync>) -> HttpError {
    HttpError::new_boxed(HttpErrorKind::Unknown, error)
}

impl HttpConnector for Http {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
        let allows_plain_text = allowed.is_some_and(|value| value == "true");
        Ok(HttpClient::new(Self { allows_plain_text, ..self.clone() }))
    }
}

#[async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.uri().scheme_str() != Some("https") && !self.allows_plain_text {
            return Err(unusable("a request without TLS is not allowed".into()));
        }
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let response = HttpService::call(&self.client().await?, request).await;
        let response = response.map_err(|error| no_answer(&host, &error))?;
        let (parts, body) = response.into_parts();
        if let Some(server) = text(&parts.headers, "server") {
            *lock(&self.shared.server) = Some(server);
        }
        let status = parts.status;
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            let body = Limited::new(body, MAX_ANSWER_BYTES)
                .map_err(|error| HttpError::new_boxed(HttpErrorKind::Decode, error));
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let body = Limited::new(body, MAX_REFUSAL_BYTES).collect().await.map_err(unusable)?.to_bytes();
        let refusal = Refusal::new(status, &parts.headers, &String::from_utf8_lossy(&body));
        match status {
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => {}
            // Not of a proxy, nor of a bucket.
            StatusCode::NOT_FOUND if refusal.code == "NoSuchKey" => {}
            _ => return Err(unusable(refusal.into())),
        }
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

impl Refusal {
    /// Reads an error of S3: a piece of XML with a code and a message.
    fn new(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let phrase = status.canonical_reason().unwrap_or("refused");
        Self {
            status,
            code: element(body, "Code").unwrap_or(phrase).to_owned(),
            message: element(body, "Message").unwrap_or("the server gave no reason").to_owned(),
            region: text(headers, "x-amz-bucket-region")
                .or_else(|| element(body, "Region").map(str::to_owned)),
        }
    }
}

/// The text of the first element with this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("tls", &self.shared.tls).finish_non_exhaustive()
    }
}
