//! Ends a session of an earlier process of this candidate ([`Backend::end_session`](tenure_core::spi::Backend::end_session)).
//!
//! Only its own client can close a session: that takes the session's password, which the client library does not reveal. So the
//! entries of the session are deleted, which is what other candidates wait for. The session itself has none any more, and
//! expires. An entry is deleted if its name has a nonce of that process and the session owns it; the root's creation tells
//! ensembles apart (see [`ensemble`](crate::transport::ensemble)).

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure_core::spi::{BackendError, BackendErrorKind, SessionRecord};

use super::{queue::MAX_CONCURRENT_READS, store::ElectionStore};
use crate::transport::{
    connection::Connection,
    ensemble_identity::RootState,
    error::{backend_error, unavailable},
    parents::create_root,
    reader_sessions::{reader_connection, reader_error},
    resumable_session::ResumableSession,
    znode_stat::session_name,
};

/// Identifies the ensemble by its root, which is created if it does not exist.
///
/// # Errors
/// When the user may not read the root.
pub(crate) async fn cluster(
    store: &ElectionStore,
    session: &ResumableSession,
) -> Result<String, BackendError> {
    let connection = session.connection().await?;
    create_root(store.options(), &connection).await?;
    match root(store, &connection).await? {
        RootState::Present(root) => Ok(root.to_string()),
        other => Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!(
                "the root {} is {other}, so that the ensemble cannot be identified",
                store.options().root
            ),
        )),
    }
}

async fn root(store: &ElectionStore, connection: &Connection) -> Result<RootState, BackendError> {
    store.ensemble.read_root(connection).await.map_err(|error| backend_error("reading the root", &error))
}

/// Deletes the entries of the session of `record`, in all elections.
///
/// # Errors
/// [`Invalid`](BackendErrorKind::Invalid) when it is a session of another ensemble.
pub(crate) async fn end(store: &ElectionStore, record: &SessionRecord) -> Result<(), BackendError> {
    let reader = store.reader_session().await?;
    let connection = reader_connection(&reader).await?;
    // The server may lag behind the one that the earlier process used.
    let barrier = connection.barrier(&store.options().barrier_path).await;
    barrier.map_err(|error| unavailable(format!("ending a session: {error}")))?;
    match root(store, &connection).await.map_err(reader_error)? {
        RootState::Present(root) if root.to_string() == record.cluster => {}
        // The entries were deleted with it.
        RootState::Missing => return Ok(()),
        other => {
            let text =
                format!("the session belongs to the ensemble {:?}, and this is {other}", record.cluster);
            return Err(BackendError::new(BackendErrorKind::Invalid, text));
        }
    }
    let ending = |error| reader_error(backend_error("ending a session", &error));
    let root = &store.options().root;
    let elections = connection.children(root).await.map_err(ending)?.unwrap_or_default();
    // The name of an election cannot contain `~`.
    let elections = elections.into_iter().filter(|name| !name.starts_with('~'));
    stream::iter(elections)
        .map(|election| delete_entries(store, &connection, format!("{root}/{election}"), record))
        .buffer_unordered(MAX_CONCURRENT_READS)
        .try_collect::<()>()
        .await
        .map_err(ending)
}

/// Deletes the entries of the session in one election.
async fn delete_entries(
    store: &ElectionStore,
    connection: &Connection,
    parent: String,
    record: &SessionRecord,
) -> Result<(), zookeeper_client::Error> {
    for name in connection.children(&parent).await?.unwrap_or_default() {
        if !store.layout.nonce(&name).is_some_and(|nonce| record.is_nonce_of_session(nonce)) {
            continue;
        }
        let path = format!("{parent}/{name}");
        let stat = connection.stat(&path).await?;
        if stat.is_some_and(|stat| session_name(stat.ephemeral_owner) == record.session) {
            connection.delete(&path).await?;
        }
    }
    Ok(())
}
