//! A session of an elector: heartbeats, and the entries that depend on it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::{
    failpoints::{SafetyRule, is_disabled},
    spi::{
        BackendError, BackendSession, Entered, Entry, EntryRequest, EntryWatcher, Heartbeat, HeartbeatProof,
        QueuePosition, Won,
    },
};
use tokio::time::timeout;

use super::{
    earlier_session, entries::Entries, entry_stat::fencing_token, entry_watcher::ZookeeperEntryWatcher,
    heartbeat_znode::HeartbeatZnode, store::ElectionStore, wait,
};
use crate::transport::{
    connection::Connection,
    error::{backend_error, session_gone, unavailable},
    resumable_session::ResumableSession,
    znode_stat::session_name,
};

/// A session and its entries.
#[derive(Debug)]
pub(crate) struct ZookeeperSession {
    store: Arc<ElectionStore>,
    session: Arc<ResumableSession>,
    granted_ttl: Duration,
    heartbeat_znode: HeartbeatZnode,
    entries: Entries,
}

impl ZookeeperSession {
    /// Opens a session of about `ttl`.
    pub(crate) async fn open(store: Arc<ElectionStore>, ttl: Duration) -> Result<Self, BackendError> {
        let (options, servers) = (Arc::clone(&store.ensemble.options), Arc::clone(&store.ensemble.servers));
        let session = ResumableSession::open(options, servers, ttl).await?;
        let connection = session.connection().await?;
        let granted_ttl = connection.granted_ttl();
        let mut accepted = store.bounds.check(ttl, granted_ttl, connection.server());
        if accepted.is_ok() {
            accepted = store.ensemble.check(&session, true).await;
        }
        if let Err(refused) = accepted {
            // A server with wrong settings, or of another ensemble, may not answer the close either.
            session.mark_without_entries();
            let _ = timeout(store.options().attempt_timeout, session.close()).await;
            return Err(refused);
        }
        let heartbeat_znode = HeartbeatZnode::new(&store, &session)?;
        let session = Arc::new(session);
        let entries = Entries::new(Arc::clone(&store), Arc::clone(&session));
        store.reader_sessions.share(&session);
        Ok(Self { store, session, granted_ttl, heartbeat_znode, entries })
    }
}

#[async_trait]
impl BackendSession for ZookeeperSession {
    fn id(&self) -> String {
        session_name(self.session.id())
    }

    async fn cluster(&self) -> Result<String, BackendError> {
        self.store.map_error(earlier_session::cluster(&self.store, &self.session).await)
    }

    fn granted_ttl(&self) -> Duration {
        self.granted_ttl
    }

    /// A server reports the sessions it has heard from to the leader within half a tick, and the leader ends a session at the
    /// end of a tick. The timeout may become longer when the session is resumed at a server with other bounds, so this counts
    /// with the longest one that the settings accept: twice the requested TTL, or `max_ttl`.
    fn expires_after(&self) -> Duration {
        let (_, longest) = self.store.bounds.accepted(self.session.state().requested_ttl);
        self.store.bounds.expires_after(self.granted_ttl.max(longest))
    }

    /// Every request does, also the pings of the client, and a new connection.
    fn only_heartbeats_extend(&self) -> bool {
        false
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::NextHeartbeat { gap: self.store.bounds.heartbeat_gap(self.granted_ttl) }
    }

