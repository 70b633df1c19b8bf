//! The recipe of `tenure-zookeeper` over the simulated cluster.
//!
//! A session has one connection at a time, which keeps the order of its requests. A follower reports the sessions that it has touched
//! when the leader pings it, or never ([`reports`](crate::reports)). A member that lags lists stale children.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use tenure_core::{
    Candidate, ElectionName,
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Entered, Entry, EntryRequest, EntryWatcher,
        Heartbeat, HeartbeatProof, Observation, QueuePosition, SessionOptions, Won,
    },
};
use tokio::time::Instant;

use crate::{
    cluster::{State, connection_reset, session_gone},
    host::{Access, Consistency, name},
    link::LinkState,
    mutant::{RecipeRule, is_disabled},
    recipe::{self, PositionReader, entered, visible_candidates},
};

#[derive(Debug)]
pub(crate) struct SimZookeeper(pub(crate) Access);

/// A session; clones are the same one.
#[derive(Clone, Debug)]
struct Session {
    access: Access,
    id: u64,
    ttl: Duration,
    /// The number of the current connection; servers refuse requests of earlier ones.
    connection: Arc<AtomicU64>,
    /// When the connection was made. The session never sees a state older than that.
    seen: Arc<Mutex<Instant>>,
    /// Requests that were sent and not withdrawn yet.
    sent_requests: Arc<Mutex<std::collections::BTreeSet<u128>>>,
}

#[async_trait]
impl Backend for SimZookeeper {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let ttl = options.ttl;
        self.0.switch_member();
        let id = self.0.ask("connect", Consistency::Quorum, move |state, _| Ok(state.open(ttl))).await?;
        Ok(Box::new(Session {
            access: self.0.clone(),
            id,
            ttl,
            connection: Arc::default(),
            seen: Arc::new(Mutex::new(Instant::now())),
            sent_requests: Arc::default(),
        }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let election = name(election);
        self.0
            .ask("list", Consistency::Quorum, move |state, _| Ok(visible_candidates(state, &election)))
            .await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let first = self.candidates(election).await?.into_iter().next();
        Ok(futures::stream::once(async move { Ok(first) }).boxed())
    }
}

impl Session {
    /// Sends a request over the current connection, and reconnects when there is no answer in time.
    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        consistency: Consistency,
        carried_out: impl Fn(&mut State, usize) -> Result<T, BackendError> + Send + Sync + 'static,
    ) -> Result<T, BackendError> {
        let (id, connection) = (self.id, self.connection.load(Relaxed));
        let in_time = Duration::from_secs(2);
        let asking = self.access.ask(what, consistency, move |state, member| {
            let session = state.sessions.get_mut(&id).ok_or_else(|| session_gone(id))?;
            // The session has moved to a newer connection.
            if session.connection > connection && !is_disabled(RecipeRule::NeverApplyWithdrawn) {
                return Err(connection_reset(what));
            }
            session.connection = session.connection.max(connection);
            carried_out(state, member)
        });
        let outcome =
            tokio::time::timeout(in_time, asking).await.unwrap_or_else(|_| Err(connection_reset(what)));
        if outcome.as_ref().is_err_and(BackendError::is_retryable) {
            self.move_on().await;
        }
        outcome
    }

    /// Takes the session to another member.
    async fn move_on(&self) {
        self.access.switch_member();
        let (id, next) = (self.id, self.connection.fetch_add(1, Relaxed) + 1);
        // With a barrier: this member shows nothing older from here on.
        let moved = self.access.ask("move", Consistency::Quorum, move |state, _| {
            state.touch(id)?;
            if let Some(session) = state.sessions.get_mut(&id) {
                session.connection = session.connection.max(next);
            }
            Ok(())
        });
        if tokio::time::timeout(Duration::from_secs(2), moved).await.is_ok_and(|moved| moved.is_ok()) {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    fn seen(&self) -> Instant {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PositionReader for Session {
    fn access(&self) -> &Access {
        &self.access
    }

    /// How many entries are ahead of `entry`, as this member shows it, which may lag; `None` when it does not exist.
    async fn entries_ahead(&self, entry: &Entry) -> Result<Option<usize>, BackendError> {
        let (election, session, revision) = (name(&entry.election), self.id, entry.version);
        let seen = self.seen();
        self.ask("list", Consistency::Member, move |state, member| {
            let lag = state.members[member].lag;
            let entries = state.entries_as_of(&election, lag, seen);
            let ahead = entries.iter().position(|e| e.revision == revision && e.session == session);
            // A session sees its own writes: a member that does not have the entry yet has not answered yet.
            let made = state.entries(&election).iter().any(|e| e.revision == revision);
            Ok(ahead.or(made.then_some(1)))
        })
        .await
    }
}

#[async_trait]
impl BackendSession for Session {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::LaterHeartbeats { gap: self.ttl / 4, count: 3 }
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let id = self.id;
        self.ask("write", Consistency::Quorum, move |state, member| {
            state.receive_reports(member);
            state.touch_at(member, id);
            if !state.sessions.contains_key(&id) {
                return Err(session_gone(id));
            }
            state.commit(member);
            state.maybe_cut_off_after_heartbeat(member);
            Ok(())
        })
        .await?;
        // The host may reach only the member that is cut off.
        if self.access.cluster.state().members[self.access.member()].cut_off
            && self.access.link.random().bool()
        {
            self.access.link.count();
            self.access.link.set_state(LinkState::Cut);
        }
        Ok(Heartbeat::new(self.ttl))
    }

    /// A read: the member answers it from its own state.
    async fn keep_alive(&self) -> Result<(), BackendError> {
        let id = self.id;
        self.ask("read", Consistency::Member, move |state, member| {
            if !state.sessions.contains_key(&id) {
                return Err(session_gone(id));
            }
            state.touch_at(member, id);
            Ok(())
        })
        .await
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        let duplicate_delay =
            !self.sent_requests.lock().unwrap_or_else(PoisonError::into_inner).insert(nonce);
        if duplicate_delay {
            // A barrier and a listing.
            let election = election.clone();
            let found = self
                .ask("find", Consistency::Quorum, move |state, _| {
                    let entries = state.entries(&election);
                    let found = entries.iter().find(|e| e.session == session && e.nonce == nonce);
                    Ok(found.map(|found| (*found, entries.first() == Some(found))))
                })
                .await?;
            if let Some((stored, first)) = found {
                return entered(request, &name(&request.election), stored.revision, first);
            }
        }
        let key = election.clone();
        let (stored, first) = self
            .ask("create", Consistency::Quorum, move |state, _| {
                let stored = state.enter(&election, session, nonce)?;
                let first = state.entries(&election).first() == Some(&stored);
                Ok((stored, first || is_disabled(RecipeRule::ReadOnEntering)))
            })
            .await?;
        entered(request, &key, stored.revision, first)
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        recipe::wait_turn(self, entry, position).await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        recipe::entry_watcher(self)
    }

    async fn update(&self, _entry: &Entry, _request: &EntryRequest) -> Result<(), BackendError> {
        Ok(())
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        self.ask("delete", Consistency::Quorum, move |state, _| {
            let any = is_disabled(RecipeRule::LeaveByNonce);
            state.remove(&election, |entry| entry.session == session && (any || entry.nonce == nonce));
            Ok(())
        })
        .await?;
        self.sent_requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.nonce);
        Ok(())
    }

    async fn close(&self) -> Result<(), BackendError> {
        let id = self.id;
        self.ask("close", Consistency::Quorum, move |state, _| {
            state.end_session(id);
            Ok(())
        })
        .await
    }
}
