//! The routes, and what they answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tenure::{Candidate, ElectionName};
use tokio::time::timeout;

use super::{
    access::{self, Access},
    error::ApiError,
    events::{self, Subscribers},
    lease::{Grant, Lease, LeaseStatus, OverReason, RETRY_WITHIN},
    leases::{CampaignRequest, Leases},
    overview::{self, Overview},
    page,
};

/// The header with the id of a lease. Not a part of the URL, which is logged.
pub(super) const LEASE_HEADER: &str = "tenure-lease";
/// How long a campaign request waits by default, and at most.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);
/// The shortest and the longest lease that a client can ask for.
const LEASE_TIMES: std::ops::RangeInclusive<u64> = 500..=86_400_000;
/// The lengths of a nonce. 22 characters have 128 random bits.
const NONCE_BYTES: std::ops::RangeInclusive<usize> = 22..=128;
/// The largest body: a value of 64 KiB, written in JSON.
const MAX_BODY: usize = 160 * 1024;
/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the store may take to answer who leads.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

const OPENAPI: &str = include_str!("openapi.json");

/// What the handlers share.
#[derive(Debug)]
pub(super) struct Sidecar {
    pub(super) leases: Leases,
    pub(super) subscribers: Subscribers,
    pub(super) overview: Arc<Overview>,
}

type Shared = State<Arc<Sidecar>>;

/// A route: method, path, handler. The OpenAPI document describes each of them.
pub(super) type Route<S> = (&'static str, &'static str, MethodRouter<S>);

/// The routes that need the token, if there is one.
fn routes() -> Vec<Route<Arc<Sidecar>>> {
    vec![
        ("get", "/v1/elections", get(overview::listing)),
        ("get", "/v1/events", get(overview::events)),
        ("post", "/v1/elections/{name}/campaign", post(campaign)),
        ("delete", "/v1/elections/{name}/campaign", delete(resign)),
        ("post", "/v1/elections/{name}/renew", post(renew)),
        ("get", "/v1/elections/{name}", get(leader)),
        ("get", "/v1/elections/{name}/events", get(events::events)),
        ("get", "/v1/openapi.json", get(openapi)),
    ]
}

/// The HTTP interface.
pub(super) fn router(sidecar: Arc<Sidecar>, access: Arc<Access>) -> Router {
    let data = router_of(routes())
        .fallback(no_such_route)
        .with_state(sidecar)
        .layer(middleware::from_fn_with_state(Arc::clone(&access), access::check_token));
    let page = router_of(page::routes()).with_state(());
    data.merge(page).layer(middleware::from_fn_with_state(access, access::check))
}

fn router_of<S: Clone + Send + Sync + 'static>(routes: Vec<Route<S>>) -> Router<S> {
    let add = |router: Router<S>, (_, path, handler)| router.route(path, handler);
    routes.into_iter().fold(Router::new(), add).method_not_allowed_fallback(method_not_allowed)
}

/// The body of a campaign request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CampaignBody {
    nonce: String,
    wait_ms: Option<u64>,
    value: Option<String>,
    lease_ms: Option<u64>,
}

