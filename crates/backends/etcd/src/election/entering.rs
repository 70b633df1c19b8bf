//! Creates entries: one transaction for a single entry, or for many that are requested at the same time.
//!
//! Thousands of elections are entered several times faster when dozens of entries share a transaction, each of which
//! costs etcd a disk commit. Entries that share a transaction belong to the same lease, and no two to the same
//! election: all keys that a transaction creates have the same create revision, so two candidates of one election
//! would have the same token, and both would lead.
//!
//! The transaction is flat and creates all entries or none. It does not nest one transaction per entry, because etcd
//! before 3.4.42, 3.5.28 and 3.6.9 does not check permissions of nested operations. (The nested delete of `withdrawal` is
//! harmless: the transaction around it deletes the same key, and etcd checks that permission whichever branch runs.)

use std::sync::Arc;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
};
use tenure_core::spi::{BackendError, BackendErrorKind};

use crate::{
    election::{
        calls::{Attempts, Call},
        keys::Keys,
    },
    transport::{
        batcher::BatchOp,
        error::{Failure, malformed},
        members::{CallClass, Members},
        request::{Answer, kv, ranges},
    },
};

/// The approximate size limit of a transaction. etcd accepts requests of up to 1.5 MiB.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// The approximate size of the withdrawal marker's key, and of the other parts of an entry's request.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Creates entries under one lease.
pub(crate) struct EntryCreator {
    pub(crate) members: Arc<Members>,
    pub(crate) lease: i64,
}

/// An entry to create.
pub(crate) struct NewEntry {
    pub(crate) key: Arc<str>,
    pub(crate) payload: Vec<u8>,
    /// The key of the withdrawal marker, whose existence prevents the creation.
    marker: String,
    call: Arc<Call>,
}

/// What is stored under the key of an entry.
#[derive(Debug)]
pub(crate) struct StoredEntry {
    pub(crate) create_revision: i64,
    pub(crate) lease: i64,
    /// `None` when this request has just written its own payload.
    pub(crate) existing_payload: Option<Vec<u8>>,
}

/// The result of a request to enter: the own entry, and the create revision of the first entry in its election.
#[derive(Debug)]
pub(crate) struct EnterResult {
    /// `None` when the request was withdrawn.
    pub(crate) own: Option<StoredEntry>,
    pub(crate) first_create_revision: Option<i64>,
}

impl NewEntry {
    pub(crate) fn new(call: Arc<Call>, key: Arc<str>, payload: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { key, payload, marker: call.withdrawals.marker(call.nonce), call })
    }

    /// The approximate size of its request.
    fn bytes(&self) -> usize {
        self.payload.len() + 4 * self.key.len() + ENTRY_OVERHEAD_BYTES
    }

    fn election_prefix(&self) -> &str {
        &self.key[..Keys::election_prefix_len(&self.key)]
    }

    /// Compares that hold while neither the entry nor the marker of a withdrawal exists.
    fn conditions(&self) -> [Compare; 2] {
        [&*self.key, &self.marker].map(|key| Compare::create_revision(key, CompareOp::Equal, 0))
    }

    /// The operation that creates the entry under `lease`.
    fn put_op(&self, lease: i64) -> TxnOp {
        let options = PutOptions::new().with_lease(lease);
        TxnOp::put(&*self.key, self.payload.as_slice(), Some(options))
    }

    /// The operation that reads the first entry of the election.
    fn first_entry_op(&self) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        TxnOp::get(self.election_prefix(), Some(options))
    }
}

/// Creates all entries, if none exists and none was withdrawn.
async fn create_all(
    client: &Client,
    lease: i64,
    entries: &[Arc<NewEntry>],
) -> Result<Answer<Option<Vec<EnterResult>>>, Failure> {
    let puts = entries.iter().map(|entry| entry.put_op(lease));
    let firsts = entries.iter().map(|entry| entry.first_entry_op());
    let txn = Txn::new()
        .when(entries.iter().flat_map(|entry| entry.conditions()).collect::<Vec<_>>())
        .and_then(puts.chain(firsts).collect::<Vec<_>>());
    let mut response = kv(client).txn(txn).await?;
    let header = response.take_header().ok_or_else(|| malformed("header"))?;
    if !response.succeeded() {
        return Ok((Some(header), None));
    }
    let create_revision = header.revision();
    let results = ranges(response.op_responses()).map(|first| {
        let own = Some(StoredEntry { create_revision, lease, existing_payload: None });
        EnterResult { own, first_create_revision: first.first().map(KeyValue::create_revision) }
    });
    let results: Vec<_> = results.collect();
    if results.len() == entries.len() {
        Ok((Some(header), Some(results)))
    } else {
        Err(malformed("range of each election").into())
    }
}

/// Reads which entries exist. For a single one also whether it was withdrawn.
async fn read_existing(
    client: &Client,
    entries: &[Arc<NewEntry>],
) -> Result<Answer<Vec<Option<EnterResult>>>, Failure> {
    let owns = entries.iter().map(|entry| TxnOp::get(&*entry.key, None));
    let firsts = entries.iter().map(|entry| entry.first_entry_op());
    let marker = entries.first().filter(|_| entries.len() == 1).map(|entry| TxnOp::get(&*entry.marker, None));
    let read = Txn::new().and_then(owns.chain(firsts).chain(marker).collect::<Vec<_>>());
    let mut response = kv(client).txn(read).await?;
    let found: Vec<_> = ranges(response.op_responses()).collect();
    let Some((owns, firsts)) = found.split_at_checked(entries.len()) else {
        return Err(malformed("range of each entry").into());
    };
    let is_withdrawn = firsts.get(entries.len()).is_some_and(|marker| !marker.is_empty());
    let results = owns.iter().zip(firsts).map(|(own, first)| {
        let own = own.first().map(|kv| StoredEntry {
            create_revision: kv.create_revision(),
            lease: kv.lease(),
            existing_payload: Some(kv.value().to_vec()),
        });
        let first_create_revision = first.first().map(KeyValue::create_revision);
        (own.is_some() || is_withdrawn).then_some(EnterResult { own, first_create_revision })
    });
    Ok((response.take_header(), results.collect()))
}

