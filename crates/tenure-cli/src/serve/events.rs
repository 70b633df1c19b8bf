//! Changes of an election's leader as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::StatusCode,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt as _};
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::{
    api::{Name, Sidecar, leader_json},
    error::ApiError,
};

/// How many subscribers there can be.
const MAX_SUBSCRIBERS: usize = 64;
/// How long a subscription lasts. Clients of server-sent events connect again by themselves.
pub(super) const MAX_SUBSCRIPTION: Duration = Duration::from_secs(600);
/// How often a comment is sent while there is nothing to say.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Admits subscribers.
#[derive(Debug)]
pub(super) struct Subscribers(Arc<Semaphore>);

impl Subscribers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_SUBSCRIBERS)))
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_SUBSCRIBERS} subscribers are connected");
            let advice = format!("at most {MAX_SUBSCRIBERS} subscribers");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_subscribers", message, advice)
                .retry_after(10)
        })
    }
}

/// The leader now, and every change. Ends after ten minutes, or when the sidecar is being stopped.
pub(super) async fn events(
    State(sidecar): State<Arc<Sidecar>>,
    Name(election): Name,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let permit = sidecar.subscribers.admit()?;
    let leaders = sidecar.leases.elector().observe(election.as_str());
    let mut stopping = sidecar.leases.stopping();
    let end = async move {
        tokio::select! {
            // The sender lives as long as the sidecar.
            () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {}
            () = sleep(MAX_SUBSCRIPTION) => {}
        }
    };
    let changes = leaders.map(move |leader| {
        // Kept until the client has gone.
        let _permit = &permit;
        Ok(match leader {
            Ok(leader) => {
                let json = leader_json(&election, leader.as_ref());
                Event::default().event("leader").data(json.to_string())
            }
            // The last event: the store refuses.
            Err(error) => {
                let error = json!({ "code": "store_refuses", "message": error.to_string() });
                Event::default().event("error").data(json!({ "error": error }).to_string())
            }
        })
    });
    Ok(Sse::new(changes.take_until(Box::pin(end))).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