/// Campaigns. Answers once the candidate is elected, or after the wait that the client asks for.
async fn campaign(
    State(sidecar): Shared,
    Name(election): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // Before anything else: the announced validity counts from here, and the client counts from earlier.
    let received = sidecar.leases.now();
    let CampaignBody { nonce, wait_ms, value, lease_ms } = read_body(&headers, body).await?;
    check_nonce(&nonce)?;
    let wait = wait_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
    if wait > MAX_WAIT {
        let message = format!("wait_ms {} is too long", wait.as_millis());
        let advice = format!("0 to {}", MAX_WAIT.as_millis());
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_wait", message, advice));
    }
    if lease_ms.is_some_and(|lease_ms| !LEASE_TIMES.contains(&lease_ms)) {
        let message = format!("lease_ms {} is not allowed", lease_ms.unwrap_or_default());
        let advice = format!("{} to {}", LEASE_TIMES.start(), LEASE_TIMES.end());
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_lease", message, advice));
    }
    let mut options = tenure::CampaignOptions::new();
    if let Some(value) = &value {
        options = options.with_value(value.as_bytes());
    }
    options.validate().map_err(|error| ApiError::of_elector(&error))?;
    let lease_time = lease_ms.map(Duration::from_millis);
    let lease = sidecar.leases.enter(CampaignRequest { election, nonce, value, lease_time })?;
    let _pending = lease.begin_request()?;
    match lease.grant_when_elected(received, received + wait).await {
        LeaseStatus::Elected(grant) => Ok(Json(granted(&lease, grant)).into_response()),
        LeaseStatus::Over(reason) => Err(over(&lease, &reason)),
        LeaseStatus::Waiting => {
            let waiting = json!({
                "state": "waiting",
                "election": lease.election.as_str(),
                "lease": lease.id,
                "retry_within_ms": u64::try_from(RETRY_WITHIN.as_millis()).unwrap_or(u64::MAX),
            });
            Ok((StatusCode::ACCEPTED, Json(waiting)).into_response())
        }
    }
}

/// Extends the grant.
async fn renew(
    State(sidecar): Shared,
    Name(election): Name,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let received = sidecar.leases.now();
    let lease = held_lease(&sidecar, &election, &headers)?;
    match lease.grant(received) {
        LeaseStatus::Elected(grant) => Ok(Json(granted(&lease, grant))),
        LeaseStatus::Over(reason) => Err(over(&lease, &reason)),
        LeaseStatus::Waiting => Err(ApiError::new(
            StatusCode::CONFLICT,
            "not_elected",
            format!("this candidate waits for its election in {}", lease.election),
            "campaign again with the same nonce until the state is elected",
        )),
    }
}

/// Resigns at once.
async fn resign(
    State(sidecar): Shared,
    Name(election): Name,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let lease = held_lease(&sidecar, &election, &headers)?;
    let confirmed = lease.resign().await;
    Ok(Json(json!({ "state": "over", "election": lease.election.as_str(), "confirmed": confirmed })))
}

/// Tells who leads, and the holder of a lease what it has.
async fn leader(
    State(sidecar): Shared,
    Name(election): Name,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let received = sidecar.leases.now();
    let lease = match headers.contains_key(LEASE_HEADER) {
        true => Some(held_lease(&sidecar, &election, &headers)?),
        false => None,
    };
    let read = timeout(STORE_TIMEOUT, sidecar.leases.elector().leader(election.as_str())).await;
    let leader = match read {
        Ok(leader) => leader.map_err(|error| ApiError::of_elector(&error))?,
        Err(_) => return Err(no_answer(&sidecar)),
    };
    let mut answer = leader_json(&election, leader.as_ref());
    if let Some(lease) = lease {
        answer["own"] = match lease.status(received) {
            LeaseStatus::Elected(grant) => granted(&lease, grant),
            LeaseStatus::Waiting => json!({ "state": "waiting", "election": election.as_str() }),
            LeaseStatus::Over(reason) => {
                json!({ "state": "over", "election": election.as_str(), "reason": reason.to_string() })
            }
        };
    }
    Ok(Json(answer))
}

async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn no_such_route() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_such_route",
        "there is no such path",
        "the paths of /v1/openapi.json",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not have this method",
        "the methods of /v1/openapi.json",
    )
}

/// A leader in JSON, or that there is none.
pub(super) fn leader_json(election: &ElectionName, leader: Option<&Candidate>) -> Value {
    let leader = leader.map(|leader| {
        let token = leader.token.map(tenure::FencingToken::get);
        json!({ "id": leader.id, "token": token, "value": leader.value_lossy() })
    });
    json!({ "election": election.as_str(), "leader": leader })
}

/// A grant in JSON.
fn granted(lease: &Lease, grant: Grant) -> Value {
    json!({
        "state": "elected",
        "election": lease.election.as_str(),
        "lease": lease.id,
        "token": grant.token,
        "valid_for_ms": u64::try_from(grant.valid_for.as_millis()).unwrap_or(u64::MAX),
        "stopping": grant.stopping,
    })
}

