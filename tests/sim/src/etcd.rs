//! The recipe of `tenure-etcd` over the simulated cluster.
//!
//! Leases, entries under one key for each lease, requests that a withdrawal makes void, keepalives that
//! a leader of old answers, and reads that a quorum stands behind.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use tenure_core::{
    Candidate, ElectionName, FencingToken,
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Confirmation, Entered, Entry, EntryRequest,
        Heartbeat, HeartbeatProof, Observation,
    },
};

use crate::{
    broken::{Recipe, broken},
    cluster::{State, entry_gone, refused, session_gone},
    host::{Access, Word, name},
};

#[derive(Debug)]
pub(crate) struct SimEtcd(pub(crate) Access);

/// How long a waiting candidate waits for any one answer.
const LOOKING: Duration = Duration::from_secs(2);

#[derive(Debug)]
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
        self.0.turn();
        let id = self.0.ask("grant", Word::Quorum, move |state, _| Ok(state.open(ttl))).await?;
        Ok(Box::new(Lease { access: self.0.clone(), id, ttl }))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let election = name(election);
        self.0.ask("read", Word::Quorum, move |state, _| Ok(shown(state, &election))).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let first = self.candidates(election).await?.into_iter().next();
        Ok(futures::stream::once(async move { Ok(first) }).boxed())
    }
}

/// What others see of the candidates.
pub(crate) fn shown(state: &State, election: &str) -> Vec<Candidate> {
    let entries = state.entries(election).iter();
    entries
        .map(|entry| {
            let token = FencingToken::new(entry.revision);
            Candidate::decode(&entry.revision.to_string(), entry.session.to_string(), b"", token)
        })
        .collect()
}

impl Lease {
    /// Whether `entry` is there, and first, by a quorum's word.
    async fn place(&self, entry: &Entry) -> Result<Option<bool>, BackendError> {
        let (election, session, revision) = (name(&entry.election), self.id, entry.version);
        let looking = self.access.ask("look", Word::Quorum, move |state, _| {
            let entries = state.entries(&election);
            let ours = entries.iter().any(|e| e.revision == revision && e.session == session);
            Ok(ours.then(|| entries.first().is_some_and(|first| first.revision == revision)))
        });
        match tokio::time::timeout(LOOKING, looking).await {
            Ok(place) => place,
            Err(_) => Err(refused("look")),
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

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Read
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let (id, ttl) = (self.id, self.ttl);
        let answer = self
            .access
            .ask("keepalive", Word::Own, move |state, member| {
                let at = state.members[member];
                // It believes to lead, and asks nobody.
                if let Some(term) = at.believes_to_lead {
                    let epoch = if broken(Recipe::NameTheTerm) { state.term } else { term };
                    return Ok(Heartbeat { ttl, epoch });
                }
                if at.cut_off || state.leader.is_none() {
                    return Err(refused("keepalive"));
                }
                let ttl = state.touch(id)?;
                let epoch = state.term;
                state.at_the_worst_moment(member);
                Ok(Heartbeat { ttl, epoch })
            })
            .await;
        if answer.is_err() {
            self.access.turn();
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
        let word = if broken(Recipe::ReadFromAQuorum) { Word::Own } else { Word::Quorum };
        // Through whichever member comes first.
        let member = self.access.any_member();
        let read = self
            .access
            .ask_at(member, "confirm", word, move |state, member| {
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
            self.access.turn();
        }
        read
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        let in_election = election.clone();
        let (stored, first) = self
            .access
            .ask("enter", Word::Quorum, move |state, _| {
                if !state.sessions.contains_key(&session) {
                    return Err(session_gone(session));
                }
                if state.withdrawn.contains(&nonce) {
                    return Err(refused("enter"));
                }
                // One key for each lease.
                let other =
                    state.entries(&election).iter().find(|e| e.session == session && e.nonce != nonce);
                if let Some(other) = other.copied() {
                    state.remove(&election, |entry| *entry == other);
                    return Err(refused("enter"));
                }
                let stored = state.enter(&election, session, nonce)?;
                let first = state.entries(&election).first() == Some(&stored);
                Ok((stored, first || broken(Recipe::LookOnEntering)))
            })
            .await?;
        Ok(entered(request, &in_election, stored.revision, first))
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        loop {
            match self.place(entry).await? {
                None => return Err(entry_gone()),
                Some(true) => return FencingToken::new(entry.version).ok_or_else(entry_gone),
                Some(false) => self.access.hear(&entry.election).await,
            }
            if broken(Recipe::LookOnWinning) {
                return FencingToken::new(entry.version).ok_or_else(entry_gone);
            }
        }
    }

    async fn wait_deleted(&self, entry: &Entry) -> Result<(), BackendError> {
        while self.place(entry).await?.is_some() {
            self.access.hear(&entry.election).await;
        }
        Ok(())
    }

    async fn update(&self, _entry: &Entry, _request: &EntryRequest) -> Result<(), BackendError> {
        Ok(())
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let (election, session, nonce) = (name(&request.election), self.id, request.nonce);
        self.access
            .ask("leave", Word::Quorum, move |state, _| {
                if !broken(Recipe::ForgetNothing) {
                    state.withdrawn.insert(nonce);
                }
                let any = broken(Recipe::LeaveByNonce);
                state.remove(&election, |entry| entry.session == session && (any || entry.nonce == nonce));
                Ok(())
            })
            .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        let id = self.id;
        self.access
            .ask("revoke", Word::Quorum, move |state, _| {
                state.end_session(id);
                Ok(())
            })
            .await
    }
}

pub(crate) fn entered(request: &EntryRequest, key: &str, revision: u64, first: bool) -> Entered {
    let entry = Entry {
        election: request.election.clone(),
        key: format!("{key}/{revision}").into(),
        version: revision,
    };
    Entered { entry, leads: first.then(|| FencingToken::new(revision)).flatten() }
}
