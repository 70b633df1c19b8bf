//! Withdrawing a request to enter: deleting its entry, and making sure that no late attempt creates it again.
//!
//! An attempt that was not answered can reach the store later. So when the outcome of an attempt is unknown, a *mark*,
//! `~withdrawn/LEASE/NONCE`, is written on the same lease: every put of that request compares the mark with nothing, and
//! fails once it is there. Where every attempt was answered (almost always) no mark is written.
//!
//! # The order, and a store without space
//!
//! A known entry is deleted first, and the request is marked afterwards. Under etcd's NOSPACE alarm puts are refused and
//! deletes are allowed (hazard E17): were the mark first, the delete would never come, and the entry would block its
//! election for as long as the alarm lasts.
//!
//! A late attempt can create the entry again between the delete and the mark. So after the mark the entry is deleted
//! once more, by its payload, which holds the nonce. When etcd refuses the mark for want of space, it refuses late
//! attempts too: what the second delete does not find cannot be there. That is why [`Withdrawals::leave`] succeeds then as
//! well, and the entry is gone.
//!
//! Once the alarm is lifted, a late attempt can succeed again. The engine does not repeat a withdrawal whose request it
//! saw answered, and a hedged request is one. So a task of the session marks and deletes again, three times per TTL, until
//! the mark is written or the session ends. A late entry stands for a third of a TTL at most.

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
    Shared, election::wait::revision, transport::error::is_out_of_space, transport::members::Call,
    transport::request::kv,
};

/// Room for so many requests is kept when none is under way.
const FEW: usize = 16;

/// The requests of one session that may have to be withdrawn.
pub(crate) struct Withdrawals {
    store: Arc<Store>,
    /// How long after a refusal the mark is tried again.
    retry: Duration,
}

/// The entries and marks of one lease.
struct Store {
    shared: Arc<Shared>,
    lease: i64,
    requests: Mutex<Requests>,
}

#[derive(Default)]
struct Requests {
    /// Those of which an attempt may still reach the store, by nonce.
    unsettled: HashSet<u128>,
    /// Those that can have no effect any more, because they are marked as withdrawn.
    marked: HashSet<u128>,
    /// Those whose mark was refused for want of space.
    to_mark: Vec<EntryRequest>,
    /// The task that marks them later.
    marking: Option<AbortHandle>,
}

/// What etcd answered to a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Written,
    /// It takes no puts: the NOSPACE alarm is on.
    OutOfSpace,
}

impl Withdrawals {
    pub(crate) fn new(shared: Arc<Shared>, lease: i64, ttl: Duration) -> Self {
        Self { store: Arc::new(Store { shared, lease, requests: Mutex::default() }), retry: ttl / 3 }
    }

    /// An attempt of this request begins; whether it is the first.
    pub(crate) fn begins(&self, nonce: u128) -> bool {
        self.store.requests().unsettled.insert(nonce)
    }

    /// No attempt of this request can reach the store any more.
    pub(crate) fn settled(&self, nonce: u128) {
        self.store.requests().settled(nonce);
    }

    /// Deletes the entry of `request`, and keeps late attempts from creating it again.
    ///
    /// # Errors
    /// When it is not known whether the entry is gone.
    pub(crate) async fn leave(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
    ) -> Result<(), BackendError> {
        let store = &self.store;
        let unsettled = {
            let requests = store.requests();
            if entry.is_none() && requests.marked.contains(&request.nonce) {
                return Ok(());
            }
            requests.unsettled.contains(&request.nonce)
        };
        if unsettled
            && is_disabled(SafetyRule::DeleteBeforeMarking)
            && store.mark(request).await? == Mark::OutOfSpace
        {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "withdraw on etcd: no space"));
        }
        if let Some(entry) = entry {
            store.delete(&entry.key, revision(entry)).await?;
            if !unsettled {
                return Ok(());
            }
        }
        if unsettled && store.withdraw(request).await? == Mark::OutOfSpace {
            self.mark_later(request);
        } else if !unsettled {
            store.delete_payload(request).await?;
        }
        Ok(())
    }

    /// Deletes the key if it was created at `create_revision`.
    pub(crate) async fn delete(&self, key: &str, create_revision: i64) -> Result<(), BackendError> {
        self.store.delete(key, create_revision).await
    }

    /// Ends the task that marks requests later: the session has ended in the store.
    pub(crate) fn stop(&self) {
        if let Some(marking) = self.store.requests().marking.take() {
            marking.abort();
        }
    }

    fn mark_later(&self, request: &EntryRequest) {
        let mut requests = self.store.requests();
        if requests.to_mark.iter().any(|pending| pending.nonce == request.nonce) {
            return;
        }
        requests.to_mark.push(request.clone());
        if requests.marking.as_ref().is_none_or(AbortHandle::is_finished) {
            warn!(
                session = format!("{:x}", self.store.lease),
                "etcd takes no writes (NOSPACE alarm): the entry is deleted, and is marked as withdrawn once there is space"
            );
            let marking = tokio::spawn(mark_pending(Arc::clone(&self.store), self.retry));
            requests.marking = Some(marking.abort_handle());
        }
    }
}

