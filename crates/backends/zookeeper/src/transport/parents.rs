//! Creates the root and the znodes of elections whenever they are missing.

use tenure_core::spi::BackendError;
use zookeeper_client::{CreateMode, Error};

use super::{connect_options::ConnectOptions, connection::Connection, error::backend_error};

/// How often creating a znode is tried again when its parent was deleted at that moment.
pub(crate) const MAX_CREATE_ATTEMPTS: usize = 8;

/// Creates the parent of `path`, and the root if needed. The parent is a container, which ZooKeeper deletes some time
/// after its last child. The root is persistent.
pub(crate) async fn create_parent(
    options: &ConnectOptions,
    connection: &Connection,
    path: &str,
) -> Result<(), BackendError> {
    let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
    if create(options, connection, parent, CreateMode::Container).await? {
        return Ok(());
    }
    create_root(options, connection).await?;
    create(options, connection, parent, CreateMode::Container).await?;
    Ok(())
}

/// Creates the root and its ancestors where they are missing.
pub(crate) async fn create_root(
    options: &ConnectOptions,
    connection: &Connection,
) -> Result<(), BackendError> {
    let root = &options.root;
    let slashes = root.match_indices('/').map(|(at, _)| at).skip(1);
    for end in slashes.chain([root.len()]) {
        create(options, connection, &root[..end], CreateMode::Persistent).await?;
    }
    Ok(())
}

/// Creates a znode if it is missing. Returns whether it exists now; `false` means that its parent is missing.
async fn create(
    options: &ConnectOptions,
    connection: &Connection,
    path: &str,
    mode: CreateMode,
) -> Result<bool, BackendError> {
    match connection.create(path, &[], mode, options.acls()).await {
        Ok(_) | Err(Error::NodeExists) => Ok(true),
        Err(Error::NoNode) => Ok(false),
        // It may exist and belong to another user, who permits us to create znodes below it but not beside it.
        Err(Error::NoAuth) => {
            let found = connection.stat(path).await;
            let found = found.map_err(|error| backend_error(&format!("reading {path}"), &error))?;
            if found.is_some() {
                return Ok(true);
            }
            Err(backend_error(&format!("creating {path}"), &Error::NoAuth))
        }
        Err(error) => Err(backend_error(&format!("creating {path}"), &error)),
    }
}
