//! Entering elections: one transaction for an entry, and one for many that come together.
//!
//! Thousands of elections are entered some times as fast when dozens share a transaction, each of which costs etcd a
//! commit to its disk. What shares a transaction shares a lease, so that no other session is told of its end; and no
//! two are for one election, for all keys that a transaction creates have the same create revision: they would have
//! one token, and both lead.
//!
//! It is a plain transaction that makes all entries or none, and not one of a transaction for each: etcd before 3.4.42, 3.5.28 and 3.6.9
//! looks at no permission of what is nested.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use tenure_core::spi::{BackendError, BackendErrorKind};

use crate::{
    election::keys::Keys,
    election::wait::ranges,
    transport::batcher::{Answered, Kind, Refused, Waiting},
    transport::error::{Failure, malformed},
    transport::members::{Call, Members},
    transport::request::{Asked, kv},
};

/// How many bytes a transaction carries at most, about: etcd takes 1.5 MiB in one request.
const BYTES: usize = 256 * 1024;

/// How many bytes the key of a mark has, and what else there is, about.
const MARK: usize = 128;

/// Entries under one lease.
pub(crate) struct Entering {
    pub(crate) members: Arc<Members>,
    pub(crate) keys: Keys,
    pub(crate) lease: i64,
}

/// One entry to be made.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) key: Arc<str>,
    /// How much of the key is the prefix of its election.
    pub(crate) election: usize,
    /// The request's.
    pub(crate) nonce: u128,
    pub(crate) payload: Vec<u8>,
}

/// What is under the key of an entry.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) created: i64,
    pub(crate) lease: i64,
    /// `None` when it is what was put just then.
    pub(crate) other: Option<Vec<u8>>,
}

/// What a request to enter has found: its own key, and the create revision of the first in its election.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) own: Option<Found>,
    pub(crate) head: Option<i64>,
}

impl Step {
    /// How many bytes a request for it has, about.
    fn bytes(&self) -> usize {
        self.payload.len() + 4 * self.key.len() + MARK
    }

    /// The prefix of its election.
    fn election(&self) -> &str {
        &self.key[..self.election]
    }

    fn put(&self, lease: i64) -> TxnOp {
        let options = PutOptions::new().with_lease(lease);
        TxnOp::put(&*self.key, self.payload.as_slice(), Some(options))
    }

    /// Reads the first of the election.
    fn head(&self) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        TxnOp::get(self.election(), Some(options))
    }
}

impl Entering {
    /// Holds while neither the entry nor the mark that its request was withdrawn is there.
    fn compares(&self, step: &Step) -> [Compare; 2] {
        let mark = self.keys.withdrawn(self.lease, step.nonce);
        let none = |key: Vec<u8>| Compare::create_revision(key, CompareOp::Equal, 0);
        [none(step.key.as_bytes().into()), none(mark.into())]
    }

    /// Puts the entry if it is not there and was not withdrawn; otherwise reads what is.
    async fn one(&self, client: &Asked, step: &Step) -> Result<Place, Failure> {
        let txn = Txn::new().when(self.compares(step)).and_then([step.put(self.lease), step.head()]);
        let answer = kv(client).txn(txn).await?;
        if !answer.succeeded() {
            return self.found(client, step).await;
        }
        let now = answer.header().ok_or_else(|| malformed("header"))?.revision();
        let head = ranges(answer.op_responses()).next().ok_or_else(|| malformed("range of the election"))?;
        Ok(Place { own: Some(self.made(now)), head: head.first().map(KeyValue::create_revision) })
    }

    /// Reads what stands in the way of the entry, which hardly ever anything does: so the transaction does not carry it.
    async fn found(&self, client: &Asked, step: &Step) -> Result<Place, Failure> {
        let mark = self.keys.withdrawn(self.lease, step.nonce);
        let txn = Txn::new().and_then([TxnOp::get(&*step.key, None), step.head(), TxnOp::get(mark, None)]);
        let answer = kv(client).txn(txn).await?;
        let mut found = ranges(answer.op_responses());
        let own = found.next().ok_or_else(|| malformed("range of the entry"))?.pop();
        let own = own.map(|kv| Found {
            created: kv.create_revision(),
            lease: kv.lease(),
            other: Some(kv.value().to_vec()),
        });
        let head = found.next().ok_or_else(|| malformed("range of the election"))?;
        let mark = found.next().ok_or_else(|| malformed("range of the mark"))?;
        if own.is_none() && mark.is_empty() {
            // What stood in the way has gone since: the next attempt may make the entry.
            let message = "what stood in the way of the entry has gone";
            return Err(BackendError::new(BackendErrorKind::Unavailable, message).into());
        }
        Ok(Place { own, head: head.first().map(KeyValue::create_revision) })
    }

