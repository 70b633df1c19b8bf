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
//! [`LeaseWithdrawals::leave`] succeeds in that case as well, and the entry is gone.
//!
//! Once the alarm is cleared, a late attempt can succeed again. A hedged request can be answered while a copy is still
//! in flight; the engine does not know that copy, and does not repeat the withdrawal. So a task of the session retries
//! the marker and the delete, three times per TTL, until the marker is written or the session ends. A late entry exists
//! for a third of a TTL at most.
//!
//! # When a marker can go
//!
//! Every attempt to create the entry or the marker is awaited, also when another one was answered first, or its caller has
//! given up ([`calls`](crate::election::calls)). Once all of them were answered, none can take effect any more: the request is
//! *settled*, and the same task deletes its marker (hazard E21). After an attempt that ended without an answer, the marker
//! stays until the session ends.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tenure_core::{
    failpoints::{SafetyRule, is_disabled},
    internal::lock,
    spi::{BackendError, BackendErrorKind, Entry, EntryRequest, mark_resign_requested},
};
use tokio::{runtime::Handle, task::AbortHandle, time::sleep};
use tracing::{debug, warn};

use crate::{
    election::{
        calls::{Attempts, Call},
        entry::create_revision,
        store::ElectionStore,
    },
    transport::{
        error::{OUT_OF_SPACE, status_contains},
        members::CallClass,
        request::kv,
    },
};

/// How many unsettled requests keep their memory reserved when none is in flight.
const MIN_CAPACITY: usize = 16;
/// How many markers one transaction deletes at most.
const MAX_DELETES: usize = 100;

/// The requests to enter under one lease: which of them may reach the store late, and which have a marker.
pub(crate) struct LeaseWithdrawals {
    store: Arc<ElectionStore>,
    lease: i64,
    /// How long after a failure markers are written or deleted again.
    retry_interval: Duration,
    requests: Mutex<Requests>,
}

#[derive(Default)]
struct Requests {
    /// The nonces of requests that may still reach the store, each with how many calls of it are not settled.
    unsettled: HashMap<u128, usize>,
    /// The nonces of unsettled requests whose marker may exist, each with whether the request can have no effect any more:
    /// the marker was written, and the entry deleted after that.
    markers: HashMap<u128, bool>,
    /// The requests whose marker was rejected for lack of space.
    unmarked: Vec<EntryRequest>,
    /// The nonces of settled requests whose marker may exist.
    obsolete: Vec<u128>,
    /// The task that writes and deletes markers.
    task: Option<AbortHandle>,
    /// Whether the session has ended, so that no task is started any more.
    is_stopped: bool,
}

/// etcd's response to a put of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkerOutcome {
    Written,
    /// The NOSPACE alarm is active: etcd accepts no puts.
    OutOfSpace,
}

impl LeaseWithdrawals {
    pub(crate) fn new(store: Arc<ElectionStore>, lease: i64, ttl: Duration) -> Arc<Self> {
        Arc::new(Self { store, lease, retry_interval: ttl / 3, requests: Mutex::default() })
    }

    /// The key of the marker of a request.
    pub(crate) fn marker(&self, nonce: u128) -> String {
        self.store.keys.withdrawal_marker(self.lease, nonce)
    }

    /// A call of this request begins. See [`Call`].
    pub(crate) fn begin(&self, nonce: u128) {
        *lock(&self.requests).unsettled.entry(nonce).or_default() += 1;
    }

    /// A call of this request cannot reach the store any more.
    pub(crate) fn settle(self: &Arc<Self>, nonce: u128) {
        let mut requests = lock(&self.requests);
        let Some(calls) = requests.unsettled.get_mut(&nonce) else { return };
        *calls -= 1;
        if *calls > 0 {
            return;
        }
        requests.unsettled.remove(&nonce);
        if requests.unsettled.is_empty() {
            // The map may have held thousands.
            requests.unsettled.shrink_to(MIN_CAPACITY);
        }
        if requests.markers.remove(&nonce).is_some() {
            requests.obsolete.push(nonce);
            self.ensure_task(&mut requests);
        }
    }

    /// Whether an attempt of this request may still reach the store.
    #[cfg(test)]
    pub(crate) fn is_unsettled(&self, nonce: u128) -> bool {
        lock(&self.requests).unsettled.contains_key(&nonce)
    }

    /// Deletes the entry of `request`, and prevents late attempts from creating it again.
    ///
    /// # Errors
    /// When it is unknown whether the entry is gone.
    pub(crate) async fn leave(
        self: &Arc<Self>,
        request: &EntryRequest,
        entry: Option<&Entry>,
    ) -> Result<(), BackendError> {
        let (unsettled, marked) = {
            let requests = lock(&self.requests);
            let marked = requests.markers.get(&request.nonce).is_some_and(|is_effective| *is_effective);
            (requests.unsettled.contains_key(&request.nonce), marked)
        };
        if marked && entry.is_none() {
            return Ok(());
        }
        let may_take_effect = unsettled && !marked;
        if may_take_effect
            && is_disabled(SafetyRule::DeleteBeforeMarking)
            && self.write_marker(&Call::begin(Arc::clone(self), request.nonce).0).await?
                == MarkerOutcome::OutOfSpace
        {
            let message = "withdraw on etcd: no space (NOSPACE alarm)";
            return Err(BackendError::new(BackendErrorKind::Unavailable, message));
        }
        if let Some(entry) = entry {
            self.delete(&entry.key, create_revision(entry)).await?;
        }
        if may_take_effect {
            if self.withdraw(request).await? == MarkerOutcome::OutOfSpace {
                self.write_marker_later(request);
            }
        } else if entry.is_none() {
            self.delete_by_payload(request).await?;
        }
        Ok(())
    }

