//! What others see of an election. Nothing here decides who leads.

use std::sync::Arc;

use async_stream::try_stream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure_core::{
    Candidate, ElectionName, FencingToken,
    spi::{BackendError, EntryRequest, Observation},
};

use crate::{
    client::{Change, Hints},
    record::{Election, Session, SessionId, Slot, State},
    shared::Shared,
    store::{CasStore, Freshness},
};

/// How many sessions are read concurrently.
const CONCURRENT_READS: usize = 16;

impl<S: CasStore> Shared<S> {
    /// Whether a session has ended, or has stood still for a TTL and a fresh read confirms that (rule 9).
    async fn looks_dead(&self, session: &SessionId, freshness: Freshness) -> Result<bool, BackendError> {
        let mut freshness = freshness;
        loop {
            let found = self.client.read_session(session, freshness).await?;
            let has_expired = match found {
                Some((_, Session { state: State::Ended, .. })) => return Ok(true),
                // Absence in a stale read proves nothing.
                None => true,
                Some((_, Session { state: State::Live { beat, ttl }, .. })) => {
                    self.with_sightings(|timers, now| timers.observe(session, beat, ttl, now)).has_expired
                }
            };
            if !has_expired || freshness == Freshness::Fresh {
                return Ok(has_expired);
            }
            freshness = Freshness::Fresh;
        }
    }

    /// The leader, unless its session looks dead.
    pub(crate) async fn leader(
        &self,
        election: &ElectionName,
        freshness: Freshness,
    ) -> Result<Option<Candidate>, BackendError> {
        let Some((_, found)) = self.client.read_election(election, freshness).await? else { return Ok(None) };
        let Some(head) = found.queue.first() else { return Ok(None) };
        let is_dead = self.looks_dead(&head.session, freshness).await?;
        Ok((!is_dead).then(|| candidate(election, head, found.head_token())))
    }

    /// The candidates whose sessions do not look dead, in order of succession.
    pub(crate) async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let found = self.client.read_election(election, Freshness::Fresh).await?;
        let found: Election = found.map(|(_, found)| found).unwrap_or_default();
        let looks: Vec<_> =
            found.queue.iter().map(|slot| self.looks_dead(&slot.session, Freshness::Fresh)).collect();
        let dead: Vec<bool> = stream::iter(looks).buffered(CONCURRENT_READS).try_collect().await?;
        let live = found.queue.iter().zip(dead).enumerate().filter(|(_, (_, is_dead))| !is_dead);
        Ok(live
            .map(|(place, (slot, _))| candidate(election, slot, found.head_token().filter(|_| place == 0)))
            .collect())
    }

    /// Asks the leader to resign, and returns it.
    pub(crate) async fn request_resign(
        &self,
        election: &ElectionName,
    ) -> Result<Option<Candidate>, BackendError> {
        let Some(leader) = self.leader(election, Freshness::Fresh).await? else { return Ok(None) };
        let change = self.client.change_election(election, Freshness::Fresh, |found, _| {
            let Some(found) = found else { return Ok(Change::Keep(false)) };
            let is_leader = |slot: &Slot| candidate(election, slot, found.head_token()) == leader;
            Ok(match found.queue.first() {
                Some(head) if is_leader(head) && head.resign_requested => Change::Keep(true),
                Some(head) if is_leader(head) => Change::Swap(found.with_resign_request(), true),
                // It has left meanwhile.
                _ => Change::Keep(false),
            })
        });
        Ok(change.await?.then_some(leader))
    }
}

/// The leader of an election, and then every change.
pub(crate) fn observe<S: CasStore>(shared: Arc<Shared<S>>, election: ElectionName) -> Observation {
    Box::pin(try_stream! {
        let mut hints = Hints::new(shared.client.changes(&election));
        let mut yielded = None;
        let mut freshness = Freshness::Fresh;
        loop {
            let mut leader = shared.leader(&election, freshness).await?;
            if freshness == Freshness::MayBeStale && yielded.as_ref() != Some(&leader) {
                // A replica may show an earlier leader.
                leader = shared.leader(&election, Freshness::Fresh).await?;
            }
            if yielded.as_ref() != Some(&leader) {
                yielded = Some(leader.clone());
                yield leader;
            }
            freshness = Freshness::MayBeStale;
            // Also when nothing changes: a leader that has died changes nothing.
            let delay = shared.poll_delay(false);
            tokio::select! {
                biased;
                // The first read after a hint is fresh, because a replica may lag behind the hint.
                () = hints.next() => freshness = Freshness::Fresh,
                () = tokio::time::sleep(delay) => {}
            }
        }
    })
}

fn candidate(election: &ElectionName, slot: &Slot, token: Option<FencingToken>) -> Candidate {
    let request = EntryRequest {
        election: election.clone(),
        candidate: slot.candidate.clone(),
        value: slot.value.clone(),
        nonce: slot.nonce.0,
    };
    Candidate::decode(slot.candidate.as_str(), slot.session.as_str(), &request.payload(), token)
}
