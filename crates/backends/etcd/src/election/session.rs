//! A session: a lease, and the entries created under it.
//!
//! # Requests that arrive late
//!
//! A request that was overtaken by another attempt, or whose future was dropped, may be queued in a frozen member's
//! socket and executed much later. No request here does harm then:
//!
//! - a *put* of an entry fails once the marker of its withdrawal exists ([`withdrawal`](crate::election::withdrawal)), and a
//!   late put of a marker harms nobody;
//! - a *delete* names the create revision or the payload, which contains the nonce; an *update* names the
//!   modification revision as well;
//! - a *keepalive* extends a lease that is still in use, or one that is given up: that one expires by at most a TTL later;
//! - a *grant* creates a lease with a client-chosen id, which expires by itself.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use futures::future::join;
use tenure_core::{
    failpoints::{SafetyRule, is_disabled},
    spi::{
        BackendError, BackendErrorKind, BackendSession, Entered, Entry, EntryRequest, EntryWatcher,
        Heartbeat, HeartbeatProof, PerEntryWatcher, QueuePosition, Won, replacement_payload,
    },
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    election::{
        calls::Call,
        earlier_session,
        entering::{EnterResult, EntryCreator, NewEntry},
        entry::{create_revision, entry_gone, is_same_entry},
        entry_watcher,
        keepalive::{Keepalive, Renewal, ttl_from_secs},
        keys::fencing_token,
        probe_entries::{ProbeEntries, ProbeEntry},
        store::ElectionStore,
        wait,
        withdrawal::LeaseWithdrawals,
    },
    transport::{
        batcher::Batcher,
        error::{EXISTING_LEASE, malformed, status_contains},
        members::CallClass,
        proxy::refuse_proxy,
        request::{kv, ranges},
    },
};

/// The highest TTL, in seconds, that etcd grants when less was requested. Its minimum TTL is one and a half election
/// timeouts, which are at most 50 s. A granted TTL is cut to the requested one or to this value, whichever is larger: a TTL
/// that is assumed too short is safe.
const MAX_RAISED_TTL_SECS: i64 = 75;

/// The first pause before a keepalive is repeated because the raft term has changed. It doubles each time.
const FIRST_RAFT_TERM_PAUSE: Duration = Duration::from_millis(20);

/// How long a rejected call to enter waits for the answers to its other attempts.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A lease, and the entries created under it.
pub(crate) struct EtcdSession {
    store: Arc<ElectionStore>,
    lease: i64,
    granted_ttl: Duration,
    withdrawals: Arc<LeaseWithdrawals>,
    keepalive: Keepalive,
    probe_entries: Arc<ProbeEntries>,
    entry_creator: Arc<Batcher<EntryCreator>>,
}

