//! Diagnoses of the znodes: who else has permissions, and elections blocked by a znode that may be garbage.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use tenure_core::{Diagnosis, spi::BackendError};
use tokio::time::timeout;
use zookeeper_client::{AuthId, CreateMode, Error};

use crate::{
    election::{
        acl_audit::{ADVICE, ids, others_permissions},
        queue::{Queue, first_candidate},
        store::ElectionStore,
    },
    transport::{
        connection::Connection,
        parents::create_parent,
        reader_sessions::reader_connection,
        znode_stat::{is_unreadable, session_name},
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
    let own_ids = match store.options().creator_only {
        true => Some(own_ids(store, connection).await),
        false => None,
    };
    let check_acl = |path: String, subject: String| {
        let own_ids = &own_ids;
        async move {
            let own_ids = own_ids.as_ref()?;
            let permissions = others_permissions(connection, own_ids.as_deref(), &path).await.ok()??;
            Some(Diagnosis::warning(subject, format!("{path}: {permissions}"), ADVICE))
        }
    };
    let mut diagnoses = Vec::new();
    let root = &store.options().root;
    diagnoses.extend(check_acl(root.clone(), "root".to_owned()).await);
    diagnoses.extend(check_acl(store.sessions_path(), "sessions".to_owned()).await);
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

/// Our own ids, read from the ACL of a znode that is created for this and deleted; `None` if it cannot be created.
async fn own_ids(store: &ElectionStore, connection: &Connection) -> Option<Vec<AuthId>> {
    let path = format!(
        "{}/{}-who-{:016x}",
        store.sessions_path(),
        session_name(connection.session().id().0),
        fastrand::u64(..)
    );
    let create = || connection.create(&path, &[], CreateMode::Ephemeral, store.options().acls());
    match create().await {
        Err(Error::NoNode) => {
            create_parent(store.options(), connection, &path).await.ok()?;
            create().await.ok()?;
        }
        created => drop(created.ok()?),
    }
    let own_ids = ids(connection, &path).await;
    let _ = connection.delete(&path).await;
    own_ids.ok()
}