impl Drop for Withdrawals {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Marks what could not be marked for want of space, until nothing is left to mark.
async fn mark_pending(store: Arc<Store>, retry: Duration) {
    loop {
        sleep(retry).await;
        let pending = store.requests().to_mark.clone();
        for request in &pending {
            if let Err(error) = store.withdraw(request).await {
                debug!(election = %request.election, %error, "a withdrawn request is not marked yet");
                break;
            }
        }
        let mut requests = store.requests();
        if requests.to_mark.is_empty() {
            // Under the lock, so that whoever adds one sees that a new task is needed.
            requests.marking = None;
            return;
        }
    }
}

impl Requests {
    fn settled(&mut self, nonce: u128) {
        self.unsettled.remove(&nonce);
        if self.unsettled.is_empty() {
            // There may have been thousands.
            self.unsettled.shrink_to(FEW);
        }
    }
}

impl Store {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks `request` as withdrawn where there is space, and deletes its entry.
    async fn withdraw(&self, request: &EntryRequest) -> Result<Mark, BackendError> {
        let mark = self.mark(request).await?;
        self.delete_payload(request).await?;
        if mark == Mark::Written {
            let mut requests = self.requests();
            requests.settled(request.nonce);
            requests.marked.insert(request.nonce);
            requests.to_mark.retain(|pending| pending.nonce != request.nonce);
        }
        Ok(mark)
    }

    /// Writes the mark, so that no put of `request` takes effect from now on.
    async fn mark(&self, request: &EntryRequest) -> Result<Mark, BackendError> {
        let mark = &self.shared.keys.withdrawn(self.lease, request.nonce);
        let lease = self.lease;
        let outcome = self
            .shared
            .members
            .call("withdraw", Call::Bulk, |client| async move {
                match kv(&client).put(mark.as_str(), "", Some(PutOptions::new().with_lease(lease))).await {
                    Ok(_) => Ok(Mark::Written),
                    // The alarm is the whole cluster's: no other member is asked.
                    Err(error) if is_out_of_space(&error) => Ok(Mark::OutOfSpace),
                    Err(error) => Err(error.into()),
                }
            })
            .await;
        match outcome {
            Ok(won) => Ok(won.value),
            // Nothing can be put under a lease that has ended.
            Err(error) if error.kind() == BackendErrorKind::SessionGone => Ok(Mark::Written),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, key: &str, create_revision: i64) -> Result<(), BackendError> {
        self.shared
            .members
            .call("leave", Call::Bulk, |client| async move {
                let txn = Txn::new()
                    .when([Compare::create_revision(key, CompareOp::Equal, create_revision)])
                    .and_then([TxnOp::delete(key, None)]);
                kv(&client).txn(txn).await?;
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Deletes the entry that `request` made, known by its payload: under the same key there may
    /// be a later request's by now.
    async fn delete_payload(&self, request: &EntryRequest) -> Result<(), BackendError> {
        let key = &self.shared.keys.entry(&request.election, self.lease);
        let payload = &request.payload();
        // Somebody may have asked its candidate to resign.
        let asked = &mark_resign_requested(payload).unwrap_or_default();
        self.shared
            .members
            .call("leave", Call::Bulk, |client| async move {
                let with = |payload: &[u8]| {
                    Txn::new()
                        .when([Compare::value(key.as_str(), CompareOp::Equal, payload)])
                        .and_then([TxnOp::delete(key.as_str(), None)])
                };
                let txn = with(payload).or_else([TxnOp::txn(with(asked))]);
                kv(&client).txn(txn).await?;
                Ok(())
            })
            .await?;
        Ok(())
    }
}
