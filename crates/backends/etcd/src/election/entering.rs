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
    transport::{
        batcher::{BatchOp, BatchResult, QueuedRequest, RequestFailure},
        error::{Failure, malformed},
        members::{CallClass, Members},
        request::{AttemptClient, kv, ranges},
    },
};

/// The approximate size limit of a transaction. etcd accepts requests of up to 1.5 MiB.
const MAX_BATCH_BYTES: usize = 256 * 1024;

/// The approximate size of a marker's key and of the other parts of an entry's request.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Creates entries under one lease.
pub(crate) struct EntryCreator {
    pub(crate) members: Arc<Members>,
    pub(crate) keys: Keys,
    pub(crate) lease: i64,
}

/// An entry to create.
#[derive(Clone, Debug)]
pub(crate) struct NewEntry {
    pub(crate) key: Arc<str>,
    /// The length of the election's prefix in the key, in bytes.
    pub(crate) election_prefix_len: usize,
    /// The nonce of the request.
    pub(crate) nonce: u128,
    pub(crate) payload: Vec<u8>,
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
    /// The approximate size of its request.
    fn bytes(&self) -> usize {
        self.payload.len() + 4 * self.key.len() + ENTRY_OVERHEAD_BYTES
    }

    fn election_prefix(&self) -> &str {
        &self.key[..self.election_prefix_len]
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

impl EntryCreator {
    /// Compares that hold while neither the entry nor the marker of a withdrawal exists.
    fn conditions(&self, entry: &NewEntry) -> [Compare; 2] {
        let marker = self.keys.withdrawal_marker(self.lease, entry.nonce);
        let is_absent = |key: Vec<u8>| Compare::create_revision(key, CompareOp::Equal, 0);
        [is_absent(entry.key.as_bytes().into()), is_absent(marker.into())]
    }

    /// Creates the entry if it does not exist and was not withdrawn; otherwise reads what exists.
    async fn create(&self, client: &AttemptClient, entry: &NewEntry) -> Result<EnterResult, Failure> {
        let txn = Txn::new()
            .when(self.conditions(entry))
            .and_then([entry.put_op(self.lease), entry.first_entry_op()]);
        let response = kv(client).txn(txn).await?;
        if !response.succeeded() {
            return self.read_existing(client, entry).await;
        }
        let revision = response.header().ok_or_else(|| malformed("header"))?.revision();
        let first =
            ranges(response.op_responses()).next().ok_or_else(|| malformed("range of the election"))?;
        Ok(self.created(revision, &first))
    }

    /// Reads why the entry could not be created. A separate request, because it is hardly ever needed.
    async fn read_existing(&self, client: &AttemptClient, entry: &NewEntry) -> Result<EnterResult, Failure> {
        let marker = self.keys.withdrawal_marker(self.lease, entry.nonce);
        let txn = Txn::new().and_then([
            TxnOp::get(&*entry.key, None),
            entry.first_entry_op(),
            TxnOp::get(marker, None),
        ]);
        let response = kv(client).txn(txn).await?;
        let mut found = ranges(response.op_responses());
        let own = found.next().ok_or_else(|| malformed("range of the entry"))?.pop();
        let own = own.map(|kv| StoredEntry {
            create_revision: kv.create_revision(),
            lease: kv.lease(),
            existing_payload: Some(kv.value().to_vec()),
        });
        let first = found.next().ok_or_else(|| malformed("range of the election"))?;
        let marker = found.next().ok_or_else(|| malformed("range of the marker"))?;
        if own.is_none() && marker.is_empty() {
            // The next attempt may succeed.
            let message = "the key of the entry existed, and was deleted in the meantime";
            return Err(BackendError::new(BackendErrorKind::Unavailable, message).into());
        }
        Ok(EnterResult { own, first_create_revision: first.first().map(KeyValue::create_revision) })
    }

    /// Creates all entries, if none exists and none was withdrawn.
    async fn create_all(
        &self,
        client: &AttemptClient,
        entries: &[NewEntry],
    ) -> Result<Option<Vec<EnterResult>>, Failure> {
        let puts = entries.iter().map(|entry| entry.put_op(self.lease));
        let firsts = entries.iter().map(NewEntry::first_entry_op);
        let txn = Txn::new()
            .when(entries.iter().flat_map(|entry| self.conditions(entry)).collect::<Vec<_>>())
            .and_then(puts.chain(firsts).collect::<Vec<_>>());
        let response = kv(client).txn(txn).await?;
        if !response.succeeded() {
            return Ok(None);
        }
        let revision = response.header().ok_or_else(|| malformed("header"))?.revision();
        let results: Vec<_> =
            ranges(response.op_responses()).map(|first| self.created(revision, &first)).collect();
        if results.len() != entries.len() {
            return Err(malformed("range of each election").into());
        }
        Ok(Some(results))
    }

    /// The result of an entry that was created at `revision`, given the first entry of its election.
    fn created(&self, revision: i64, first: &[KeyValue]) -> EnterResult {
        let own = StoredEntry { create_revision: revision, lease: self.lease, existing_payload: None };
        EnterResult { own: Some(own), first_create_revision: first.first().map(KeyValue::create_revision) }
    }
}

impl BatchOp for EntryCreator {
    type Request = NewEntry;
    type Response = EnterResult;

    /// The engine sets a timeout for entering.
    const QUEUE_TIMEOUT: Option<Duration> = None;

    fn can_join(&self, batch: &[QueuedRequest<Self>], next: &NewEntry) -> bool {
        let bytes: usize = batch.iter().map(|queued| queued.request.bytes()).sum();
        bytes + next.bytes() <= MAX_BATCH_BYTES
            && batch.iter().all(|queued| queued.request.election_prefix() != next.election_prefix())
    }

    async fn run_one(&self, entry: &NewEntry) -> BatchResult<EnterResult> {
        let attempts = &AttemptTracker::default();
        let call = self.members.call("enter", CallClass::Bulk, |client| async move {
            attempts.track(self.create(&client, entry)).await
        });
        call.await.map_err(|error| attempts.failure(error))
    }

    async fn run_all(&self, entries: &[NewEntry]) -> BatchResult<Option<Vec<EnterResult>>> {
        let attempts = &AttemptTracker::default();
        let call = self.members.call("enter", CallClass::Bulk, |client| async move {
            attempts.track(self.create_all(&client, entries)).await
        });
        call.await.map_err(|error| attempts.failure(error))
    }
}

/// Counts how many attempts were started, and how many of them the store has executed or rejected.
#[derive(Debug, Default)]
struct AttemptTracker {
    started: AtomicUsize,
    decided: AtomicUsize,
}

impl AttemptTracker {
    async fn track<T>(&self, attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.started.fetch_add(1, Relaxed);
        let outcome = attempt.await;
        if !outcome.as_ref().is_err_and(|failure| failure.error.is_retryable()) {
            self.decided.fetch_add(1, Relaxed);
        }
        outcome
    }

    /// The failure of the call. It is settled when the store has rejected every attempt, or no attempt was started.
    fn failure(&self, error: BackendError) -> RequestFailure {
        let all_decided = self.decided.load(Relaxed) == self.started.load(Relaxed);
        RequestFailure { settled: all_decided && error.is_permanent(), error }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt as _;

    use super::*;
    use crate::config::EtcdConfig;

    fn entry(election: &str, bytes: usize) -> NewEntry {
        let key = format!("{election}/7").into();
        NewEntry { key, election_prefix_len: election.len() + 1, nonce: 1, payload: vec![0; bytes] }
    }

    fn queued(entry: NewEntry) -> QueuedRequest<EntryCreator> {
        QueuedRequest::new(entry).0
    }

    /// Two entries of one election in one transaction would have one token, and both would lead.
    #[test]
    fn a_transaction_has_one_entry_per_election_and_is_not_larger_than_etcd_accepts() {
        let members = Arc::new(Members::new(EtcdConfig::new(["a"]), "/t/~probe".to_owned()));
        let creator = EntryCreator { members, keys: Keys::new("/t"), lease: 7 };
        let mut batch = vec![queued(entry("a", 1))];
        assert!(!creator.can_join(&batch, &entry("a", 1)));
        let large = entry("b", MAX_BATCH_BYTES - 400);
        assert!(creator.can_join(&batch, &large));
        batch.push(queued(large));
        assert!(!creator.can_join(&batch, &entry("c", 400)));
    }

    /// Hazard G10: a request that is rejected while another of its attempts is in flight may still take effect.
    #[tokio::test]
    async fn a_rejection_settles_only_what_was_answered() {
        let rejection = || BackendError::new(BackendErrorKind::Unauthorized, "permission denied");
        let rejected = || async { Err::<(), Failure>(rejection().into()) };
        let attempts = AttemptTracker::default();
        assert!(attempts.failure(rejection()).settled, "no attempt reached the store");
        let _ = attempts.track(rejected()).await;
        let failure = attempts.failure(rejection());
        assert!(failure.settled && failure.into_error().is_permanent());
        // The second attempt was rejected, and the first is stuck in a frozen member.
        let attempts = AttemptTracker::default();
        assert!(attempts.track(pending::<Result<(), Failure>>()).now_or_never().is_none());
        let failure = attempts.failure(rejection());
        assert!(!failure.settled && failure.into_error().is_retryable());
        // The first attempt was interrupted with an unknown effect.
        let attempts = AttemptTracker::default();
        let interrupted = BackendError::new(BackendErrorKind::Unavailable, "connection reset");
        let _ = attempts.track(async { Err::<(), Failure>(interrupted.into()) }).await;
        assert!(!attempts.failure(rejection()).settled);
        let _ = attempts.track(rejected()).await;
        assert!(!attempts.failure(rejection()).settled);
    }
}
