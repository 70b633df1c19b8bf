//! Whether a store does what is asked of it, and which one it is.

use std::time::Duration;

use tenure_core::spi::{BackendError, BackendErrorKind};

use crate::{
    client::{Client, epoch_refused, session_gone},
    record::{STORE_KEY, Session, SessionId, StoreRecord},
    store::{CasStore, Epoch, Freshness, Swap, Version},
};

/// Checks that the store refuses a swap with a wrong version: of the record of a new session, of beat 1, that nobody knows yet, and of a record
/// that does not exist. Returns the version of beat 2.
///
/// Some servers accept the condition and ignore it: all candidates would lead (hazard C3).
///
/// # Errors
/// [`Invalid`](BackendErrorKind::Invalid) when the store ignores the condition.
pub(crate) async fn probe<S: CasStore>(
    client: &Client<S>,
    session: &SessionId,
    version: Version,
    epoch: Epoch,
    ttl: Duration,
) -> Result<Version, BackendError> {
    let second = Session::live(2, ttl);
    let done = match client.swap_session(session, Some(&version), epoch, &second).await? {
        Swap::Done(version) => version,
        // Done by an earlier attempt of the store's client (hazard C4).
        Swap::Conflict => match client.read_session(session, Freshness::Fresh).await? {
            Some((version, found)) if found == second => version,
            _ => return Err(session_gone(session, "its record was replaced")),
        },
        Swap::EpochChanged => return Err(failed_over(client, epoch).await),
    };
    // The last swap names a record that does not exist: a late heartbeat must not recreate the record of a session that was ended and deleted.
    let missing = SessionId::random();
    for (session, wrong_version) in [(session, None), (session, Some(&version)), (&missing, Some(&done))] {
        match client.swap_session(session, wrong_version, epoch, &Session::ended()).await? {
            Swap::Conflict => {}
            // Says nothing of the condition: another session has to try.
            Swap::EpochChanged => return Err(failed_over(client, epoch).await),
            Swap::Done(written) => {
                // Best effort. No candidate enters here, so nobody would collect it as garbage.
                let _ = client.delete_session(session, &written).await;
                let text = "this store ignores the condition of a write: two candidates could lead; use another store, or a version \
                            of its server and proxies that supports conditional writes";
                return Err(BackendError::new(BackendErrorKind::Invalid, text));
            }
        }
    }
    Ok(done)
}

/// The error of a session during whose probe the store has failed over. The next one is of the new epoch.
async fn failed_over<S: CasStore>(client: &Client<S>, epoch: Epoch) -> BackendError {
    client.later_epoch(epoch).await.err().unwrap_or_else(|| epoch_refused(epoch))
}

/// The record of the store, which is created once.
pub(crate) async fn store_record<S: CasStore>(
    client: &Client<S>,
) -> Result<(Version, StoreRecord), BackendError> {
    loop {
        if let Some(found) = client.read_store().await? {
            return Ok(found);
        }
        let epoch = client.epoch().await?;
        let body = StoreRecord::new().encode();
        if client.swap("creating the record of the store", STORE_KEY, None, epoch, &body).await?
            == Swap::EpochChanged
        {
            client.later_epoch(epoch).await?;
        }
    }
}

/// Identifies the store.
pub(crate) async fn store_identity<S: CasStore>(client: &Client<S>) -> Result<String, BackendError> {
    Ok(store_record(client).await?.1.id.to_string())
}
