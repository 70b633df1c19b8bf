//! The znodes above sessions and entries: made when they are missing, again and again.

use tenure_core::spi::BackendError;
use zookeeper_client::{CreateMode, Error};

use crate::{Shared, connection::Connection, error::failed};

/// Makes the znode above `path`, a container that ZooKeeper deletes when it has been empty for a
/// while, and the root above that, which stays.
pub(crate) async fn make_parent(
    shared: &Shared,
    connection: &Connection,
    path: &str,
) -> Result<(), BackendError> {
    let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
    if make(shared, connection, parent, CreateMode::Container).await? {
        return Ok(());
    }
    make_root(shared, connection).await?;
    make(shared, connection, parent, CreateMode::Container).await?;
    Ok(())
}

/// Makes the root, and what is above it, where they are missing.
pub(crate) async fn make_root(shared: &Shared, connection: &Connection) -> Result<(), BackendError> {
    let slashes = shared.config.root.match_indices('/').map(|(at, _)| at).skip(1);
    for end in slashes.chain([shared.config.root.len()]) {
        make(shared, connection, &shared.config.root[..end], CreateMode::Persistent).await?;
    }
    Ok(())
}

/// Whether the znode is there now; it is not when the one above it is missing.
async fn make(
    shared: &Shared,
    connection: &Connection,
    path: &str,
    mode: CreateMode,
) -> Result<bool, BackendError> {
    match connection.create(path, &[], mode, shared.terms.acls()).await {
        Ok(_) | Err(Error::NodeExists) => Ok(true),
        Err(Error::NoNode) => Ok(false),
        // It may be another's who lets us in below, but not beside it.
        Err(Error::NoAuth) => {
            let found = connection.stat(path).await.map_err(|error| failed("looking at a parent", &error))?;
            if found.is_some() {
                return Ok(true);
            }
            Err(failed(&format!("creating {path}"), &Error::NoAuth))
        }
        Err(error) => Err(failed(&format!("creating {path}"), &error)),
    }
}
