//! The recipe of `tenure-etcd` over the simulated cluster.
//!
//! It has leases, one key per lease and election, withdrawals that void a request, keepalives that a deposed leader may answer, and
//! linearizable reads that prove them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use tenure_core::{
    Candidate, ElectionName,
    failpoints::{self, SafetyRule},
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Entered, Entry, EntryRequest, EntryWatcher,
        Heartbeat, HeartbeatProof, Observation, QueuePosition, SessionOptions, Won,
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

/// The first pause before a heartbeat is repeated whose epoch has changed. Each pause is twice as long as the one before.
const CONFIRM_RETRY: Duration = Duration::from_millis(20);

/// A lease; clones are the same one.
#[derive(Clone, Debug)]
struct Lease {
    access: Access,
    id: u64,
    ttl: Duration,
    /// The entries of this lease that are known to exist: their revisions and elections.
    own: Arc<Mutex<BTreeSet<(u64, String)>>>,
}

/// The outcome of a confirming read.
enum Confirmation {
    Confirmed,
    /// The epoch has changed since the keepalive.
    EpochChanged,
    /// The entry that the read had to find does not exist.
    ProbeEntryGone,
}

#[async_trait]
impl Backend for SimEtcd {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let ttl = options.ttl;
        self.0.switch_member();
        let id = self.0.ask("grant", Consistency::Quorum, move |state, _| Ok(state.open(ttl))).await?;
        Ok(Box::new(Lease { access: self.0.clone(), id, ttl, own: Arc::default() }))
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

impl Lease {
    fn own(&self) -> MutexGuard<'_, BTreeSet<(u64, String)>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the lease, and returns the epoch in which that was answered: the raft term.
    async fn renew(&self) -> Result<u64, BackendError> {
        let id = self.id;
        let answer = self
            .access
            .ask("keepalive", Consistency::Member, move |state, member| {
                let at = state.members[member];
                // A deposed leader that does not know it answers from its own memory.
                if let Some(term) = at.believes_to_lead {
                    return Ok(if is_disabled(RecipeRule::ReportTerm) { state.term } else { term });
                }
                if at.cut_off || state.leader.is_none() {
                    return Err(connection_reset("keepalive"));
                }
                state.touch(id)?;
                let epoch = state.term;
                state.maybe_cut_off_after_heartbeat(member);
                Ok(epoch)
            })
            .await;
        if answer.is_err() {
            self.access.switch_member();
        }
        answer
    }

    /// Whether a keepalive that was answered in this epoch has extended the lease.
    async fn is_confirmed(&self, epoch: u64) -> Result<bool, BackendError> {
        loop {
            let probe_entry = self.own().first().cloned();
            match self.confirm(epoch, probe_entry.clone()).await? {
                Confirmation::Confirmed => return Ok(true),
                Confirmation::EpochChanged => return Ok(failpoints::is_disabled(SafetyRule::CompareEpochs)),
                // The watcher reports it. The next read probes another entry.
                Confirmation::ProbeEntryGone => match probe_entry {
                    Some(gone) => self.own().remove(&gone),
                    None => return Ok(false),
                },
            };
        }
    }

    async fn confirm(
        &self,
        epoch: u64,
        probe_entry: Option<(u64, String)>,
    ) -> Result<Confirmation, BackendError> {
        let session = self.id;
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
                    return Ok(Confirmation::EpochChanged);
                }
                let exists = probe_entry.as_ref().is_none_or(|(revision, election)| {
                    let mut entries = state.entries(election).iter();
                    entries.any(|e| e.revision == *revision && e.session == session)
                });
                Ok(if exists { Confirmation::Confirmed } else { Confirmation::ProbeEntryGone })
            })
            .await;
        if read.is_err() {
            self.access.switch_member();
        }
        read
    }
}

#[async_trait]
impl PositionReader for Lease {
    fn access(&self) -> &Access {
        &self.access
    }

    /// How many entries are ahead of `entry`, by a linearizable read; `None` when it does not exist.
    async fn entries_ahead(&self, entry: &Entry) -> Result<Option<usize>, BackendError> {
        let (election, session, revision) = (name(&entry.election), self.id, entry.version);
        // The read may go through any member.
        let member = self.access.any_member();
        let looking = self.access.ask_at(member, "look", Consistency::Quorum, move |state, _| {
            let mut entries = state.entries(&election).iter();
            Ok(entries.position(|e| e.revision == revision && e.session == session))
        });
        match tokio::time::timeout(READ_TIMEOUT, looking).await {
            Ok(ahead) => ahead,
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
        HeartbeatProof::Answer
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let mut pause = CONFIRM_RETRY;
        loop {
            let epoch = self.renew().await?;
            if failpoints::is_disabled(SafetyRule::ConfirmHeartbeats) || self.is_confirmed(epoch).await? {
                return Ok(Heartbeat::new(self.ttl));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn keep_alive(&self) -> Result<(), BackendError> {
        self.renew().await.map(drop)
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
        self.own().insert((stored.revision, in_election.clone()));
        entered(request, &in_election, stored.revision, first)
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

    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        if let Some(entry) = entry {
            self.own().remove(&(entry.version, election.clone()));
        }
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
