//! Health endpoints that show the state of an election to load balancers, orchestrators and operators.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde::Serialize;
use tenure_core::{Candidate, Connection, ElectionStatus, StatusHandle};

/// The JSON body of every endpoint.
#[derive(Serialize)]
struct StatusBody {
    election: String,
    /// Whether this process leads at this moment, according to its own clock.
    leads: bool,
    fencing_token: Option<u64>,
    leader: Option<LeaderBody>,
    /// Whether it is known who leads: the store has answered at least once.
    known: bool,
    seen_for_ms: u128,
    queue_position: Option<usize>,
    candidates: usize,
    store: &'static str,
    last_error: Option<String>,
}

#[derive(Serialize)]
struct LeaderBody {
    id: String,
    value: String,
    fencing_token: Option<u64>,
}

impl From<Candidate> for LeaderBody {
    fn from(leader: Candidate) -> Self {
        let value = leader.value_lossy().into_owned();
        Self { value, fencing_token: leader.token.map(|token| token.get()), id: leader.id }
    }
}

impl From<ElectionStatus> for StatusBody {
    fn from(status: ElectionStatus) -> Self {
        Self {
            election: status.election.to_string(),
            leads: status.leadership.is_some(),
            fencing_token: status.leadership.map(|leadership| leadership.fencing_token().get()),
            leader: status.leader.map(LeaderBody::from),
            known: status.known,
            seen_for_ms: status.seen_for.as_millis(),
            queue_position: status.queue_position,
            candidates: status.candidates,
            store: match status.store.connection {
                Connection::Idle => "idle",
                Connection::Connected => "connected",
                Connection::Retrying => "retrying",
                _ => "refused",
            },
            last_error: status.store.last_error,
        }
    }
}

/// When `/readyz` answers 200, beside the time in which this process leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// While the store answers and it is known who leads. In an outage of the store no follower is ready: for services that are
    /// of no use without a leader.
    #[default]
    StoreAnswers,
    /// Once it was known who leads, also in an outage of the store: for services with routes that need no leader. The body still
    /// says that the store does not answer.
    WasKnown,
}

/// A router with the endpoints `/leader`, `/leading`, `/healthz` and `/readyz`.
///
/// All of them answer immediately from the status handle, without a request to the store, and with the same JSON body.
///
/// | path | 200 | 503 |
/// |---|---|---|
/// | `/leader` | it is known who leads, or that no candidate leads | nothing is known yet |
/// | `/leading` | this process leads; for load balancers that send requests to the leader only | this process does not lead |
/// | `/healthz` | a restart would not help; this includes outages of the store | the store refuses this process permanently |
/// | `/readyz` | this process leads, or the store answers and it is known who leads; see [`Readiness`] | otherwise |
///
/// The body contains the leader's id, value and token, this candidate's position in the queue, and the last error of the
/// store. Serve it on a port that is not public.
pub fn router(status: StatusHandle) -> Router {
    router_with(status, Readiness::default())
}

/// Like [`router`], with a choice of when `/readyz` answers 200.
pub fn router_with(status: StatusHandle, readiness: Readiness) -> Router {
    let is_ready: fn(&ElectionStatus) -> bool = match readiness {
        Readiness::StoreAnswers => is_ready,
        Readiness::WasKnown => |status| status.leadership.is_some() || status.known,
    };
    let endpoint = |is_ok: fn(&ElectionStatus) -> bool| {
        get(move |State(status): State<StatusHandle>| async move {
            let status = status.get();
            let code = if is_ok(&status) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (code, Json(StatusBody::from(status)))
        })
    };
    Router::new()
        .route("/leader", endpoint(|status| status.known))
        .route("/leading", endpoint(|status| status.leadership.is_some()))
        .route("/healthz", endpoint(|status| status.store.connection != Connection::Refused))
        .route("/readyz", endpoint(is_ready))
        .with_state(status)
}

fn is_ready(status: &ElectionStatus) -> bool {
    status.leadership.is_some() || (status.known && status.store.connection == Connection::Connected)
}
