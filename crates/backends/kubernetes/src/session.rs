//! The session: one candidacy in one election, whose heartbeat is the renewal.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::{
    Candidate, FencingToken,
    spi::{
        BackendError,
        BackendErrorKind::{EntryGone, SessionGone, Unavailable},
        BackendSession, Entered, Entry, EntryRequest, EntryWatcher, Heartbeat, HeartbeatProof,
        PerEntryWatcher, QueuePosition, Stamp, Won,
    },
};

use crate::election::{Attempt, Candidacy, Held};

/// A session. Nothing of it is in the store before it holds the Lease.
#[derive(Debug)]
pub(crate) struct LeaseSession {
    id: String,
    drift: f64,
    candidacy: Arc<Candidacy>,
}

impl LeaseSession {
    pub(crate) fn new(id: String, drift: f64, candidacy: Candidacy) -> Self {
        Self { id, drift, candidacy: Arc::new(candidacy) }
    }

    fn won(&self, held: &Held) -> Result<Won, BackendError> {
        let no_token = || BackendError::new(Unavailable, "the resourceVersion of the lease is 0");
        let token = FencingToken::new(held.token).ok_or_else(no_token)?;
        let election = self.candidacy.lease().election().clone();
        let entry = Entry { election, key: held.identity().into(), version: held.token };
        Ok(Won::new(entry, token).sent(held.sent))
    }
}

#[async_trait]
impl BackendSession for LeaseSession {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn granted_ttl(&self) -> Duration {
        self.candidacy.duration()
    }

    fn expires_after(&self) -> Duration {
        self.granted_ttl().mul_f64(1.0 + self.drift) + Duration::from_secs(1)
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        // A write of the Lease is linearizable.
        HeartbeatProof::Answer
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        self.candidacy.renew().await?;
        Ok(Heartbeat::new(self.granted_ttl()))
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        Ok(match self.candidacy.try_acquire(request).await? {
            Attempt::Won(held) => Entered::Leads(self.won(&held)?),
            Attempt::HeldBy(record) => {
                let leader = record.and_then(|record| record.candidate());
                // Of a holder whose Lease was deleted nothing is known but that it may lead.
                let unknown = || Candidate::decode("unknown", "", &[], None);
                Entered::HeldBy(Box::new(leader.unwrap_or_else(unknown)))
            }
        })
    }

    async fn wait_turn(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
        _position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        if entry.is_none() {
            return self.won(&self.candidacy.acquire(request).await?);
        }
        // Won before, and checked once more: the window is counted from this renewal.
        let sent = Stamp::now(self.candidacy.clock());
        let renewed = self.candidacy.renew().await;
        let held = renewed.map(|()| self.candidacy.held()).map_err(|error| match error.kind() {
            SessionGone => BackendError::new(EntryGone, error.to_string()),
            _ => error,
        });
        match held? {
            Some(held) => Ok(self.won(&held)?.sent(sent)),
            None => Err(BackendError::new(EntryGone, "the lease is not held any more")),
        }
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let candidacy = Arc::clone(&self.candidacy);
        Box::new(PerEntryWatcher::new(move |_, for_resign_requests| {
            let candidacy = Arc::clone(&candidacy);
            async move { candidacy.watch_held(for_resign_requests).await }
        }))
    }

    async fn update(&self, _entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.candidacy.update(request).await
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        self.candidacy.withdraw(request).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.candidacy.close().await
    }
}
