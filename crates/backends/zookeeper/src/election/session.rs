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
    earlier_session, entries::Entries, entry_stat::fencing_token, entry_watcher::entry_watcher,
    store::ElectionStore, wait,
};
use crate::transport::{
    error::{backend_error, unavailable},
    resumable_session::ResumableSession,
    znode_stat::session_name,
};

/// How many later heartbeats prove one; see [`heartbeat`](BackendSession::heartbeat).
const LATER_HEARTBEATS: u32 = 3;

/// A session and its entries.
#[derive(Debug)]
pub(crate) struct ZookeeperSession {
    store: Arc<ElectionStore>,
    session: Arc<ResumableSession>,
    granted_ttl: Duration,
    entries: Entries,
}

impl ZookeeperSession {
    /// Opens a session of about `ttl`.
    pub(crate) async fn open(store: Arc<ElectionStore>, ttl: Duration) -> Result<Self, BackendError> {
        let (options, servers) = (Arc::clone(&store.ensemble.options), Arc::clone(&store.ensemble.servers));
        let session = ResumableSession::open(options, servers, ttl).await?;
        let connection = session.connection().await?;
        let granted_ttl = connection.granted_ttl;
        let mut accepted = store.bounds.check(ttl, granted_ttl, &connection.target.server);
        if accepted.is_ok() {
            accepted = store.ensemble.check(&session, true).await;
        }
        if let Err(refused) = accepted {
            // A server with wrong settings, or of another ensemble, may not answer the close either.
            session.mark_without_entries();
            let _ = timeout(store.options().attempt_timeout, session.close()).await;
            return Err(refused);
        }
        let session = Arc::new(session);
        let entries = Entries::new(Arc::clone(&store), Arc::clone(&session));
        store.reader_sessions.share(&session);
        Ok(Self { store, session, granted_ttl, entries })
    }

    /// Sends a write that is refused, which a quorum has to commit like any other; or a read, which the server answers alone.
    async fn touch(&self, by_write: bool) -> Result<Heartbeat, BackendError> {
        let connection = self.session.connection_now()?;
        connection.watches.remove_dropped();
        let answer = match by_write {
            true => connection.barrier(&self.store.options().barrier_path).await,
            false => connection.stat(&self.store.options().root).await.map(drop),
        };
        self.store.map_error(answer.map_err(|error| backend_error("heartbeat", &error)))?;
        // If the client has reconnected by itself, the answer may be for another session.
        if !connection.is_unbroken() {
            return Err(unavailable("the connection broke during a heartbeat"));
        }
        // Another server may have other bounds.
        Ok(Heartbeat::new(connection.granted_ttl.min(self.granted_ttl)))
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

    /// A server reports the sessions that were touched to the leader within half a tick, and the leader ends a session at the
    /// end of a tick. The timeout may become longer when the session is resumed at a server with other bounds, so this counts
    /// with the longest one that the settings accept: twice the requested TTL, or `max_ttl`.
    fn expires_after(&self) -> Duration {
        let (_, longest) = self.store.bounds.accepted(self.session.state.requested_ttl);
        self.store.bounds.expires_after(self.granted_ttl.max(longest))
    }

    /// Every request does, also the pings of the client, and a new connection.
    fn only_heartbeats_extend(&self) -> bool {
        false
    }

    fn proof(&self) -> HeartbeatProof {
        let gap = self.store.bounds.heartbeat_gap(self.granted_ttl);
        HeartbeatProof::LaterHeartbeats { gap, count: LATER_HEARTBEATS }
    }

    /// A write that is refused ([`Connection::barrier`](crate::transport::connection::Connection::barrier)). The leader of the
    /// ensemble first checks that the session exists, and a quorum commits the refusal like any write (`PrepRequestProcessor`,
    /// `ErrorTxn`). It needs no znode and no permission.
    ///
    /// # Why three later heartbeats prove one
    ///
    /// Every request touches its session at the follower. The leader of the ensemble pings the follower every half tick, the answer
    /// lists the sessions that were touched, and the leader counts their timeouts from there. Pings, commits and their answers keep their order on the
    /// connection between the two. The first of the three writes is committed at least half a tick after the
    /// heartbeat's answer: by then a ping was due, and the leader is running. The leader
    /// sends a due ping before the second one is committed, even if it stalled before the first (hazard Z24): the engine leaves 50 ms or
    /// more between the writes, in which the leader's main loop runs unless it stalls alone (see `docs/assurance/safety.md`). So the follower has
    /// reported the session before it answers the second one. The third one follows that report to the leader, and its
    /// answer shows that the report has arrived (hazard Z18).
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        self.touch(!is_disabled(SafetyRule::HeartbeatByWrite)).await
    }

    /// Reads the root from the server. That touches the session like any request.
    async fn keep_alive(&self) -> Result<(), BackendError> {
        self.touch(false).await.map(drop)
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let entered = self.store.map_error(self.entries.enter(request).await)?;
        self.store.options().request_permitted();
        Ok(entered)
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        let entry = entry.ok_or_else(wait::entry_gone)?;
        self.store.map_error(wait::until_first(&self.store, &self.session, entry, position).await)?;
        Ok(Won::new(entry.clone(), fencing_token(entry.version)?))
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        Box::new(entry_watcher(Arc::clone(&self.session)))
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
