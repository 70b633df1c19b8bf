//! What an operator is told of the znodes: whose they are, and who stands first that nobody can tell for a candidate.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tenure_core::{Diagnosis, spi::BackendError};
use tokio::time::timeout;
use zookeeper_client::{AuthId, CreateMode, Error};

use crate::{
    Shared,
    connection::{Connection, is_unread, name_of},
    observe::connection_of,
    owners::{REMEDY, ids, trouble},
    parents::make_parent,
    queue::{Queue, first_candidate},
};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// So many elections are looked at, and so many at a time.
const ELECTIONS: usize = 200;
const AT_ONCE: usize = 8;

/// What is not as it should be. Whether the store answers, and takes us, is told elsewhere.
pub(crate) async fn survey(shared: &Arc<Shared>) -> Vec<Diagnosis> {
    let looking = async {
        let link = shared.reader().await?;
        look(shared, &*connection_of(&link).await?).await
    };
    timeout(PATIENCE, looking).await.ok().and_then(Result::ok).unwrap_or_default()
}

async fn look(shared: &Shared, connection: &Connection) -> Result<Vec<Diagnosis>, BackendError> {
    let ours = match shared.terms.creator_only {
        true => Some(who_we_are(shared, connection).await),
        false => None,
    };
    let whose = |path: String, subject: String| {
        let ours = &ours;
        async move {
            let ours = ours.as_ref()?;
            let trouble = trouble(connection, ours.as_deref(), &path).await.ok()??;
            Some(Diagnosis::warning(subject, format!("{path}: {trouble}"), REMEDY))
        }
    };
    let mut diagnoses = Vec::new();
    let root = &shared.config.root;
    diagnoses.extend(whose(root.clone(), "root".to_owned()).await);
    diagnoses.extend(whose(shared.sessions(), "sessions".to_owned()).await);
    let mut elections = connection.children(root).await.ok().flatten().unwrap_or_default();
    elections.retain(|name| !name.starts_with('~'));
    elections.sort_unstable();
    elections.truncate(ELECTIONS);
    let looked = stream::iter(elections).map(|name| {
        let parent = format!("{root}/{name}");
        let subject = format!("election {name}");
        let whose = whose(parent.clone(), subject.clone());
        async move { [whose.await, blocked(shared, connection, &parent, subject).await] }
    });
    let looked: Vec<_> = looked.buffered(AT_ONCE).collect().await;
    diagnoses.extend(looked.into_iter().flatten().flatten());
    Ok(diagnoses)
}

/// Who stands first where that cannot be told for a candidate.
async fn blocked(
    shared: &Shared,
    connection: &Connection,
    parent: &str,
    subject: String,
) -> Option<Diagnosis> {
    let children = connection.children(parent).await.ok()??;
    let mut paths: Vec<_> = Queue::new(shared, parent, children).paths().collect();
    let first = first_candidate(shared, connection, paths.clone()).await.ok()??;
    let path = paths.swap_remove(first);
    let stat = connection.stat(&path).await.ok()??;
    is_unread(&stat).then(|| {
        Diagnosis::warning(
            subject,
            format!("nobody leads before {path} is gone, which this user may not read: it is a candidate of another \
                     user, or was made by none"),
            "let somebody who may read it look (zkCli.sh: stat): where ephemeralOwner is 0x0 no candidate made it; delete it \
             then, and see who may create below the election's znode",
        )
    })
}

/// Our ids, by a znode that is made for that and goes with the session at the latest; `None` when it cannot be made.
async fn who_we_are(shared: &Shared, connection: &Connection) -> Option<Vec<AuthId>> {
    let path = format!(
        "{}/{}-who-{:016x}",
        shared.sessions(),
        name_of(connection.session().id().0),
        fastrand::u64(..)
    );
    let create = || connection.create(&path, &[], CreateMode::Ephemeral, shared.terms.acls());
    match create().await {
        Err(Error::NoNode) => {
            make_parent(shared, connection, &path).await.ok()?;
            create().await.ok()?;
        }
        created => drop(created.ok()?),
    }
    let ours = ids(connection, &path).await;
    let _ = connection.delete(&path).await;
    ours.ok()
}
