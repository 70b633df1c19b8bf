//! The `Fencing-Token` header, for services that a leader writes to.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::{FromRequestParts, Request},
    http::{HeaderName, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use futures::future::{Either, Ready, ready};
use tenure_core::{Fence, FencingToken, ParseTokenError, StaleToken};
use tower::{Layer, Service};

/// The name of the header that contains a fencing token.
pub const FENCING_TOKEN: HeaderName = HeaderName::from_static("fencing-token");

/// An extractor for the fencing token of a request.
///
/// The handler compares the token with the highest one that it has accepted, in the same transaction as the write that the
/// token guards. If the state is in the memory of this process, [`FenceLayer`] does that.
///
/// ```
/// use axum::http::StatusCode;
/// use tenure_axum::Fencing;
///
/// # struct Database;
/// # impl Database { async fn charge(&self, _: u64) -> u64 { 1 } }
/// # async fn handler(database: &Database, Fencing(token): Fencing) -> StatusCode {
/// // UPDATE fence SET highest = $1 WHERE highest <= $1, in the transaction of the write. If no row is updated, the token is stale.
/// match database.charge(token.get()).await {
///     0 => StatusCode::PRECONDITION_FAILED,
///     _ => StatusCode::CREATED,
/// }
/// # }
/// # let _ = handler;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fencing(pub FencingToken);

/// Why a request was refused because of its fencing token.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FencingRejection {
    /// The request has no token: 428 Precondition Required.
    Missing,
    /// The request has more than one token: 400 Bad Request.
    Several,
    /// The header is not a token: 400 Bad Request.
    Malformed(ParseTokenError),
    /// The token of a later term has been accepted: 412 Precondition Failed.
    Stale(StaleToken),
}

impl fmt::Display for FencingRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(
                f,
                "the request has no {} header: send the fencing token of the leadership",
                FencingToken::HEADER
            ),
            Self::Several => {
                write!(f, "the request has more than one {} header: send one", FencingToken::HEADER)
            }
            Self::Malformed(error) => error.fmt(f),
            Self::Stale(stale) => stale.fmt(f),
        }
    }
}

impl std::error::Error for FencingRejection {}

impl IntoResponse for FencingRejection {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Missing => StatusCode::PRECONDITION_REQUIRED,
            Self::Several | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Stale(_) => StatusCode::PRECONDITION_FAILED,
        };
        (code, format!("{self}\n")).into_response()
    }
}

pub(crate) fn token_from_headers(headers: &axum::http::HeaderMap) -> Result<FencingToken, FencingRejection> {
    let mut values = headers.get_all(&FENCING_TOKEN).iter();
    let first = values.next().ok_or(FencingRejection::Missing)?;
    if values.next().is_some() {
        return Err(FencingRejection::Several);
    }
    // Trims only what is whitespace in HTTP, so that proxies read the same token.
    String::from_utf8_lossy(first.as_bytes())
        .trim_matches([' ', '\t'])
        .parse()
        .map_err(FencingRejection::Malformed)
}

impl<S: Sync> FromRequestParts<S> for Fencing {
    type Rejection = FencingRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        token_from_headers(&parts.headers).map(Self)
    }
}

/// A layer that refuses requests whose fencing token is missing, or lower than the highest one accepted.
///
/// - Requests with a safe method (GET, HEAD, OPTIONS, TRACE) pass without a token. A token of theirs is ignored.
/// - The highest token is kept in memory, and so protects only state in memory. State that outlives the process needs the
///   highest token beside it, updated in the same transaction ([`Fencing`]), or at least a [`Fence::starting_at`] it.
/// - A client whose request reaches this layer can raise the highest token, which excludes every leader until the process
///   restarts. Put the layer *inside* authentication.
/// - A request is admitted before its handler runs. Handlers that run at the same time are not ordered.
#[derive(Clone, Debug)]
pub struct FenceLayer {
    fence: Arc<Fence>,
}

impl FenceLayer {
    /// A layer that admits tokens with `fence`.
    pub fn new(fence: Arc<Fence>) -> Self {
        Self { fence }
    }
}

impl<S> Layer<S> for FenceLayer {
    type Service = FencedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FencedService { fence: Arc::clone(&self.fence), inner }
    }
}

/// The service that [`FenceLayer`] creates.
#[derive(Clone, Debug)]
pub struct FencedService<S> {
    fence: Arc<Fence>,
    inner: S,
}

impl<S: Service<Request, Response = Response>> Service<Request> for FencedService<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let admitted = match request.method().is_safe() {
            true => Ok(()),
            false => token_from_headers(request.headers())
                .and_then(|token| self.fence.admit(token).map_err(FencingRejection::Stale)),
        };
        match admitted {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(rejection) => Either::Right(ready(Ok(rejection.into_response()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn only_http_whitespace_is_trimmed() {
        let parse = |value: &[u8]| {
            token_from_headers(&HeaderMap::from_iter([(
                FENCING_TOKEN,
                HeaderValue::from_bytes(value).unwrap(),
            )]))
            .ok()
        };
        assert_eq!(parse(b" 7\t").map(FencingToken::get), Some(7));
        assert_eq!(parse("\u{a0}7".as_bytes()), None);
    }
}