impl EtcdSession {
    /// Grants a lease of `ttl`, in whole seconds rounded up.
    ///
    /// The client chooses a random id, so that all attempts are for one lease, and a lease whose answer was lost is
    /// found again (hazard E12: a second grant says "already exists"). The id comes from the system's random number
    /// generator, because two processes with one lease would both lead. When the first attempt gets "already exists",
    /// the lease belongs to another client.
    pub(crate) async fn open(store: Arc<ElectionStore>, ttl: Duration) -> Result<Self, BackendError> {
        let seconds = i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX);
        let lease = (store.members.random()? >> 1).cast_signed().max(1);
        store.members.verify_cluster("open session").await?;
        let attempts = &AtomicUsize::new(0);
        // Of several members, another one may grant it.
        let refused = match store.members.all().len() {
            1 => BackendErrorKind::Invalid,
            _ => BackendErrorKind::Unavailable,
        };
        let granted = store
            .members
            .call("open session", CallClass::Urgent, |client| async move {
                let nth = attempts.fetch_add(1, Relaxed);
                let options = LeaseGrantOptions::new().with_id(lease);
                let mut lease_client = client.lease_client();
                let grant = lease_client.grant(seconds.max(1), Some(options));
                let (granted, not_a_proxy) = join(grant, refuse_proxy(&client, refused)).await;
                not_a_proxy?;
                match granted {
                    Ok(mut response) => Ok((response.take_header(), response.ttl())),
                    Err(error) if status_contains(&error, EXISTING_LEASE) && nth > 0 => {
                        let mut response = client.lease_client().time_to_live(lease, None).await?;
                        Ok((response.take_header(), response.granted_ttl()))
                    }
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        debug!(session = format!("{lease:x}"), granted, "etcd lease granted");
        let granted_ttl = ttl_from_secs(granted.min(seconds.max(MAX_RAISED_TTL_SECS)))?;
        store.members.record_ttl(granted_ttl);
        Ok(Self {
            entry_creator: Batcher::new(EntryCreator { members: Arc::clone(&store.members), lease }),
            withdrawals: LeaseWithdrawals::new(Arc::clone(&store), lease, granted_ttl),
            store,
            lease,
            granted_ttl,
            keepalive: Keepalive::new(lease),
            probe_entries: Arc::default(),
        })
    }

    /// Renews the lease. The response proves nothing yet.
    async fn renew(&self) -> Result<Renewal, BackendError> {
        match self.keepalive.send(&self.store.members).await {
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                // A newly elected leader that has not applied the grant yet also says "not found". After a
                // linearizable read it has.
                self.read("heartbeat", &self.store.keys.absent_key(), GetOptions::new().with_keys_only())
                    .await?;
                self.keepalive.send(&self.store.members).await
            }
            outcome => outcome,
        }
    }

    /// A linearizable read that finds an entry of this session, if it has one, and the raft term of its response.
    async fn confirm(&self) -> Result<u64, BackendError> {
        loop {
            let probe = self.probe_entries.next();
            let key = match &probe {
                Some(probe) => Arc::clone(&probe.key),
                None => self.store.keys.absent_key().into(),
            };
            let (found, raft_term) = self.read("confirm", &key, GetOptions::new().with_keys_only()).await?;
            match probe {
                Some(probe)
                    if !found.is_some_and(|kv| is_same_entry(&kv, self.lease, probe.create_revision))
                        && !is_disabled(SafetyRule::WatchOwnEntry) =>
                {
                    debug!(session = self.id(), entry = &*probe.key, "an etcd entry of the session is gone");
                    self.probe_entries.mark_missing(&probe);
                }
                _ => return Ok(raft_term),
            }
        }
    }

    /// A linearizable read of one key, and the raft term of its response.
    async fn read(
        &self,
        what: &'static str,
        key: &str,
        options: GetOptions,
    ) -> Result<(Option<KeyValue>, u64), BackendError> {
        let options = &options;
        self.store
            .members
            .call(what, CallClass::Urgent, |client| async move {
                let mut response = kv(&client).get(key, Some(options.clone())).await?;
                let header = response.take_header().ok_or_else(|| malformed("header"))?;
                let raft_term = header.raft_term();
                Ok((Some(header), (response.take_kvs().pop(), raft_term)))
            })
            .await
    }

    /// Whether `kv` is `entry`, and still attached to this session's lease.
    fn is_own(&self, kv: &KeyValue, entry: &Entry) -> bool {
        is_same_entry(kv, self.lease, create_revision(entry))
    }
}

#[async_trait]
impl BackendSession for EtcdSession {
    fn id(&self) -> String {
        format!("{:x}", self.lease)
    }

    async fn cluster(&self) -> Result<String, BackendError> {
        earlier_session::cluster(&self.store.members)
    }

    fn granted_ttl(&self) -> Duration {
        self.granted_ttl
    }

    /// So does the election of another etcd leader, from which all leases have their whole TTL again; see
    /// [`Shutdown`](tenure_core::Shutdown) for what that means after an unconfirmed close.
    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Answer
    }

