//! Withdraws a request to enter: deletes its entry, and makes sure that no late attempt creates it again.
//!
//! An attempt that was not answered can reach the store later. So when the outcome of an attempt is unknown, a
//! *marker*, `~withdrawn/LEASE/NONCE`, is written under the same lease. Every put of that request is conditional on
//! the absence of the marker, and fails once it exists. Where every attempt was answered, which is almost always so,
//! no marker is written.
//!
//! # The order, and a store without space
//!
//! A known entry is deleted first, and the marker is written afterwards. Under etcd's NOSPACE alarm puts are rejected
//! and deletes are allowed (hazard E17). If the marker came first, the delete would never be sent, and the entry
//! would block its election for as long as the alarm lasts.
//!
//! A late attempt can create the entry again between the delete and the marker. So after the marker the entry is
//! deleted once more, by its payload, which contains the nonce. When etcd rejects the marker for lack of space, it
//! rejects late attempts too, so what the second delete does not find cannot exist. That is why
//! [`Withdrawals::leave`] succeeds in that case as well, and the entry is gone.
//!
//! Once the alarm is cleared, a late attempt can succeed again. A hedged request can be answered while a copy is still
//! in flight; the engine does not know that copy, and does not repeat the withdrawal. So a task of the session retries
//! the marker and the delete, three times per TTL, until the marker is written or the session ends. A late entry exists
//! for a third of a TTL at most.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tenure_core::{
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, Entry, EntryRequest, mark_resign_requested},
};
use tokio::{task::AbortHandle, time::sleep};
use tracing::{debug, warn};

use crate::{
    election::{entry::create_revision, store::ElectionStore},
    transport::{error::is_out_of_space, members::CallClass, request::kv},
};

/// How many unsettled requests keep their memory reserved when none is in flight.
const MIN_CAPACITY: usize = 16;

/// The requests of one session that may have to be withdrawn.
pub(crate) struct Withdrawals {
    lease_withdrawals: Arc<LeaseWithdrawals>,
    /// How long after a rejection the marker is written again.
    retry_interval: Duration,
}

/// The withdrawals of one lease.
struct LeaseWithdrawals {
    store: Arc<ElectionStore>,
    lease: i64,
    requests: Mutex<Requests>,
}

#[derive(Default)]
struct Requests {
    /// The nonces of requests that have an attempt which may still reach the store.
    unsettled: HashSet<u128>,
    /// The nonces of requests that can have no effect any more, because their marker is written.
    marked: HashSet<u128>,
    /// Requests whose marker was rejected for lack of space.
    unmarked: Vec<EntryRequest>,
    /// The task that writes those markers later.
    marking_task: Option<AbortHandle>,
}

/// etcd's response to a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkOutcome {
    Written,
    /// The NOSPACE alarm is active: etcd accepts no puts.
    OutOfSpace,
}

impl Withdrawals {
    pub(crate) fn new(store: Arc<ElectionStore>, lease: i64, ttl: Duration) -> Self {
        Self {
            lease_withdrawals: Arc::new(LeaseWithdrawals { store, lease, requests: Mutex::default() }),
            retry_interval: ttl / 3,
        }
    }

    /// Records that an attempt of this request begins. Returns whether it is the first.
    pub(crate) fn begin_attempt(&self, nonce: u128) -> bool {
        self.lease_withdrawals.requests().unsettled.insert(nonce)
    }

    /// Records that no attempt of this request can reach the store any more.
    pub(crate) fn settle(&self, nonce: u128) {
        self.lease_withdrawals.requests().settle(nonce);
    }

    /// Deletes the entry of `request`, and prevents late attempts from creating it again.
    ///
    /// # Errors
    /// When it is unknown whether the entry is gone.
    pub(crate) async fn leave(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
    ) -> Result<(), BackendError> {
        let withdrawals = &self.lease_withdrawals;
        let unsettled = {
            let requests = withdrawals.requests();
            if entry.is_none() && requests.marked.contains(&request.nonce) {
                return Ok(());
            }
            requests.unsettled.contains(&request.nonce)
        };
        if unsettled
            && is_disabled(SafetyRule::DeleteBeforeMarking)
            && withdrawals.mark(request).await? == MarkOutcome::OutOfSpace
        {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                "withdraw on etcd: no space (NOSPACE alarm)",
            ));
        }
        if let Some(entry) = entry {
            withdrawals.delete(&entry.key, create_revision(entry)).await?;
            if !unsettled {
                return Ok(());
            }
        }
        if unsettled && withdrawals.withdraw(request).await? == MarkOutcome::OutOfSpace {
            self.mark_later(request);
        } else if !unsettled {
            withdrawals.delete_by_payload(request).await?;
        }
        Ok(())
    }

    /// Deletes the key if it was created at `create_revision`.
    pub(crate) async fn delete(&self, key: &str, create_revision: i64) -> Result<(), BackendError> {
        self.lease_withdrawals.delete(key, create_revision).await
    }

    /// Ends the task that writes markers later: the session has ended in the store.
    pub(crate) fn stop(&self) {
        if let Some(task) = self.lease_withdrawals.requests().marking_task.take() {
            task.abort();
        }
    }

    fn mark_later(&self, request: &EntryRequest) {
        let mut requests = self.lease_withdrawals.requests();
        if requests.unmarked.iter().any(|pending| pending.nonce == request.nonce) {
            return;
        }
        requests.unmarked.push(request.clone());
        if requests.marking_task.as_ref().is_none_or(AbortHandle::is_finished) {
            warn!(
                session = format!("{:x}", self.lease_withdrawals.lease),
                "etcd rejects writes (NOSPACE alarm): the entry is deleted, and its withdrawal marker is written once \
                 there is space"
            );
            let task = tokio::spawn(mark_pending(Arc::clone(&self.lease_withdrawals), self.retry_interval));
            requests.marking_task = Some(task.abort_handle());
        }
    }
}

