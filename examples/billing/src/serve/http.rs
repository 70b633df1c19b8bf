//! The server's HTTP API: liveness, readiness, and the leader.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tenure::Elector;
use tokio::{sync::watch, time::timeout};

use super::leader_view::LeaderView;
use crate::db::Database;

/// How long `/readyz` waits for the store and the database.
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(crate) struct ServerState {
    pub(crate) id: String,
    pub(crate) election: String,
    pub(crate) elector: Arc<dyn Elector>,
    pub(crate) database: Database,
    pub(crate) leader: watch::Receiver<LeaderView>,
}

pub(crate) fn router(server: ServerState) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/leader", get(leader))
        .with_state(server)
}

/// A follower that could take over is ready, too.
async fn ready(State(server): State<ServerState>) -> (StatusCode, Json<Value>) {
    let store = async {
        match timeout(READINESS_TIMEOUT, server.elector.leader(&server.election)).await {
            Ok(Ok(_)) => "ok".to_owned(),
            Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
            Err(_) => {
                server.elector.status().last_error.unwrap_or_else(|| "the store does not answer".to_owned())
            }
        }
    };
    let database = async {
        match timeout(READINESS_TIMEOUT, server.database.ping()).await {
            Ok(Ok(())) => "ok".to_owned(),
            // The driver's error may contain more than a client should know.
            Ok(Err(_)) => "the database failed".to_owned(),
            Err(_) => "the database does not answer".to_owned(),
        }
    };
    let (store, database) = tokio::join!(store, database);
    let ready = store == "ok" && database == "ok";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "store": store, "database": database })))
}

/// The leader. The answer may be outdated; the work itself calls `ensure` before each side effect.
async fn leader(State(server): State<ServerState>) -> (StatusCode, Json<Value>) {
    let view = server.leader.borrow().clone();
    let leading = matches!(&view, LeaderView::Leader(leader) if leader.id == server.id);
    let (status, leader) = match view {
        LeaderView::Leader(leader) => (StatusCode::OK, json!(leader)),
        LeaderView::NoLeader => (StatusCode::OK, Value::Null),
        LeaderView::Unknown => (StatusCode::SERVICE_UNAVAILABLE, Value::Null),
    };
    let answer = json!({
        "election": server.election,
        "leader": leader,
        "me": { "id": server.id, "leading": leading },
    });
    (status, Json(answer))
}
