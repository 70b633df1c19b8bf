//! Diagnoses of the znodes: who else has permissions, and elections blocked by a znode that may be garbage.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use tenure_core::{Diagnosis, spi::BackendError};
use tokio::time::timeout;
use zookeeper_client::{CreateMode, Error};

use crate::{
    election::{
        acl_audit::{ADVICE, ids, others_permissions},
        queue::{Queue, first_candidate},
        store::ElectionStore,
    },
    transport::{
        connection::Connection, error::EPHEMERAL_ON_LOCAL_SESSION, parents::create_root,
        reader_sessions::reader_connection, znode_stat::is_unreadable,
    },
};

/// The time limit for all checks together.
const TIMEOUT: Duration = Duration::from_secs(8);
/// How many elections are checked.
const MAX_ELECTIONS: usize = 200;
/// How many elections are checked concurrently.
const MAX_CONCURRENT_CHECKS: usize = 8;

/// Diagnoses the znodes. Whether the store is reachable, and accepts this user, is diagnosed elsewhere.
pub(crate) async fn diagnose(store: &ElectionStore) -> Vec<Diagnosis> {
    let checking = async {
        let session = store.reader_session().await?;
        check_znodes(store, &*reader_connection(&session).await?).await
    };
    timeout(TIMEOUT, checking).await.ok().and_then(Result::ok).unwrap_or_default()
}

async fn check_znodes(
    store: &ElectionStore,
    connection: &Connection,
) -> Result<Vec<Diagnosis>, BackendError> {
    let probe = create_probe(store, connection).await;
    let own_ids = match (store.options().creator_only, &probe) {
        (false, _) => None,
        (true, Ok(path)) => Some(ids(connection, path).await.ok()),
        (true, Err(_)) => Some(None),
    };
    if let Ok(path) = &probe {
        let _ = connection.delete(path).await;
    }
    let check_acl = |path: String, subject: String| {
        let own_ids = &own_ids;
        async move {
            let own_ids = own_ids.as_ref()?;
            let permissions = others_permissions(connection, own_ids.as_deref(), &path).await.ok()??;
            Some(Diagnosis::warning(subject, format!("{path}: {permissions}"), ADVICE))
        }
    };
    let mut diagnoses: Vec<_> = probe.err().and_then(|error| explain_refusal(&error)).into_iter().collect();
    let root = &store.options().root;
    diagnoses.extend(check_acl(root.clone(), "root".to_owned()).await);
    let mut elections = connection.children(root).await.ok().flatten().unwrap_or_default();
    elections.retain(|name| !name.starts_with('~'));
    elections.sort_unstable();
    elections.truncate(MAX_ELECTIONS);
    let checked = stream::iter(elections).map(|name| {
        let parent = format!("{root}/{name}");
        let subject = format!("election {name}");
        let check_acl = check_acl(parent.clone(), subject.clone());
        async move { [check_acl.await, check_first_entry(store, connection, &parent, subject).await] }
    });
    let checked: Vec<_> = checked.buffered(MAX_CONCURRENT_CHECKS).collect().await;
    diagnoses.extend(checked.into_iter().flatten().flatten());
    Ok(diagnoses)
}

/// Warns if the first znode of an election is unreadable, so that it may not be a candidate's.
async fn check_first_entry(
    store: &ElectionStore,
    connection: &Connection,
    parent: &str,
    subject: String,
) -> Option<Diagnosis> {
    let children = connection.children(parent).await.ok()??;
    let mut paths: Vec<_> = Queue::new(store, parent, children).paths().collect();
    let first = first_candidate(store, connection, paths.clone()).await.ok()??;
    let path = paths.swap_remove(first);
    let stat = connection.stat(&path).await.ok()??;
    is_unreadable(&stat).then(|| {
        Diagnosis::warning(
            subject,
            format!(
                "nobody leads before {path} is deleted, which this user may not read: it is an entry of another user's \
                 candidate, or garbage"
            ),
            "check it with a user that may read it (zkCli.sh: stat): if its ephemeralOwner is 0x0, no candidate created it; \
             delete it, and check who may create znodes below the election's znode",
        )
    })
}

/// Creates an ephemeral znode, as every candidate does, and returns its path. An election's name cannot contain `~`.
async fn create_probe(store: &ElectionStore, connection: &Connection) -> Result<String, Error> {
    let path = format!("{}/~doctor-{:016x}", store.options().root, fastrand::u64(..));
    let create = || connection.create(&path, &[], CreateMode::Ephemeral, store.options().acls());
    match create().await {
        Err(Error::NoNode) if create_root(store.options(), connection).await.is_ok() => create().await?,
        created => created?,
    };
    Ok(path)
}

/// A problem, if the servers' settings are the reason why an ephemeral znode was refused.
fn explain_refusal(error: &Error) -> Option<Diagnosis> {
    let Error::UnexpectedErrorCode(EPHEMERAL_ON_LOCAL_SESSION) = error else { return None };
    Some(Diagnosis::problem(
        "sessions",
        "the servers give local sessions and do not upgrade them (localSessionsEnabled=true, \
         localSessionsUpgradingEnabled=false): such a session cannot create ephemeral znodes, so that no candidate can \
         enter",
        "set localSessionsUpgradingEnabled=true on every server, or remove localSessionsEnabled",
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        election::{layout::Layout, session_bounds::SessionBounds},
        transport::{
            connect_options::ConnectOptions,
            ensemble::Ensemble,
            scripted_server::{Answer, GRANTED_TTL, Request, ScriptedServer},
        },
    };

    /// ZooKeeper would delete a container, and sessions would find another root.
    #[tokio::test]
    async fn a_missing_root_is_created_as_no_container() {
        let created = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&created);
        let server = ScriptedServer::start(move |request| {
            let answer = match request {
                Request::Connect { .. } => Answer::Session(7),
                Request::Create(path) => {
                    log.lock().unwrap().push(path);
                    Answer::no_node()
                }
                _ => Answer::no_auth(),
            };
            Box::pin(async { answer })
        })
        .await;
        let options = ConnectOptions::for_tests(GRANTED_TTL);
        let connection = Connection::open(&options, server.address(), GRANTED_TTL, None).await.unwrap();
        let ensemble = Ensemble::new(options, vec![server.address().to_owned()]);
        let store = ElectionStore::new(Layout::Tenure, SessionBounds::default(), ensemble);
        assert_eq!(create_probe(&store, &connection).await, Err(Error::NoNode));
        let created = created.lock().unwrap();
        assert_eq!(created.get(1).map(String::as_str), Some("/root"), "{created:?}");
    }

    #[test]
    fn only_local_sessions_are_explained() {
        let found = explain_refusal(&Error::UnexpectedErrorCode(-120)).unwrap();
        assert!(found.text.contains("localSessionsUpgradingEnabled=false"), "{found:?}");
        for other in [Error::UnexpectedErrorCode(-121), Error::NoAuth, Error::ConnectionLoss] {
            assert_eq!(explain_refusal(&other), None, "{other}");
        }
    }
}