    /// Puts all entries, if none is there and none was withdrawn.
    async fn all(&self, client: &Asked, steps: &[Step]) -> Result<Option<Vec<Place>>, Failure> {
        let puts = steps.iter().map(|step| step.put(self.lease));
        let heads = steps.iter().map(Step::head);
        let txn = Txn::new()
            .when(steps.iter().flat_map(|step| self.compares(step)).collect::<Vec<_>>())
            .and_then(puts.chain(heads).collect::<Vec<_>>());
        let answer = kv(client).txn(txn).await?;
        if !answer.succeeded() {
            return Ok(None);
        }
        let now = answer.header().ok_or_else(|| malformed("header"))?.revision();
        let places: Vec<_> = ranges(answer.op_responses())
            .map(|head| Place {
                own: Some(self.made(now)),
                head: head.first().map(KeyValue::create_revision),
            })
            .collect();
        if places.len() != steps.len() {
            return Err(malformed("range of each election").into());
        }
        Ok(Some(places))
    }

    fn made(&self, now: i64) -> Found {
        Found { created: now, lease: self.lease, other: None }
    }
}

impl Kind for Entering {
    type Ask = Step;
    type Answer = Place;

    /// The engine has a bound for entering.
    const PATIENCE: Option<Duration> = None;

    fn goes_with(&self, chosen: &[Waiting<Self>], next: &Step) -> bool {
        let bytes: usize = chosen.iter().map(|waiting| waiting.ask.bytes()).sum();
        bytes + next.bytes() <= BYTES
            && chosen.iter().all(|waiting| waiting.ask.election() != next.election())
    }

    async fn make_one(&self, step: &Step) -> Answered<Place> {
        let tries = &Tries::default();
        let call = self
            .members
            .call("enter", Call::Bulk, |client| async move { tries.count(self.one(&client, step)).await });
        call.await.map_err(|error| tries.refused(error))
    }

    async fn make_all(&self, steps: &[Step]) -> Answered<Option<Vec<Place>>> {
        let tries = &Tries::default();
        let call = self
            .members
            .call("enter", Call::Bulk, |client| async move { tries.count(self.all(&client, steps)).await });
        call.await.map_err(|error| tries.refused(error))
    }
}

/// How many attempts have begun, and how many of them the store has done or refused.
#[derive(Debug, Default)]
struct Tries {
    begun: AtomicUsize,
    decided: AtomicUsize,
}

impl Tries {
    async fn count<T>(&self, attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.begun.fetch_add(1, Relaxed);
        let outcome = attempt.await;
        if !outcome.as_ref().is_err_and(|failure| failure.error.is_retryable()) {
            self.decided.fetch_add(1, Relaxed);
        }
        outcome
    }

    /// What a failed call means: it is settled when the store has refused every attempt, or was never asked.
    fn refused(&self, error: BackendError) -> Refused {
        let decided = self.decided.load(Relaxed) == self.begun.load(Relaxed);
        Refused { settled: decided && error.is_permanent(), error }
    }
}

impl Refused {
    /// The error for whoever asked: not final while an attempt may yet be carried out.
    pub(crate) fn into_error(self) -> BackendError {
        match self.error.is_permanent() && !self.settled {
            true => {
                BackendError::with_source(BackendErrorKind::Unavailable, self.error.to_string(), self.error)
            }
            false => self.error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt as _;

    use super::*;
    use crate::config::EtcdConfig;

    fn step(election: &str, bytes: usize) -> Step {
        let key = format!("{election}/7").into();
        Step { key, election: election.len() + 1, nonce: 1, payload: vec![0; bytes] }
    }

    fn waiting(step: Step) -> Waiting<Entering> {
        Waiting::of(step).0
    }

    /// Two entries of one election in one transaction would have one token, and both lead.
    #[test]
    fn a_transaction_has_one_entry_of_an_election_and_is_not_larger_than_etcd_takes() {
        let members = Arc::new(Members::new(EtcdConfig::new(["a"]), "/t/~probe".to_owned()));
        let entering = Entering { members, keys: Keys::new("/t"), lease: 7 };
        let mut chosen = vec![waiting(step("a", 1))];
        assert!(!entering.goes_with(&chosen, &step("a", 1)));
        let large = step("b", BYTES - 400);
        assert!(entering.goes_with(&chosen, &large));
        chosen.push(waiting(large));
        assert!(!entering.goes_with(&chosen, &step("c", 400)));
    }

    /// Hazard G10: a request that is refused while another of its attempts is under way may yet be carried out.
    #[tokio::test]
    async fn a_refusal_settles_only_what_was_answered() {
        let refusal = || BackendError::new(BackendErrorKind::Unauthorized, "permission denied");
        let answered = || async { Err::<(), Failure>(refusal().into()) };
        let tries = Tries::default();
        assert!(tries.refused(refusal()).settled, "no attempt came as far as the store");
        let _ = tries.count(answered()).await;
        let refused = tries.refused(refusal());
        assert!(refused.settled && refused.into_error().is_permanent());
        // The second attempt had its login refused, and the first lies in a frozen member.
        let tries = Tries::default();
        assert!(tries.count(pending::<Result<(), Failure>>()).now_or_never().is_none());
        let refused = tries.refused(refusal());
        assert!(!refused.settled && refused.into_error().is_retryable());
        // It was refused, and the first broke off after who knows what.
        let tries = Tries::default();
        let broken = BackendError::new(BackendErrorKind::Unavailable, "connection reset");
        let _ = tries.count(async { Err::<(), Failure>(broken.into()) }).await;
        assert!(!tries.refused(refusal()).settled);
        let _ = tries.count(answered()).await;
        assert!(!tries.refused(refusal()).settled);
    }
}
