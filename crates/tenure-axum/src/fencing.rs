//! The `Fencing-Token` header, for the resource's side.

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

/// The name of the header that carries a token.
pub const FENCING_TOKEN: HeaderName = HeaderName::from_static("fencing-token");

/// The request's fencing token: an extractor.
///
/// The handler compares it with the highest that it has seen, in the transaction of the write that it guards. For a resource whose
/// state is in this process, [`FenceLayer`] does that.
///
/// ```
/// use axum::http::StatusCode;
/// use tenure_axum::Fencing;
///
/// # struct Database;
/// # impl Database { async fn charge(&self, _: u64) -> u64 { 1 } }
/// # async fn handler(database: &Database, Fencing(token): Fencing) -> StatusCode {
/// // UPDATE fence SET highest = $1 WHERE highest <= $1, beside the write: no row means that the token is stale.
/// match database.charge(token.get()).await {
///     0 => StatusCode::PRECONDITION_FAILED,
///     _ => StatusCode::CREATED,
/// }
/// # }
/// # let _ = handler;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fencing(pub FencingToken);

/// Why a request was refused for its fencing token.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FencingRejection {
    /// There is none: 428 Precondition Required.
    Missing,
    /// There is more than one: 400 Bad Request.
    Several,
    /// It is not a token: 400 Bad Request.
    Malformed(ParseTokenError),
    /// A later term's has been seen: 412 Precondition Failed.
    Stale(StaleToken),
}

impl fmt::Display for FencingRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "a {} header is required", FencingToken::HEADER),
            Self::Several => write!(f, "there is more than one {} header", FencingToken::HEADER),
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

pub(crate) fn token(headers: &axum::http::HeaderMap) -> Result<FencingToken, FencingRejection> {
    let mut all = headers.get_all(&FENCING_TOKEN).iter();
    let first = all.next().ok_or(FencingRejection::Missing)?;
    if all.next().is_some() {
        return Err(FencingRejection::Several);
    }
    // No more than HTTP takes for white space: others on the way see the same.
    String::from_utf8_lossy(first.as_bytes())
        .trim_matches([' ', '\t'])
        .parse()
        .map_err(FencingRejection::Malformed)
}

impl<S: Sync> FromRequestParts<S> for Fencing {
    type Rejection = FencingRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        token(&parts.headers).map(Self)
    }
}

/// Refuses requests whose fencing token is lower than the highest seen, or missing; a layer for the resource's side.
///
/// - Requests that change nothing (GET, HEAD, OPTIONS, TRACE) pass without a token; with one, it is not looked at.
/// - The mark is in memory. It protects what is in memory too: state that outlives the process needs its mark beside it, in the same
///   transaction ([`Fencing`]), or at least [`Fence::starting_at`] it.
/// - Whoever gets through to it can raise the mark, and shut out every leader until a new start: put it *inside* authentication.
/// - A request is admitted before its handler runs: two that run at the same time are not put in order.
#[derive(Clone, Debug)]
pub struct FenceLayer {
    fence: Arc<Fence>,
}

impl FenceLayer {
    /// A layer that raises `fence` with every token admitted.
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

/// What [`FenceLayer`] makes of a service.
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
            false => token(request.headers())
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
    fn a_token_may_have_the_white_space_of_http_around_it_and_no_other() {
        let read = |value: &[u8]| {
            token(&HeaderMap::from_iter([(FENCING_TOKEN, HeaderValue::from_bytes(value).unwrap())])).ok()
        };
        assert_eq!(read(b" 7\t").map(FencingToken::get), Some(7));
        assert_eq!(read("\u{a0}7".as_bytes()), None);
    }
}
