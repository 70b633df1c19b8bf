//! What others see of an election. Nothing here decides who leads.

use std::{sync::Arc, time::Duration};

use async_stream::try_stream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure_core::{
    Candidate, ElectionName, FencingToken,
    spi::{BackendError, EntryRequest, Observation},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    client::Change,
    hints::{Hints, Wake},
    record::{Election, Session, SessionId, Slot, State, election_key},
    shared::Shared,
    store::{CasStore, Freshness},
};

/// How many sessions are read concurrently.
const CONCURRENT_READS: usize = 16;
/// How often an observer reads fresh before it has seen the TTL of a leader.
const FRESH_INTERVAL: Duration = Duration::from_secs(10);

/// The head of a queue.
struct Head {
    slot: Slot,
    token: Option<FencingToken>,
    /// Whether its session looks dead.
    is_dead: bool,
    /// The TTL of its session, unless that has ended.
    ttl: Option<Duration>,
}

impl<S: CasStore> Shared<S> {
    /// Whether a session has ended, or has stood still for a TTL and a fresh read confirms that (rule 9). And its TTL.
    async fn looks_dead(
        &self,
        session: &SessionId,
        freshness: Freshness,
    ) -> Result<(bool, Option<Duration>), BackendError> {
        let mut freshness = freshness;
        loop {
            let found = self.client.read_session(session, freshness).await?;
            let (is_due, looks_dead, ttl) = match found {
                Some((_, Session { state: State::Ended, .. })) => return Ok((true, None)),
                // Absence in a stale read proves nothing.
                None => (true, true, None),
                Some((_, Session { state: State::Active { beat, ttl }, .. })) => {
                    let seen = self
                        .with_sightings(|timers, now| timers.observe(session, (beat, freshness), ttl, now));
                    (seen.is_due, seen.has_expired, Some(ttl))
                }
            };
            // A replica that stands still shows neither later beats nor that there are none.
            if !is_due || freshness == Freshness::Fresh {
                return Ok((looks_dead, ttl));
            }
            freshness = Freshness::Fresh;
        }
    }

    async fn head(
        &self,
        election: &ElectionName,
        freshness: Freshness,
    ) -> Result<Option<Head>, BackendError> {
        let Some((_, mut found)) = self.client.read_election(election, freshness).await? else {
            return Ok(None);
        };
        if found.queue.is_empty() {
            return Ok(None);
        }
        let token = found.head_token();
        let slot = found.queue.swap_remove(0);
        let (is_dead, ttl) = self.looks_dead(&slot.session, freshness).await?;
        Ok(Some(Head { slot, token, is_dead, ttl }))
    }

    /// The leader, unless its session looks dead.
    pub(crate) async fn leader(
        &self,
        election: &ElectionName,
        freshness: Freshness,
    ) -> Result<Option<Candidate>, BackendError> {
        Ok(leader(election, self.head(election, freshness).await?.as_ref()))
    }

    /// The candidates whose sessions do not look dead, in order of succession.
    pub(crate) async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let found = self.client.read_election(election, Freshness::Fresh).await?;
        let found: Election = found.map(|(_, found)| found).unwrap_or_default();
        let looks: Vec<_> =
            found.queue.iter().map(|slot| self.looks_dead(&slot.session, Freshness::Fresh)).collect();
        let dead: Vec<_> = stream::iter(looks).buffered(CONCURRENT_READS).try_collect().await?;
        let live = found.queue.iter().zip(dead).enumerate().filter(|(_, (_, (is_dead, _)))| !is_dead);
        Ok(live
            .map(|(place, (slot, _))| candidate(election, slot, found.head_token().filter(|_| place == 0)))
            .collect())
    }

    /// Asks the leader to resign, and returns it.
    pub(crate) async fn request_resign(
        &self,
        election: &ElectionName,
    ) -> Result<Option<Candidate>, BackendError> {
        let Some(head) = self.head(election, Freshness::Fresh).await?.filter(|head| !head.is_dead) else {
            return Ok(None);
        };
        // Not by its value, which may be replaced at any time.
        let is_leader = |slot: &Slot| slot.is(&head.slot.session, head.slot.nonce);
        let change = self.client.change_election(election, Freshness::Fresh, |found, _| {
            let Some(found) = found else { return Ok(Change::Keep(false)) };
            Ok(match found.queue.first() {
                Some(first) if is_leader(first) && first.resign_requested => Change::Keep(true),
                Some(first) if is_leader(first) => Change::Swap(found.with_resign_request(), true),
                // It has left meanwhile.
                _ => Change::Keep(false),
            })
        });
        Ok(change.await?.then(|| candidate(election, &head.slot, head.token)))
    }
}

/// The leader of an election, and then every change.
///
/// Reads fresh after a hint and once per TTL, because a replica may stand still, and when a replica shows a change.
pub(crate) fn observe<S: CasStore>(shared: Arc<Shared<S>>, election: ElectionName) -> Observation {
    Box::pin(try_stream! {
        let mut hints = Hints::for_observer(&shared, election_key(&election));
        let mut yielded = None;
        let (mut ttl, mut fresh_at) = (FRESH_INTERVAL, Instant::now());
        let mut freshness = Freshness::Fresh;
        loop {
            hints.subscribe();
            let mut head = shared.head(&election, freshness).await?;
            if freshness == Freshness::MayBeStale && yielded.as_ref() != Some(&leader(&election, head.as_ref())) {
                freshness = Freshness::Fresh;
                head = shared.head(&election, freshness).await?;
            }
            ttl = head.as_ref().and_then(|head| head.ttl).unwrap_or(ttl);
            if freshness == Freshness::Fresh {
                fresh_at = Instant::now() + ttl;
            }
            let leader = leader(&election, head.as_ref());
            if yielded.as_ref() != Some(&leader) {
                yielded = Some(leader.clone());
                yield leader;
            }
            let wake = tokio::select! {
                biased;
                () = sleep_until(fresh_at) => Wake::Poll,
                wake = hints.wait() => wake,
            };
            freshness = match wake {
                Wake::Poll if Instant::now() < fresh_at => Freshness::MayBeStale,
                Wake::Poll | Wake::Hint => Freshness::Fresh,
            };
        }
    })
}

fn leader(election: &ElectionName, head: Option<&Head>) -> Option<Candidate> {
    head.filter(|head| !head.is_dead).map(|head| candidate(election, &head.slot, head.token))
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
