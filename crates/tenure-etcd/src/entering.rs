//! Entering elections: one transaction for an entry, and one for many that come together.
//!
//! Thousands of elections are entered some times as fast when dozens share a transaction, each of which costs etcd a commit to
//! its disk. What shares a transaction shares a lease, so that no other session is told of its end; and no two are for one
//! election, for all keys that a transaction creates have the same create revision: they would have one token, and both lead.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use tenure_core::spi::{BackendError, BackendErrorKind};

use crate::{
    error::malformed,
    members::{Call, Members, kv},
    together::{Kind, Made, Refused},
    wait::ranges,
};

/// How many bytes of payload a transaction carries at most: etcd takes 1.5 MiB in one request.
const BYTES: usize = 512 * 1024;

/// Entries under one lease.
pub(crate) struct Entering {
    pub(crate) members: Arc<Members>,
    pub(crate) lease: i64,
}

/// One entry to be made.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The prefix of its election.
    pub(crate) election: String,
    pub(crate) key: String,
    /// The key that says that the request was withdrawn.
    pub(crate) mark: String,
    pub(crate) payload: Vec<u8>,
}

/// What a step found: whether it made the entry, its own key, and the first of its election.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) made: bool,
    pub(crate) own: Vec<KeyValue>,
    pub(crate) head: Vec<KeyValue>,
}

impl Kind for Entering {
    type Ask = Step;
    type Answer = Found;

    fn goes_with(&self, chosen: &[&Step], next: &Step) -> bool {
        let bytes: usize = chosen.iter().map(|step| step.payload.len()).sum();
        bytes + next.payload.len() <= BYTES && chosen.iter().all(|step| step.election != next.election)
    }

    async fn make(&self, steps: &[Step]) -> Made<Found> {
        let (lease, tries) = (self.lease, &AtomicUsize::new(0));
        let outcome = self
            .members
            .call("enter", Call::Bulk, |client| async move {
                tries.fetch_add(1, Relaxed);
                let found = match steps {
                    [step] => {
                        let answer = kv(&client).txn(txn(step, lease)).await?;
                        vec![found(answer.succeeded(), answer.op_responses())?]
                    }
                    steps => {
                        let all: Vec<_> = steps.iter().map(|step| TxnOp::txn(txn(step, lease))).collect();
                        let answer = kv(&client).txn(Txn::new().and_then(all)).await?;
                        let each = answer.op_responses().into_iter().map(|response| match response {
                            TxnOpResponse::Txn(answer) => found(answer.succeeded(), answer.op_responses()),
                            _ => Err(malformed("transaction")),
                        });
                        each.collect::<Result<Vec<_>, _>>()?
                    }
                };
                if found.len() != steps.len() {
                    return Err(malformed("answer for each entry").into());
                }
                Ok(found)
            })
            .await;
        outcome.map_err(|error| {
            // Where another attempt is still under way, it may be carried out.
            match error.is_permanent() && tries.load(Relaxed) > 1 {
                true => {
                    let error =
                        BackendError::with_source(BackendErrorKind::Unavailable, error.to_string(), error);
                    Refused { error, settled: false }
                }
                false => Refused { settled: error.is_permanent(), error },
            }
        })
    }
}

/// Puts the entry if it is not there and was not withdrawn; reads it, and the first of its election.
fn txn(step: &Step, lease: i64) -> Txn {
    let Step { election, key, mark, payload } = step;
    let head = GetOptions::new()
        .with_prefix()
        .with_keys_only()
        .with_sort(SortTarget::Create, SortOrder::Ascend)
        .with_limit(1);
    let head = TxnOp::get(election.as_str(), Some(head));
    let own = TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()));
    let put = TxnOp::put(key.as_str(), payload.as_slice(), Some(PutOptions::new().with_lease(lease)));
    Txn::new()
        .when([
            Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
            Compare::create_revision(mark.as_str(), CompareOp::Equal, 0),
        ])
        .and_then([put, own, head.clone()])
        .or_else([TxnOp::get(key.as_str(), None), head])
}

fn found(made: bool, responses: Vec<TxnOpResponse>) -> Result<Found, BackendError> {
    let mut found = ranges(responses);
    match (found.next(), found.next()) {
        (Some(own), Some(head)) => Ok(Found { made, own, head }),
        _ => Err(malformed("ranges")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EtcdConfig;

    fn step(election: &str, bytes: usize) -> Step {
        let key = format!("{election}/7");
        Step { election: election.to_owned(), key, mark: String::new(), payload: vec![0; bytes] }
    }

    /// Two entries of one election in one transaction would have one token, and both lead.
    #[test]
    fn a_transaction_has_one_entry_of_an_election_and_is_not_larger_than_etcd_takes() {
        let members = Arc::new(Members::new(EtcdConfig::new(["a"]), "/t/~probe".to_owned()));
        let entering = Entering { members, lease: 7 };
        let (a, b) = (step("a", 1), step("b", BYTES - 1));
        assert!(!entering.goes_with(&[&a], &step("a", 1)));
        assert!(entering.goes_with(&[&a], &b));
        assert!(!entering.goes_with(&[&a, &b], &step("c", 1)));
    }
}
