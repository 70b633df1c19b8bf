//! Ends a session of an earlier process of this candidate ([`Backend::end_session`](tenure_core::spi::Backend::end_session)).
//!
//! Only its own client can close a session: that takes the session's password, which the client library does not reveal. So the
//! entries of the session are deleted, which is what other candidates wait for. The session itself has none any more, and
//! expires. An entry is deleted if its name has a nonce of that process and the session owns it; the root's creation tells
//! ensembles apart (see [`ensemble`](crate::transport::ensemble)).
//!
//! If no entry is found, the session has ended, its process has died before it could enter, or its entries have another layout or
//! are in elections that this user may not list. The last two expire.

use futures::{StreamExt as _, stream};
use tenure_core::spi::{BackendError, BackendErrorKind, SessionRecord};
use tracing::warn;
use zookeeper_client::Error;

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

/// Deletes the entries of the session of `record`, in all elections. If that fails in one, goes on with the others.
///
/// # Errors
/// [`Invalid`](BackendErrorKind::Invalid) when it is a session of another ensemble or root.
pub(crate) async fn end(store: &ElectionStore, record: &SessionRecord) -> Result<(), BackendError> {
    let reader = store.reader_session().await?;
    let connection = reader_connection(&reader).await?;
    // The server may lag behind the one that the earlier process used.
    let barrier = connection.barrier(&store.options().barrier_path).await;
    barrier.map_err(|error| unavailable(format!("ending a session: {error}")))?;
    let root_path = &store.options().root;
    match root(store, &connection).await.map_err(reader_error)? {
        RootState::Present(root) if root.to_string() == record.cluster => {}
        other => {
            return Err(invalid(format!(
                "the session belongs to the root with {}, and {root_path} is {other} here: the earlier process used another \
                 root or ensemble, or the root was deleted",
                record.cluster
            )));
        }
    }
    let deleted = delete_all_entries(store, &connection, record).await;
    if deleted.map_err(|error| reader_error(backend_error("ending a session", &error)))? == 0 {
        let (session, layout) = (&record.session, store.layout);
        warn!(
            session,
            %layout,
            "no entry of the earlier session was found in the elections that this user may list: it has ended or had none, or \
             the earlier process had another layout or user, so that its entries expire"
        );
    }
    Ok(())
}

fn invalid(text: String) -> BackendError {
    BackendError::new(BackendErrorKind::Invalid, text)
}

/// Deletes the entries of the session in all elections. Returns how many there were.
async fn delete_all_entries(
    store: &ElectionStore,
    connection: &Connection,
    record: &SessionRecord,
) -> Result<usize, Error> {
    let root = &store.options().root;
    let elections = connection.children(root).await?.unwrap_or_default();
    // The name of an election cannot contain `~`.
    let elections = elections.into_iter().filter(|name| !name.starts_with('~'));
    let outcomes: Vec<_> = stream::iter(elections)
        .map(|election| delete_entries(store, connection, format!("{root}/{election}"), record))
        .buffer_unordered(MAX_CONCURRENT_READS)
        .collect()
        .await;
    outcomes.into_iter().sum()
}

/// Deletes the entries of the session in one election. Returns how many there were. An election that this user may not list has
/// none.
async fn delete_entries(
    store: &ElectionStore,
    connection: &Connection,
    parent: String,
    record: &SessionRecord,
) -> Result<usize, Error> {
    let names = match connection.children(&parent).await {
        Err(Error::NoAuth) => return Ok(0),
        names => names?.unwrap_or_default(),
    };
    let mut deleted = 0;
    for name in names {
        if !store.layout.nonce(&name).is_some_and(|nonce| record.is_nonce_of_session(nonce)) {
            continue;
        }
        let path = format!("{parent}/{name}");
        if is_owned(connection, &path, record).await? {
            connection.delete(&path).await?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Whether the session owns the znode at `path`.
async fn is_owned(connection: &Connection, path: &str, record: &SessionRecord) -> Result<bool, Error> {
    let stat = connection.stat(path).await?;
    Ok(stat.is_some_and(|stat| session_name(stat.ephemeral_owner) == record.session))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;
    use crate::{
        election::{layout::Layout, session_bounds::SessionBounds},
        transport::{
            connect_options::ConnectOptions,
            ensemble::Ensemble,
            scripted_server::{Answer, Request, ScriptedServer},
        },
    };

    const NONCE: u64 = 0xabc;
    const OWNER: i64 = 0x77;

    /// Ends the session on a server with `layout`'s elections, of which one must not be listed. Returns what was deleted.
    async fn end_session(layout: Layout, has_entry: bool) -> (Result<(), BackendError>, Vec<String>) {
        let entry = Layout::Tenure.prefix(u128::from(NONCE) << 64 | 5) + "0000000001";
        let deleted = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&deleted);
        let server = ScriptedServer::start(move |request| {
            let answer = match request {
                Request::Connect { .. } => Answer::Session(7),
                Request::Sync => Answer::ok(&[0, 0, 0, 1, b'/']),
                Request::Children(path) => match &*path {
                    "/root" => Answer::children(&["private", "e", "~doctor"]),
                    "/root/private" => Answer::no_auth(),
                    _ if has_entry => Answer::children(&[&entry, "c-foreign"]),
                    _ => Answer::children(&[]),
                },
                Request::Exists(path) if path == "/root" => Answer::stat(1, 0),
                Request::Exists(_) => Answer::stat(2, OWNER),
                Request::Delete(path) if path.ends_with("/~nowhere") => Answer::no_node(),
                Request::Delete(path) => {
                    log.lock().unwrap().push(path);
                    Answer::ok(&[])
                }
                _ => Answer::ok(&[]),
            };
            Box::pin(async { answer })
        })
        .await;
        let options = ConnectOptions::for_tests(Duration::from_secs(10));
        let ensemble = Ensemble::new(options, vec![server.address().to_owned()]);
        let store = ElectionStore::new(layout, SessionBounds::default(), ensemble);
        let record = SessionRecord::new(session_name(OWNER), "czxid 0x1, ctime 0", NONCE);
        let outcome = end(&store, &record).await;
        let deleted = deleted.lock().unwrap().clone();
        (outcome, deleted)
    }

    /// Hazard G39: an election that the user may not list does not keep the entries of the others.
    #[tokio::test]
    async fn all_entries_that_can_be_listed_are_deleted() {
        let (outcome, deleted) = end_session(Layout::Tenure, true).await;
        outcome.unwrap();
        let [entry] = &deleted[..] else { panic!("{deleted:?}") };
        assert!(entry.starts_with("/root/e/c-"), "{deleted:?}");
    }

    /// Hazard G39: entries with names of another layout are not this process's to delete.
    #[tokio::test]
    async fn entries_of_another_layout_are_not_deleted() {
        for (layout, has_entry) in [(Layout::Tenure, false), (Layout::Curator, true)] {
            let (outcome, deleted) = end_session(layout, has_entry).await;
            outcome.unwrap();
            assert_eq!(deleted, [""; 0]);
        }
    }
}