    /// Ends the task that writes and deletes markers: the session has ended in the store.
    pub(crate) fn stop(&self) {
        let mut requests = lock(&self.requests);
        requests.is_stopped = true;
        requests.task.take().iter().for_each(AbortHandle::abort);
    }

    fn write_marker_later(self: &Arc<Self>, request: &EntryRequest) {
        let mut requests = lock(&self.requests);
        if requests.unmarked.iter().any(|pending| pending.nonce == request.nonce) {
            return;
        }
        warn!(
            session = format!("{:x}", self.lease),
            election = %request.election,
            "etcd rejects writes (NOSPACE alarm): the entry is deleted, and its withdrawal marker is written once there is \
             space"
        );
        requests.unmarked.push(request.clone());
        self.ensure_task(&mut requests);
    }

    /// Starts the task, unless it runs, or the session has ended, or the runtime shuts down.
    fn ensure_task(self: &Arc<Self>, requests: &mut Requests) {
        if !requests.is_stopped
            && requests.task.as_ref().is_none_or(AbortHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            requests.task = Some(runtime.spawn(Arc::clone(self).run_marker_task()).abort_handle());
        }
    }

    /// Writes the markers that were rejected, and deletes those that are obsolete, until none is left.
    async fn run_marker_task(self: Arc<Self>) {
        loop {
            sleep(self.retry_interval).await;
            let (unmarked, obsolete) = {
                let mut requests = lock(&self.requests);
                (requests.unmarked.clone(), mem::take(&mut requests.obsolete))
            };
            for request in &unmarked {
                if let Err(error) = self.withdraw(request).await {
                    debug!(election = %request.election, %error, "writing a withdrawal marker failed; retrying");
                    break;
                }
            }
            for markers in obsolete.chunks(MAX_DELETES) {
                if let Err(error) = self.delete_markers(markers).await {
                    debug!(%error, "deleting withdrawal markers failed; retrying");
                    lock(&self.requests).obsolete.extend(markers);
                }
            }
            let mut requests = lock(&self.requests);
            if requests.unmarked.is_empty() && requests.obsolete.is_empty() {
                // Under the lock, so that a new task is started for what comes later.
                requests.task = None;
                return;
            }
        }
    }

    /// Writes the marker of `request` if there is space, and deletes its entry.
    async fn withdraw(self: &Arc<Self>, request: &EntryRequest) -> Result<MarkerOutcome, BackendError> {
        // The request is settled, and the marker obsolete, once the attempts to write the marker were answered too.
        let (call, _) = Call::begin(Arc::clone(self), request.nonce);
        let outcome = self.write_marker(&call).await?;
        self.delete_by_payload(request).await?;
        if outcome == MarkerOutcome::Written {
            let mut requests = lock(&self.requests);
            requests.unmarked.retain(|pending| pending.nonce != request.nonce);
            requests.markers.insert(request.nonce, true);
        }
        Ok(outcome)
    }

    /// Writes the marker, so that no put of the request of `call` takes effect from now on.
    async fn write_marker(&self, call: &Arc<Call>) -> Result<MarkerOutcome, BackendError> {
        // Before it is written, because the answer can be lost.
        lock(&self.requests).markers.entry(call.nonce).or_default();
        let (marker, lease) = (&self.marker(call.nonce), self.lease);
        let attempts = &Attempts::new(&self.store.members);
        let written = self
            .store
            .members
            .call("withdraw", CallClass::Bulk, |client| {
                let marker = marker.clone();
                attempts.run(vec![Arc::clone(call)], async move {
                    match kv(&client).put(marker, "", Some(PutOptions::new().with_lease(lease))).await {
                        Ok(mut response) => Ok((response.take_header(), MarkerOutcome::Written)),
                        // The alarm applies to the whole cluster: no other member is tried.
                        Err(error) if status_contains(&error, OUT_OF_SPACE) => {
                            Ok((None, MarkerOutcome::OutOfSpace))
                        }
                        Err(error) => Err(error.into()),
                    }
                })
            })
            .await;
        match written {
            // Nothing can be put under a lease that has ended.
            Err(error) if error.kind() == BackendErrorKind::SessionGone => Ok(MarkerOutcome::Written),
            written => written,
        }
    }

    async fn delete_markers(&self, nonces: &[u128]) -> Result<(), BackendError> {
        let markers: &Vec<_> = &nonces.iter().map(|nonce| TxnOp::delete(self.marker(*nonce), None)).collect();
        let deleted = self.store.members.call("delete markers", CallClass::Bulk, |client| async move {
            Ok((kv(&client).txn(Txn::new().and_then(markers.clone())).await?.take_header(), ()))
        });
        deleted.await
    }

    /// Deletes the key if it was created at `create_revision`.
    pub(crate) async fn delete(&self, key: &str, create_revision: i64) -> Result<(), BackendError> {
        self.store
            .members
            .call("delete entry", CallClass::Bulk, |client| async move {
                let txn = Txn::new()
                    .when([Compare::create_revision(key, CompareOp::Equal, create_revision)])
                    .and_then([TxnOp::delete(key, None)]);
                Ok((kv(&client).txn(txn).await?.take_header(), ()))
            })
            .await
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
                Ok((kv(&client).txn(txn).await?.take_header(), ()))
            })
            .await
    }
}