    /// Writes to the heartbeat znode, which a quorum has to commit, and then sends a `sync`, which the leader answers.
    ///
    /// A follower reports to the leader which sessions it has heard from when the leader pings it, every half tick. The
    /// leader's pings and its commits arrive in order. So if half a tick lies between two writes, the follower
    /// has reported the first one before it answers the second. But that report may still be in flight, and be lost
    /// with the follower's connection. The `sync` is forwarded after it, and the leader's answer shows that the report
    /// has arrived.
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let connection = self.session.connection_now()?;
        connection.watches().remove_dropped();
        // If this is dropped without an answer, the engine's timeout is over, and another server may be better.
        let give_up = GiveUpUnlessAnswered { connection: Some(&connection), session: &self.session };
        if let Err(error) = self.heartbeat_znode.ensure_exists(&self.store, &self.session, &connection).await
        {
            give_up.answered();
            return self.store.map_error(Err(error));
        }
        let written = match is_disabled(SafetyRule::HeartbeatByWrite) {
            true => connection.stat(self.heartbeat_znode.path()).await,
            false => connection.set(self.heartbeat_znode.path(), &[]).await,
        };
        // The server has answered: if the sync is late, only this heartbeat fails.
        give_up.answered();
        let stat = self.store.map_error(written.map_err(|error| backend_error("heartbeat", &error)))?;
        let Some(stat) = stat else {
            return Err(session_gone("the session's znode is gone from ZooKeeper"));
        };
        self.session.check_owner(&stat)?;
        if !is_disabled(SafetyRule::HeartbeatByWrite) {
            connection.sync().await.map_err(|error| backend_error("heartbeat", &error))?;
        }
        // If the client has reconnected by itself, the answer may be for another session.
        if !connection.is_unbroken() {
            return Err(unavailable("the connection broke during a heartbeat"));
        }
        // Another server may have other bounds.
        Ok(Heartbeat::new(connection.granted_ttl().min(self.granted_ttl)))
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let entered = self.store.map_error(self.entries.enter(request, &self.heartbeat_znode).await)?;
        self.store.options().request_permitted();
        Ok(entered)
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        _position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        let entry = entry.ok_or_else(wait::entry_gone)?;
        self.store.map_error(wait::until_first(&self.store, &self.session, entry).await)?;
        Ok(Won::new(entry.clone(), fencing_token(entry.version)?))
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        Box::new(ZookeeperEntryWatcher::new(Arc::clone(&self.session)))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.store.map_error(self.entries.update(entry, request).await)
    }

    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        self.store.map_error(self.entries.leave(request, entry).await)
    }

    async fn close(&self) -> Result<(), BackendError> {
        match self.session.close().await {
            true => Ok(()),
            false => Err(unavailable("no server has confirmed the end of the ZooKeeper session")),
        }
    }
}

impl Drop for ZookeeperSession {
    /// Ends the session even if an observer still reads over it.
    fn drop(&mut self) {
        self.session.begin_close();
    }
}

/// Gives a connection up when dropped, unless the server has answered.
struct GiveUpUnlessAnswered<'a> {
    connection: Option<&'a Connection>,
    session: &'a ResumableSession,
}

impl GiveUpUnlessAnswered<'_> {
    fn answered(mut self) {
        self.connection = None;
    }
}

impl Drop for GiveUpUnlessAnswered<'_> {
    fn drop(&mut self) {
        // Closing the session needs the connection.
        if let Some(connection) = self.connection.filter(|_| !self.session.is_closing()) {
            connection.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        election::{layout::Layout, session_bounds::SessionBounds},
        transport::{
            connect_options::ConnectOptions,
            ensemble::Ensemble,
            scripted_server::{Answer, GRANTED_TTL, Request, ScriptedServer},
        },
    };

    /// The engine asks once, when the session is opened: another server may grant more later.
    #[tokio::test]
    async fn the_longest_accepted_timeout_counts() {
        let server = ScriptedServer::start(|request| {
            let answer = match request {
                Request::Connect { .. } => Answer::Session(7),
                _ => Answer::ok(&[]),
            };
            Box::pin(async { answer })
        })
        .await;
        let expires_after = async |bounds: SessionBounds, ttl| {
            let options = ConnectOptions::for_tests(Duration::from_secs(10));
            let ensemble = Ensemble::new(options, vec![server.address().to_owned()]);
            let store = Arc::new(ElectionStore::new(Layout::Tenure, bounds, ensemble));
            ZookeeperSession::open(store, ttl).await.unwrap().expires_after()
        };
        let default = SessionBounds::default();
        let accepted = default.expires_after(2 * GRANTED_TTL);
        assert_eq!(expires_after(default, GRANTED_TTL).await, accepted);
        let bounded = SessionBounds { max_ttl: Some(GRANTED_TTL), ..default };
        assert_eq!(expires_after(bounded, GRANTED_TTL).await, default.expires_after(GRANTED_TTL));
    }
}