impl BatchOp for EntryCreator {
    type Request = Arc<NewEntry>;
    type Response = EnterResult;

    fn can_join(&self, batch: &[Arc<NewEntry>], next: &Arc<NewEntry>) -> bool {
        let bytes: usize = batch.iter().map(|entry| entry.bytes()).sum();
        bytes + next.bytes() <= MAX_BATCH_BYTES
            && batch.iter().all(|entry| entry.election_prefix() != next.election_prefix())
    }

    async fn run(&self, entries: &[Arc<NewEntry>]) -> Result<Vec<Option<EnterResult>>, BackendError> {
        let attempts = &Attempts::new(&self.members);
        let mut results: Vec<Option<EnterResult>> = entries.iter().map(|_| None).collect();
        loop {
            let missing: Vec<usize> = (0..entries.len()).filter(|n| results[*n].is_none()).collect();
            let batch: &Vec<_> = &missing.iter().map(|n| Arc::clone(&entries[*n])).collect();
            let call = self.members.call("enter", CallClass::Bulk, |client| {
                let (lease, entries) = (self.lease, batch.clone());
                let calls = batch.iter().map(|entry| Arc::clone(&entry.call)).collect();
                attempts.run(calls, async move { create_all(&client, lease, &entries).await })
            });
            if let Some(created) = call.await? {
                missing.into_iter().zip(created).for_each(|(n, result)| results[n] = Some(result));
                return Ok(results);
            }
            // Those that exist, mostly entries of repeated requests, are left out of the next transaction.
            let read = |client: Arc<Client>| async move { read_existing(&client, batch).await };
            let existing = self.members.call("enter", CallClass::Bulk, read).await?;
            if existing.iter().all(Option::is_none) {
                if entries.len() == 1 {
                    // The next attempt may succeed.
                    let message = "the key of the entry existed, and was deleted in the meantime";
                    return Err(BackendError::new(BackendErrorKind::Unavailable, message));
                }
                return Ok(results);
            }
            missing.into_iter().zip(existing).for_each(|(n, result)| results[n] = result);
            if results.iter().all(Option::is_some) {
                return Ok(results);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::EtcdConfig,
        election::{store::ElectionStore, withdrawal::LeaseWithdrawals},
        transport::error::Failure,
    };

    fn withdrawals() -> Arc<LeaseWithdrawals> {
        let store = ElectionStore::new(EtcdConfig::new(["a"]));
        LeaseWithdrawals::new(Arc::new(store), 7, Duration::from_secs(1))
    }

    fn entry(withdrawals: &Arc<LeaseWithdrawals>, election: &str, bytes: usize) -> Arc<NewEntry> {
        let (call, _) = Call::begin(Arc::clone(withdrawals), 1);
        NewEntry::new(call, format!("{election}/7").into(), vec![0; bytes])
    }

    /// Two entries of one election in one transaction would have one token, and both would lead.
    #[test]
    fn a_transaction_has_one_entry_per_election_and_is_not_larger_than_etcd_accepts() {
        let members = Arc::new(Members::new(EtcdConfig::new(["a"]), "/t/~probe".to_owned()));
        let creator = EntryCreator { members, lease: 7 };
        let entry = |election, bytes| entry(&withdrawals(), election, bytes);
        let mut batch = vec![entry("a", 1)];
        assert!(!creator.can_join(&batch, &entry("a", 1)));
        let large = entry("b", MAX_BATCH_BYTES - 400);
        assert!(creator.can_join(&batch, &large));
        batch.push(large);
        assert!(!creator.can_join(&batch, &entry("c", 400)));
    }

    /// Hazards G10, E21: a request is settled once all of its attempts were answered, and not if one never was.
    #[tokio::test]
    async fn a_request_is_settled_once_all_attempts_were_answered() {
        let withdrawals = withdrawals();
        let attempts = Attempts::new(&Members::new(EtcdConfig::new(["a"]), "/t/~probe".to_owned()));
        let (answer, answered) = tokio::sync::oneshot::channel::<Result<(), Failure>>();
        let first = entry(&withdrawals, "a", 1);
        // Its caller gives up.
        let mut overtaken =
            Box::pin(attempts.run(vec![Arc::clone(&first.call)], async { answered.await.unwrap() }));
        assert!(futures::poll!(&mut overtaken).is_pending());
        drop((overtaken, first));
        assert!(withdrawals.is_unsettled(1), "an attempt is in flight");
        answer.send(Ok(())).unwrap();
        while withdrawals.is_unsettled(1) {
            tokio::task::yield_now().await;
        }
        let second = entry(&withdrawals, "a", 1);
        let reset = || BackendError::new(BackendErrorKind::Unavailable, "reset").into();
        let lost = attempts.run(vec![Arc::clone(&second.call)], async move { Err::<(), Failure>(reset()) });
        assert!(lost.await.is_err());
        drop(second);
        assert!(withdrawals.is_unsettled(1), "it may still reach the store");
        // Another attempt that was answered says nothing about that one.
        drop(entry(&withdrawals, "a", 1));
        assert!(withdrawals.is_unsettled(1));
    }
}