    /// A keepalive, and the read that proves it: see [`keepalive`](crate::election::keepalive). Repeats both until they report the
    /// same raft term. The engine bounds the time, and counts the deadline from before the first keepalive.
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let mut pause = FIRST_RAFT_TERM_PAUSE;
        loop {
            let Renewal { ttl, raft_term } = self.renew().await?;
            let heartbeat = Heartbeat::new(ttl.min(self.granted_ttl));
            if is_disabled(SafetyRule::ConfirmHeartbeats) {
                return Ok(heartbeat);
            }
            let confirmed_in = self.confirm().await?;
            if confirmed_in == raft_term || is_disabled(SafetyRule::CompareEpochs) {
                return Ok(heartbeat);
            }
            debug!(session = self.id(), from = raft_term, to = confirmed_in, "etcd's raft term changed");
            sleep(pause).await;
            pause = pause.saturating_mul(2);
        }
    }

    async fn keep_alive(&self) -> Result<(), BackendError> {
        self.renew().await.map(drop)
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let lease = self.lease;
        let key: Arc<str> = self.store.keys.entry(&request.election, lease).into();
        let (call, settled) = Call::begin(Arc::clone(&self.withdrawals), request.nonce);
        let new_entry = NewEntry::new(call, Arc::clone(&key), request.payload());
        let entered = self.entry_creator.submit(new_entry).await;
        if let Err(error) = &entered
            && error.is_permanent()
            && !matches!(timeout(SETTLE_TIMEOUT, settled).await, Ok(Ok(())))
        {
            // Another attempt than the rejected one may still take effect. Earlier calls of the request do not count: the
            // engine knows that they are unsettled, and withdraws the request.
            return Err(BackendError::new(BackendErrorKind::Unavailable, error.to_string()));
        }
        let EnterResult { own, first_create_revision } = entered?;
        let Some(own) = own else {
            return Err(BackendError::new(
                BackendErrorKind::EntryGone,
                "this request to enter has been withdrawn",
            ));
        };
        if own.lease != lease {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("the key {key} is in use by another client"),
            ));
        }
        // Compares the payload without the value, which may have been updated since. The rest contains the nonce.
        let is_other_request = |existing: Vec<u8>| {
            let payload = request.payload();
            !existing.starts_with(&payload[..payload.len() - request.value.len()])
        };
        if own.existing_payload.is_some_and(is_other_request) {
            self.probe_entries.remove(&key, own.create_revision);
            Box::pin(self.withdrawals.delete(&key, own.create_revision)).await?;
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("the entry of an earlier request existed at {key}, and was deleted"),
            ));
        }
        let version = u64::try_from(own.create_revision).map_err(|_| malformed("create revision"))?;
        self.probe_entries.add(Arc::clone(&key), own.create_revision, request.nonce);
        let is_first_in_queue = first_create_revision == Some(own.create_revision);
        let entry = Entry { election: request.election.clone(), key, version };
        Ok(match fencing_token(own.create_revision).filter(|_| is_first_in_queue) {
            Some(token) => Entered::Leads(Won::new(entry, token)),
            None => Entered::Queued { entry: Some(entry) },
        })
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        let Some(entry) = entry else {
            return Err(BackendError::new(BackendErrorKind::EntryGone, "there is no entry to wait for"));
        };
        let missing = Arc::new(Notify::new());
        let notify = Arc::clone(&missing);
        // If the entry is missing already, the wait reads that.
        self.probe_entries.when_missing(&entry.key, create_revision(entry), move || notify.notify_one());
        let outcome = tokio::select! {
            biased;
            () = missing.notified() => Err(entry_gone(entry)),
            won = wait::wait_turn(&self.store, self.lease, entry, position) => won,
        };
        if outcome.as_ref().is_err_and(|error| error.kind() == BackendErrorKind::EntryGone) {
            self.probe_entries.remove(&entry.key, create_revision(entry));
        }
        outcome
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (store, lease) = (Arc::clone(&self.store), self.lease);
        let probe_entries = Arc::clone(&self.probe_entries);
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            let (store, probe_entries) = (Arc::clone(&store), Arc::clone(&probe_entries));
            async move { entry_watcher::wait(&store, lease, &probe_entries, &entry, for_resign_requests).await }
        }))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        let (key, lease) = (&*entry.key, self.lease);
        loop {
            let (found, _) = self.read("update", key, GetOptions::new()).await?;
            let Some(found) = found.filter(|kv| self.is_own(kv, entry)) else {
                let create_revision = create_revision(entry);
                self.probe_entries.mark_missing(&ProbeEntry { key: Arc::clone(&entry.key), create_revision });
                return Err(entry_gone(entry));
            };
            let payload = &replacement_payload(found.value(), request);
            let mod_revision = found.mod_revision();
            let is_stored = self
                .store
                .members
                .call("update", CallClass::Bulk, |client| async move {
                    let options = PutOptions::new().with_lease(lease);
                    let txn = Txn::new()
                        .when([
                            Compare::create_revision(key, CompareOp::Equal, create_revision(entry)),
                            Compare::mod_revision(key, CompareOp::Equal, mod_revision),
                        ])
                        .and_then([TxnOp::put(key, payload.as_slice(), Some(options))])
                        .or_else([TxnOp::get(key, None)]);
                    let mut response = kv(&client).txn(txn).await?;
                    // An earlier attempt may have written the payload.
                    let stored =
                        ranges(response.op_responses()).flatten().next().map(|kv| kv.value() == payload);
                    Ok((response.take_header(), response.succeeded() || stored == Some(true)))
                })
                .await?;
            if is_stored {
                return Ok(());
            }
        }
    }

    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        // Before the deletion: a heartbeat that does not find the entry should not take it for deleted by others.
        let key = self.store.keys.entry(&request.election, self.lease);
        self.probe_entries.remove_request(&key, request.nonce);
        self.withdrawals.leave(request, entry).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        earlier_session::revoke(&self.store.members, "close session", self.lease).await?;
        self.withdrawals.stop();
        Ok(())
    }
}

impl Drop for EtcdSession {
    fn drop(&mut self) {
        self.withdrawals.stop();
    }
}

impl fmt::Debug for EtcdSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSession").field("id", &self.id()).field("granted_ttl", &self.granted_ttl).finish()
    }
}
