//! Checks whether campaigns can succeed, for services that end at their start rather than wait for a store.

use std::sync::Arc;

use super::{
    elector_context::ElectorContext,
    runtime::retry::Retry,
    tasks::session_opening::{OpenError, close_unused, open_backend_session},
};
use crate::{
    ElectionName, Error,
    spi::{BackendError, BackendErrorKind},
    sync::timeout,
};

/// The election whose leader is read; also the one that `diagnose` enters.
const CHECKED_ELECTION: &str = "tenure-doctor";

/// Opens a session, reads a leader, and closes the session. Retries an outage for one request timeout; no attempt takes
/// longer than another one.
pub(super) async fn check(shared: &Arc<ElectorContext>) -> Result<(), Error> {
    let last_attempt = shared.clock.now() + shared.config.request_timeout;
    let mut retry = Retry::new(shared.config.retry);
    loop {
        match attempt(shared).await {
            Ok(()) => {
                shared.status.answered();
                return Ok(());
            }
            Err(OpenError::Backend(error)) => {
                shared.status.failed(&error);
                if error.is_permanent() || shared.clock.now() >= last_attempt {
                    return Err(error.into());
                }
            }
            Err(error @ OpenError::Config(_)) => return Err(error.into()),
        }
        retry.pause().await;
    }
}

async fn attempt(shared: &Arc<ElectorContext>) -> Result<(), OpenError> {
    let end = shared.clock.now() + shared.config.request_timeout;
    let election = ElectionName::new(CHECKED_ELECTION).ok();
    let session = open_backend_session(shared, election.clone()).await?.backend_session;
    let limit = end.since(shared.clock.now());
    let read = async {
        match &election {
            Some(election) => shared.backend.leader(election).await.map(drop),
            None => Ok(()),
        }
    };
    let read = timeout(limit, read).await.unwrap_or_else(|_| {
        Err(BackendError::new(BackendErrorKind::Unavailable, "reading the leader: no answer in time"))
    });
    // Not waited for: it proves nothing, and may take another request timeout.
    let closing = Arc::clone(shared);
    shared.runtime.spawn(async move { close_unused(&closing, &*session).await });
    read.map_err(OpenError::Backend)
}
