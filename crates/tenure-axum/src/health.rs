//! How an election stands, for load balancers, orchestrators and people.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde::Serialize;
use tenure_core::{Candidate, Connection, ElectionStatus, StatusHandle};

/// What the endpoints answer.
#[derive(Serialize)]
struct Answer {
    election: String,
    /// Whether this process leads, by its own clock.
    leads: bool,
    fencing_token: Option<u64>,
    leader: Option<Leader>,
    /// Whether the store has said who leads, at least once.
    known: bool,
    seen_for_ms: u128,
    queue_position: Option<usize>,
    candidates: usize,
    store: &'static str,
    last_error: Option<String>,
}

#[derive(Serialize)]
struct Leader {
    id: String,
    value: String,
    fencing_token: Option<u64>,
}

impl From<Candidate> for Leader {
    fn from(leader: Candidate) -> Self {
        let value = leader.value_lossy().into_owned();
        Self { value, fencing_token: leader.token.map(|token| token.get()), id: leader.id }
    }
}

impl From<ElectionStatus> for Answer {
    fn from(status: ElectionStatus) -> Self {
        Self {
            election: status.election.to_string(),
            leads: status.leadership.is_some(),
            fencing_token: status.leadership.map(|leadership| leadership.fencing_token().get()),
            leader: status.leader.map(Leader::from),
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

/// `/leader`, `/leading`, `/healthz` and `/readyz`, all answered at once, with the same JSON: no request reaches the store.
///
/// | path | 200 | 503 |
/// |---|---|---|
/// | `/leader` | it is known who leads, or that nobody does | nothing is known yet |
/// | `/leading` | this process leads: for load balancers that are to reach the leader only | it does not |
/// | `/healthz` | as long as a new start would not help: in an outage of the store, too | the store refuses us for good |
/// | `/readyz` | this process leads; or the store answers, and who leads is known | otherwise |
///
/// The JSON names the leader, its value and token, this candidate's queue_position in the queue, and the store's last error: that is for
/// a port that not everybody reaches.
pub fn router(status: StatusHandle) -> Router {
    let answer = |serves: fn(&ElectionStatus) -> bool| {
        get(move |State(status): State<StatusHandle>| async move {
            let status = status.get();
            let code = if serves(&status) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (code, Json(Answer::from(status)))
        })
    };
    Router::new()
        .route("/leader", answer(|status| status.known))
        .route("/leading", answer(|status| status.leadership.is_some()))
        .route("/healthz", answer(|status| status.store.connection != Connection::Refused))
        .route("/readyz", answer(is_ready))
        .with_state(status)
}

fn is_ready(status: &ElectionStatus) -> bool {
    status.leadership.is_some() || (status.known && status.store.connection == Connection::Connected)
}
