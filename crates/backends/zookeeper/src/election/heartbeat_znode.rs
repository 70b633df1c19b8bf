//! The znode that a session's heartbeats write to.

use tenure_core::spi::BackendError;
use tokio::sync::OnceCell;
use zookeeper_client::{CreateMode, Error};

use super::store::ElectionStore;
use crate::transport::{
    connection::Connection,
    error::{backend_error, unavailable},
    parents::{MAX_CREATE_ATTEMPTS, create_parent},
    resumable_session::ResumableSession,
    znode_stat::session_name,
};

/// An ephemeral znode of one session. Nobody watches it, because every heartbeat would fire a data watch.
///
/// It is created with the first entry or the first heartbeat.
#[derive(Debug)]
pub(crate) struct HeartbeatZnode {
    path: String,
    created: OnceCell<()>,
}

impl HeartbeatZnode {
    /// A znode with a random name for `session`. Does not create it yet.
    pub(crate) fn new(store: &ElectionStore, session: &ResumableSession) -> Result<Self, BackendError> {
        let random =
            getrandom::u64().map_err(|error| unavailable(format!("getting a random number: {error}")))?;
        let path = format!("{}/{}-{random:016x}", store.sessions_path(), session_name(session.id()));
        Ok(Self { path, created: OnceCell::new() })
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Creates the znode, and its parents if needed, unless it exists.
    pub(crate) async fn ensure_exists(
        &self,
        store: &ElectionStore,
        session: &ResumableSession,
        connection: &Connection,
    ) -> Result<(), BackendError> {
        let create = async || {
            for _ in 0..MAX_CREATE_ATTEMPTS {
                let acls = store.options().acls();
                match connection.create(&self.path, &[], CreateMode::Ephemeral, acls).await {
                    Ok((_, stat)) => return session.check_owner(&stat),
                    // An earlier attempt created it, since its name is random. Every heartbeat checks its owner.
                    Err(Error::NodeExists) => return Ok(()),
                    Err(Error::NoNode) => create_parent(store.options(), connection, &self.path).await?,
                    Err(error) => return Err(backend_error("creating the heartbeat znode", &error)),
                }
            }
            Err(unavailable(format!("the parent of {} is deleted again and again", self.path)))
        };
        self.created.get_or_try_init(create).await.copied()
    }
}