/// The answer for a lease that is over.
fn over(lease: &Lease, reason: &OverReason) -> ApiError {
    let election = &lease.election;
    match reason {
        OverReason::Stopping => ApiError::lease_over_by_stopping(),
        reason => ApiError::new(
            StatusCode::GONE,
            "lease_over",
            format!("this lease of {election} is over: {reason}"),
            "stop the work; then DELETE the campaign, and campaign again with a new nonce",
        ),
    }
}

/// The store has not answered in time.
pub(super) fn no_answer(sidecar: &Sidecar) -> ApiError {
    let error = sidecar.leases.elector().status().last_error;
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "store_unavailable",
        format!("the store does not answer{error}"),
        "try again; `tenure doctor` examines the store",
    )
    .retry_after(1)
}

/// The election that the path names.
pub(super) struct Name(pub(super) ElectionName);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // A name that is no UTF-8 once it is decoded has a character that is not allowed.
        let name = Path::<String>::from_request_parts(parts, state)
            .await
            .map_or_else(|_| "\u{fffd}".to_owned(), |path| path.0);
        ElectionName::new(&name).map(Self).map_err(|error| ApiError::of_elector(&error.into()))
    }
}

/// The lease that the request's header names.
fn held_lease(
    sidecar: &Sidecar,
    election: &ElectionName,
    headers: &HeaderMap,
) -> Result<Arc<Lease>, ApiError> {
    let mut ids = headers.get_all(LEASE_HEADER).iter();
    let (Some(id), None) = (ids.next(), ids.next()) else {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "missing_lease",
            "the request does not have one header Tenure-Lease",
            "the header Tenure-Lease with the lease id that the campaign has returned",
        ));
    };
    sidecar.leases.get(election, id.to_str().unwrap_or_default())
}

fn check_nonce(nonce: &str) -> Result<(), ApiError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if NONCE_BYTES.contains(&nonce.len()) && nonce.bytes().all(is_legal) {
        return Ok(());
    }
    let advice = format!(
        "{} to {} random characters of [A-Za-z0-9_-], new for each candidate",
        NONCE_BYTES.start(),
        NONCE_BYTES.end()
    );
    Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_nonce", "the nonce is not allowed", advice))
}

/// Reads a JSON body, within bounds of size and time.
async fn read_body<T: for<'a> Deserialize<'a>>(headers: &HeaderMap, body: Body) -> Result<T, ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body is not declared as JSON",
            "the header Content-Type: application/json",
        ));
    }
    let read = timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "the body is too large, or was not sent completely",
                format!("at most {MAX_BODY} bytes"),
            ));
        }
        Err(_) => {
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                "the body has not arrived in time",
                format!("a body that arrives within {} s", BODY_TIMEOUT.as_secs()),
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_body",
            format!("the body is not what is expected: {error}"),
            "a JSON object with nonce, and optionally wait_ms, lease_ms and value",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A test beside it sends a request to each of them.
    #[test]
    fn the_openapi_document_describes_exactly_the_routes() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            methods.map(|method| (method.clone(), path.clone())).collect::<Vec<_>>()
        });
        let routes = routes().into_iter().map(|(method, path, _)| (method, path));
        let page = page::routes().into_iter().map(|(method, path, _)| (method, path));
        let routes = routes.chain(page).map(|(method, path)| (method.to_owned(), path.to_owned()));
        assert_eq!(described.collect::<BTreeSet<_>>(), routes.collect());
    }

    #[test]
    fn a_nonce_has_at_least_128_bits() {
        for nonce in ["0123456789abcdef012345", "AZaz09-_AZaz09-_AZaz09-_"] {
            assert!(check_nonce(nonce).is_ok(), "{nonce}");
        }
        for nonce in ["", "0123456789abcdef01234", "0123456789abcdef01234 ", "0123456789abcdef01234é"] {
            assert!(check_nonce(nonce).is_err(), "{nonce}");
        }
    }
}
