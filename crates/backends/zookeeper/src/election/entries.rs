//! The entries of one session: entering an election, updating an entry, leaving.
//!
//! # Requests that arrive late
//!
//! A request whose future was dropped is still carried out, and a request in flight when the
//! connection broke may be. But none is carried out *after* a later request of the same session was
//! answered. On one connection requests are carried out in order. Once the session has moved to another
//! server, or to another connection of the same one, requests left on the old connection are refused
//! (`SessionMovedException`, ZOOKEEPER-417) or discarded with it. Therefore an entry that a listing does not show after a
//! write that a quorum answered will not be created any more.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use futures::future::join;
use tenure_core::{
    FencingToken,
    spi::{BackendError, BackendErrorKind, Entered, Entry, EntryRequest, Won, replacement_payload},
};
use zookeeper_client::{CreateMode, Error, Stat};

use super::{
    acl_audit,
    entry_stat::{fencing_token, version},
    queue::{Queue, first_candidate},
    store::ElectionStore,
};
use crate::transport::{
    connection::Connection,
    error::{backend_error, unavailable},
    lock,
    parents::{MAX_CREATE_ATTEMPTS, create_parent},
    resumable_session::ResumableSession,
};

/// The path and stat of an entry.
type EntryStat = (String, Stat);

/// Creates, updates and deletes the entries of one session.
#[derive(Debug)]
pub(crate) struct Entries {
    store: Arc<ElectionStore>,
    session: Arc<ResumableSession>,
    /// Whether the ACLs of the znodes above the first entry are checked: once, since the doctor checks all.
    acls_checked: Arc<AtomicBool>,
    /// The nonces of requests that were sent and not withdrawn yet.
    sent_requests: Mutex<HashSet<u128>>,
}

impl Entries {
    pub(crate) fn new(store: Arc<ElectionStore>, session: Arc<ResumableSession>) -> Self {
        Self { store, session, acls_checked: Arc::default(), sent_requests: Mutex::default() }
    }