impl Drop for Withdrawals {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes the markers that were rejected for lack of space, until none is left.
async fn mark_pending(withdrawals: Arc<LeaseWithdrawals>, retry_interval: Duration) {
    loop {
        sleep(retry_interval).await;
        let pending = withdrawals.requests().unmarked.clone();
        for request in &pending {
            if let Err(error) = withdrawals.withdraw(request).await {
                debug!(election = %request.election, %error, "writing a withdrawal marker failed; retrying");
                break;
            }
        }
        let mut requests = withdrawals.requests();
        if requests.unmarked.is_empty() {
            // Under the lock, so that `mark_later` sees that a new task is needed.
            requests.marking_task = None;
            return;
        }
    }
}

impl Requests {
    fn settle(&mut self, nonce: u128) {
        self.unsettled.remove(&nonce);
        if self.unsettled.is_empty() {
            // The set may have held thousands.
            self.unsettled.shrink_to(MIN_CAPACITY);
        }
    }
}

impl LeaseWithdrawals {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the marker of `request` if there is space, and deletes its entry.
    async fn withdraw(&self, request: &EntryRequest) -> Result<MarkOutcome, BackendError> {
        let outcome = self.mark(request).await?;
        self.delete_by_payload(request).await?;
        if outcome == MarkOutcome::Written {
            let mut requests = self.requests();
            requests.settle(request.nonce);
            requests.marked.insert(request.nonce);
            requests.unmarked.retain(|pending| pending.nonce != request.nonce);
        }
        Ok(outcome)
    }

    /// Writes the marker, so that no put of `request` takes effect from now on.
    async fn mark(&self, request: &EntryRequest) -> Result<MarkOutcome, BackendError> {
        let marker = &self.store.keys.withdrawal_marker(self.lease, request.nonce);
        let lease = self.lease;
        let outcome = self
            .store
            .members
            .call("withdraw", CallClass::Bulk, |client| async move {
                match kv(&client).put(marker.as_str(), "", Some(PutOptions::new().with_lease(lease))).await {
                    Ok(_) => Ok(MarkOutcome::Written),
                    // The alarm applies to the whole cluster: no other member is tried.
                    Err(error) if is_out_of_space(&error) => Ok(MarkOutcome::OutOfSpace),
                    Err(error) => Err(error.into()),
                }
            })
            .await;
        match outcome {
            Ok(response) => Ok(response.value),
            // Nothing can be put under a lease that has ended.
            Err(error) if error.kind() == BackendErrorKind::SessionGone => Ok(MarkOutcome::Written),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, key: &str, create_revision: i64) -> Result<(), BackendError> {
        self.store
            .members
            .call("delete entry", CallClass::Bulk, |client| async move {
                let txn = Txn::new()
                    .when([Compare::create_revision(key, CompareOp::Equal, create_revision)])
                    .and_then([TxnOp::delete(key, None)]);
                kv(&client).txn(txn).await?;
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Deletes the entry that `request` created, identified by its payload: the key may have the entry of a later
    /// request by now.
    async fn delete_by_payload(&self, request: &EntryRequest) -> Result<(), BackendError> {
        let key = &self.store.keys.entry(&request.election, self.lease);
        let payload = &request.payload();
        // The payload may contain a resign request.
        let with_resign_request = &mark_resign_requested(payload).unwrap_or_default();
        self.store
            .members
            .call("delete entry", CallClass::Bulk, |client| async move {
                let delete_if = |payload: &[u8]| {
                    Txn::new()
                        .when([Compare::value(key.as_str(), CompareOp::Equal, payload)])
                        .and_then([TxnOp::delete(key.as_str(), None)])
                };
                let txn = delete_if(payload).or_else([TxnOp::txn(delete_if(with_resign_request))]);
                kv(&client).txn(txn).await?;
                Ok(())
            })
            .await?;
        Ok(())
    }
}
