//! The recipe of `tenure-etcd` over the simulated cluster.
//!
//! It has leases, one key per lease and election, withdrawals that void a request, keepalives that a deposed leader may answer, and
//! linearizable reads.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use tenure_core::{
    Candidate, ElectionName, FencingToken,
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Confirmation, Entered, Entry, EntryRequest,
        EntryWatcher, Heartbeat, HeartbeatProof, Observation,
    },
};

use crate::{
    cluster::{connection_reset, session_gone},
    host::{Access, Consistency, name},
    mutant::{RecipeRule, is_disabled},
    recipe::{self, PositionReader, entered, visible_candidates},
};

#[derive(Debug)]
pub(crate) struct SimEtcd(pub(crate) Access);

/// The time limit for one read of a waiting candidate.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
struct Lease {
    access: Access,
    id: u64,
    ttl: Duration,
}

#[async_trait]
impl Backend for SimEtcd {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        self.0.switch_member();
        let id = self.0.ask("grant", Consistency::Quorum, move |state, _| Ok(state.open(ttl))).await?;
        Ok(Box::new(Lease { access: self.0.clone(), id, ttl }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let election = name(election);
        self.0
            .ask("read", Consistency::Quorum, move |state, _| Ok(visible_candidates(state, &election)))
            .await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let first = self.candidates(election).await?.into_iter().next();
        Ok(futures::stream::once(async move { Ok(first) }).boxed())
    }
}

#[async_trait]
impl PositionReader for Lease {
    fn access(&self) -> &Access {
        &self.access
    }

    /// Whether `entry` is the first, by a linearizable read; `None` when it does not exist.
    async fn is_first(&self, entry: &Entry) -> Result<Option<bool>, BackendError> {
        let (election, session, revision) = (name(&entry.election), self.id, entry.version);
        let looking = self.access.ask("look", Consistency::Quorum, move |state, _| {
            let entries = state.entries(&election);
            let ours = entries.iter().any(|e| e.revision == revision && e.session == session);
            Ok(ours.then(|| entries.first().is_some_and(|first| first.revision == revision)))
        });
        match tokio::time::timeout(READ_TIMEOUT, looking).await {
            Ok(is_first) => is_first,
            Err(_) => Err(connection_reset("look")),
        }
    }
}

#[async_trait]
impl BackendSession for Lease {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Read
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let (id, ttl) = (self.id, self.ttl);
        let answer = self
            .access
            .ask("keepalive", Consistency::Member, move |state, member| {
                let at = state.members[member];
                // A deposed leader that does not know it answers from its own memory.
                if let Some(term) = at.believes_to_lead {
                    let epoch = if is_disabled(RecipeRule::ReportTerm) { state.term } else { term };
                    return Ok(Heartbeat { ttl, epoch });
                }
                if at.cut_off || state.leader.is_none() {
                    return Err(connection_reset("keepalive"));
                }
                let ttl = state.touch(id)?;
                let epoch = state.term;
                state.maybe_cut_off_after_heartbeat(member);
                Ok(Heartbeat { ttl, epoch })
            })
            .await;
        if answer.is_err() {
            self.access.switch_member();
        }
        answer
    }

    async fn confirm(
        &self,
        heartbeat: &Heartbeat,
        probe_entry: Option<&Entry>,
    ) -> Result<Confirmation, BackendError> {
        let (epoch, session) = (heartbeat.epoch, self.id);
        let probe_entry = probe_entry.map(|entry| (name(&entry.election), entry.version));
        let consistency =
            if is_disabled(RecipeRule::QuorumRead) { Consistency::Member } else { Consistency::Quorum };
        // The read may go through any member.
        let member = self.access.any_member();
        let read = self
            .access
            .ask_at(member, "confirm", consistency, move |state, member| {
                let believed = state.members[member].believes_to_lead;
                if believed == Some(epoch) {
                    return Ok(Confirmation::Confirmed);
                }
                if state.term != epoch {
                    return Ok(Confirmation::Unconfirmed);
                }
                let stands = probe_entry.as_ref().is_none_or(|(election, revision)| {
                    let mut entries = state.entries(election).iter();
                    entries.any(|e| e.revision == *revision && e.session == session)
                });
                Ok(if stands { Confirmation::Confirmed } else { Confirmation::ProbeEntryGone })
            })
            .await;
        if read.is_err() {
            self.access.switch_member();
        }
        read
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        let in_election = election.clone();
        let (stored, first) = self
            .access
            .ask("enter", Consistency::Quorum, move |state, _| {
                if !state.sessions.contains_key(&session) {
                    return Err(session_gone(session));
                }
                if state.withdrawn.contains(&nonce) {
                    return Err(connection_reset("enter"));
                }
                // A lease has one key in an election.
                let other =
                    state.entries(&election).iter().find(|e| e.session == session && e.nonce != nonce);
                if let Some(other) = other.copied() {
                    state.remove(&election, |entry| *entry == other);
                    return Err(connection_reset("enter"));
                }
                let stored = state.enter(&election, session, nonce)?;
                let first = state.entries(&election).first() == Some(&stored);
                Ok((stored, first || is_disabled(RecipeRule::ReadOnEntering)))
            })
            .await?;
        Ok(entered(request, &in_election, stored.revision, first))
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        recipe::wait_turn(self, entry).await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        recipe::entry_watcher(self)
    }

    async fn update(&self, _entry: &Entry, _request: &EntryRequest) -> Result<(), BackendError> {
        Ok(())
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        self.access
            .ask("leave", Consistency::Quorum, move |state, _| {
                if !is_disabled(RecipeRule::NeverApplyWithdrawn) {
                    state.withdrawn.insert(nonce);
                }
                let any = is_disabled(RecipeRule::LeaveByNonce);
                state.remove(&election, |entry| entry.session == session && (any || entry.nonce == nonce));
                Ok(())
            })
            .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        let id = self.id;
        self.access
            .ask("revoke", Consistency::Quorum, move |state, _| {
                state.end_session(id);
                Ok(())
            })
            .await
    }
}