    /// Creates the entry, or finds the one that an earlier attempt has created.
    pub(crate) async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let connection = self.session.connection().await?;
        let found = if lock(&self.sent_requests).insert(request.nonce) {
            None
        } else {
            self.find_entry(&connection, request).await?
        };
        let ((path, stat), queue) = match found {
            Some(found) => found,
            None => self.create_entry(&connection, request).await?,
        };
        self.session.check_owner(&stat)?;
        let leads = self.leads(&connection, &queue, &path, &stat).await;
        if self.store.options().creator_only && !self.acls_checked.swap(true, Relaxed) {
            let election_path = self.store.election_path(&request.election);
            let checked = Arc::clone(&self.acls_checked);
            acl_audit::start(&self.store, &connection, &path, election_path, checked);
        }
        match leads {
            Ok(leads) => {
                let (election, version) = (request.election.clone(), version(&stat)?);
                let entry = Entry { election, key: path.into(), version };
                Ok(match leads {
                    Some(token) => Entered::Leads(Won::new(entry, token)),
                    None => Entered::Queued { entry: Some(entry) },
                })
            }
            Err(refused) if refused.is_permanent() => {
                self.delete_refused_entry(&connection, &path).await?;
                Err(refused)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the entry's payload.
    pub(crate) async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        let connection = self.session.connection().await?;
        loop {
            let found = connection.get(&entry.key).await;
            let Some((found, stat)) = found.map_err(|error| backend_error("updating", &error))? else {
                return Err(BackendError::new(
                    BackendErrorKind::EntryGone,
                    "the entry is gone from ZooKeeper",
                ));
            };
            let payload = replacement_payload(&found, request);
            let written = connection.set_version(&entry.key, &payload, stat.version).await;
            if written.map_err(|error| backend_error("updating", &error))? {
                return Ok(());
            }
        }
    }

    /// Deletes the entry, or the one that an earlier attempt may have created.
    pub(crate) async fn leave(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
    ) -> Result<(), BackendError> {
        let connection = self.session.connection().await?;
        let path = match entry {
            Some(entry) => Some(entry.key.to_string()),
            None => self
                .list_after_barrier(&connection, request)
                .await?
                .and_then(|queue| queue.find(&self.store.layout.prefix(request.nonce))),
        };
        if let Some(path) = path {
            connection.delete(&path).await.map_err(|error| backend_error("leaving", &error))?;
        }
        lock(&self.sent_requests).remove(&request.nonce);
        Ok(())
    }

    /// Creates the entry and lists the candidates just after.
    async fn create_entry(
        &self,
        connection: &Connection,
        request: &EntryRequest,
    ) -> Result<(EntryStat, Queue), BackendError> {
        let parent = self.store.election_path(&request.election);
        let path = format!("{parent}/{}", self.store.layout.prefix(request.nonce));
        let payload = request.payload();
        for _ in 0..MAX_CREATE_ATTEMPTS {
            // Both are sent at once. The server lists after it has created, so the listing shows the new entry.
            let acls = self.store.options().acls();
            let creating = connection.create(&path, &payload, CreateMode::EphemeralSequential, acls);
            let (created, children) = join(creating, connection.children(&parent)).await;
            match (created, children) {
                (Ok(created), Ok(Some(children))) => {
                    return Ok((created, Queue::new(&self.store, &parent, children)));
                }
                (Err(Error::NoNode), _) => create_parent(self.store.options(), connection, &path).await?,
                (Ok(_), Ok(None)) => {
                    return Err(unavailable("the election's znode was deleted together with the new entry"));
                }
                (Err(error), _) => return Err(backend_error("entering", &error)),
                (Ok((path, _)), Err(error)) => {
                    self.delete_refused_entry(connection, &path).await?;
                    return Err(backend_error("entering", &error));
                }
            }
        }
        Err(unavailable("the election's znode is deleted again and again"))
    }

    /// The fencing token of the entry at `path` if no candidate is ahead of it.
    async fn leads(
        &self,
        connection: &Connection,
        queue: &Queue,
        path: &str,
        stat: &Stat,
    ) -> Result<Option<FencingToken>, BackendError> {
        let reading = |error| backend_error("reading a candidate", &error);
        let Some(ahead) = queue.ahead_of(connection, path, stat.czxid).await.map_err(reading)? else {
            return Err(unavailable("the entry was deleted while it was being created"));
        };
        if first_candidate(&self.store, connection, ahead).await.map_err(reading)?.is_some() {
            return Ok(None);
        }
        Ok(Some(fencing_token(version(stat)?)?))
    }

    /// Deletes an entry that cannot be used: a refused candidate must not leave an entry behind.
    async fn delete_refused_entry(&self, connection: &Connection, path: &str) -> Result<(), BackendError> {
        let deleted = connection.delete(path).await;
        deleted.map_err(|error| unavailable(format!("{path} is not deleted yet: {error}")))
    }

    /// The entry that an earlier attempt has created.
    async fn find_entry(
        &self,
        connection: &Connection,
        request: &EntryRequest,
    ) -> Result<Option<(EntryStat, Queue)>, BackendError> {
        let Some(queue) = self.list_after_barrier(connection, request).await? else { return Ok(None) };
        let Some(path) = queue.find(&self.store.layout.prefix(request.nonce)) else {
            return Ok(None);
        };
        let stat = connection.stat(&path).await.map_err(|error| backend_error("entering", &error))?;
        Ok(stat.map(|stat| ((path, stat), queue)))
    }

    /// The candidates, after everything that this session has requested before has been carried out.
    async fn list_after_barrier(
        &self,
        connection: &Connection,
        request: &EntryRequest,
    ) -> Result<Option<Queue>, BackendError> {
        let parent = self.store.election_path(&request.election);
        let barrier = connection.barrier(&self.store.options().barrier_path);
        let (passed, children) = join(barrier, connection.children(&parent)).await;
        passed.map_err(|error| backend_error("looking for an entry", &error))?;
        let children = children.map_err(|error| backend_error("looking for an entry", &error))?;
        Ok(children.map(|children| Queue::new(&self.store, &parent, children)))
    }
}
