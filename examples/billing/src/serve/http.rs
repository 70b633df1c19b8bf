//! What a server answers: whether it lives, whether it can work, and who leads.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tenure::Elector;
use tokio::{sync::watch, time::timeout};

use super::view::View;
use crate::db::Database;

/// How long the store and the database have to answer `/readyz`.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) id: String,
    pub(crate) election: String,
    pub(crate) elector: Arc<dyn Elector>,
    pub(crate) database: Database,
    pub(crate) leader: watch::Receiver<View>,
}

pub(crate) fn router(server: Server) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/leader", get(leader))
        .with_state(server)
}

/// Leading or not: a follower that could take over is ready.
async fn ready(State(server): State<Server>) -> (StatusCode, Json<Value>) {
    let store = async {
        match timeout(PATIENCE, server.elector.leader(&server.election)).await {
            Ok(Ok(_)) => "ok".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                server.elector.status().last_error.unwrap_or_else(|| "the store does not answer".to_owned())
            }
        }
    };
    let database = async {
        match timeout(PATIENCE, server.database.ping()).await {
            Ok(Ok(())) => "ok".to_owned(),
            // The text of the driver's error may tell more than a caller should know.
            Ok(Err(_)) => "the database fails".to_owned(),
            Err(_) => "the database does not answer".to_owned(),
        }
    };
    let (store, database) = tokio::join!(store, database);
    let ready = store == "ok" && database == "ok";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "store": store, "database": database })))
}

/// Who leads. An answer about the past: whoever must be sure asks `ensure`, where the work is done.
async fn leader(State(server): State<Server>) -> (StatusCode, Json<Value>) {
    let view = server.leader.borrow().clone();
    let leading = matches!(&view, View::Led(leader) if leader.id == server.id);
    let (status, leader) = match view {
        View::Led(leader) => (StatusCode::OK, json!(leader)),
        View::Vacant => (StatusCode::OK, Value::Null),
        View::Unknown => (StatusCode::SERVICE_UNAVAILABLE, Value::Null),
    };
    let answer = json!({
        "election": server.election,
        "leader": leader,
        "me": { "id": server.id, "leading": leading },
    });
    (status, Json(answer))
}
