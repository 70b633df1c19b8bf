//! A session is a lease; the entries made under it.
//!
//! # Requests that arrive late
//!
//! A request that was overtaken by another attempt, or whose future was dropped, may
//! lie in a frozen member's socket and be carried out when nobody expects it any
//! more. So no request here can do harm late:
//!
//! - a *put* of an entry is refused once its request was withdrawn
//!   ([`withdrawal`](crate::withdrawal));
//! - a *delete* names the create revision or the payload, which holds the nonce; an *update* the modification revision too;
//! - a *keepalive* prolongs a lease that is still wanted, or one that is revoked anyway;
//! - a *grant* makes a lease with an id of our choice, which expires by itself.

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
use tenure_core::{
    FencingToken,
    spi::{
        BackendError, BackendErrorKind, BackendSession, Confirmation, Entered, Entry, EntryEvent,
        EntryRequest, EntryWatcher, Heartbeat, HeartbeatProof, replacement_payload,
    },
};
use tracing::debug;

use crate::{
    Shared,
    election::entering::{Entering, Place, Step},
    election::entry_watcher::EtcdPartings,
    election::keepalive::{Keepalive, seconds_of},
    election::keys::{Keys, token},
    election::wait::{self, gone, is_ours, ranges, revision},
    election::withdrawal::Withdrawals,
    transport::batcher::{Refused, Together},
    transport::error::{lease_exists, malformed},
    transport::members::Call,
    transport::request::kv,
};

/// The most, in seconds, that etcd grants where less was asked for: its least TTL is one and a half election timeouts, of
/// which the longest is 50 s. Whoever answers more is believed this much, since to count on less is always safe.
const MOST_OF_THE_LEAST: i64 = 75;

/// A lease, and what was entered under it.
pub(crate) struct EtcdSession {
    shared: Arc<Shared>,
    lease: i64,
    granted: Duration,
    withdrawals: Withdrawals,
    keepalive: Keepalive,
    entering: Arc<Together<Entering>>,
}

impl EtcdSession {
    /// Grants a lease of `ttl`, in whole seconds rounded up.
    ///
    /// The id is ours and random, so that all attempts are for one lease and a lost
    /// answer is found again (hazard E12: a second grant says "already exists"). It is the
    /// system's random number: two processes with one lease would both lead. When the first
    /// attempt hears "already exists", the lease is somebody else's.
    pub(crate) async fn open(shared: Arc<Shared>, ttl: Duration) -> Result<Self, BackendError> {
        let seconds = i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX);
        let lease = (shared.members.random()? >> 1).cast_signed().max(1);
        shared.members.agree("open session").await?;
        let tries = &AtomicUsize::new(0);
        let granted = shared
            .members
            .call("open session", Call::Urgent, |client| async move {
                let nth = tries.fetch_add(1, Relaxed);
                let options = LeaseGrantOptions::new().with_id(lease);
                match client.lease_client().grant(seconds.max(1), Some(options)).await {
                    Ok(answer) => {
                        client.answered(answer.header());
                        Ok(answer.ttl())
                    }
                    Err(error) if lease_exists(&error) && nth > 0 => {
                        let answer = client.lease_client().time_to_live(lease, None).await?;
                        client.answered(answer.header());
                        Ok(answer.granted_ttl())
                    }
                    Err(error) => Err(error.into()),
                }
            })
            .await?
            .value;
        debug!(session = format!("{lease:x}"), granted, "etcd lease granted");
        let granted = seconds_of(granted.min(seconds.max(MOST_OF_THE_LEAST)))?;
        Ok(Self {
            entering: Together::new(Entering {
                members: Arc::clone(&shared.members),
                keys: shared.keys.clone(),
                lease,
            }),
            withdrawals: Withdrawals::new(Arc::clone(&shared), lease, granted),
            shared,
            lease,
            granted,
            keepalive: Keepalive::of(lease),
        })
    }

    async fn keepalive(&self) -> Result<Heartbeat, BackendError> {
        let Heartbeat { ttl, epoch } = self.keepalive.ask(&self.shared.members).await?;
        Ok(Heartbeat { ttl: ttl.min(self.granted), epoch })
    }

    /// Reads one key, linearizably, and the term it was read in.
    async fn read(
        &self,
        what: &'static str,
        key: &str,
        options: GetOptions,
    ) -> Result<(Option<KeyValue>, u64), BackendError> {
        let options = &options;
        let won = self
            .shared
            .members
            .call(what, Call::Urgent, |client| async move {
                let mut answer = kv(&client).get(key, Some(options.clone())).await?;
                let term = answer.header().ok_or_else(|| malformed("header"))?.raft_term();
                Ok((answer.take_kvs().pop(), term))
            })
            .await?;
        Ok(won.value)
    }

    /// Waits until `wanted` becomes of one entry.
    async fn until(
        &self,
        entry: &Entry,
        wanted: impl Fn(EntryEvent) -> bool,
    ) -> Result<EntryEvent, BackendError> {
        let mut entry_watcher = EtcdPartings::new(Arc::clone(&self.shared), self.lease);
        entry_watcher.add(0, entry);
        loop {
            let (_, parting) = entry_watcher.next().await?;
            if wanted(parting) {
                return Ok(parting);
            }
        }
    }
}

#[async_trait]
impl BackendSession for EtcdSession {
    fn id(&self) -> String {
        format!("{:x}", self.lease)
    }

    fn granted_ttl(&self) -> Duration {
        self.granted
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Read
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        match self.keepalive().await {
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                // A leader elected a moment ago may not have applied the grant yet and
                // says "not found" all the same; after a linearizable read it has.
                self.read("heartbeat", &self.shared.keys.probe(), GetOptions::new().with_keys_only()).await?;
                self.keepalive().await
            }
            outcome => outcome,
        }
    }

    async fn confirm(
        &self,
        heartbeat: &Heartbeat,
        probe_entry: Option<&Entry>,
    ) -> Result<Confirmation, BackendError> {
        let probe = self.shared.keys.probe();
        let key = probe_entry.map_or(probe.as_str(), |entry| &entry.key);
        let (found, term) = self.read("confirm", key, GetOptions::new().with_keys_only()).await?;
        if let Some(entry) = probe_entry
            && !found.is_some_and(|kv| is_ours(&kv, self.lease, entry))
        {
            return Ok(Confirmation::ProbeEntryGone);
        }
        if term == heartbeat.epoch {
            Ok(Confirmation::Confirmed)
        } else {
            debug!(session = self.id(), from = heartbeat.epoch, to = term, "etcd's raft term has changed");
            Ok(Confirmation::Unconfirmed)
        }
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let keys = &self.shared.keys;
        let lease = self.lease;
        let key: Arc<str> = keys.entry(&request.election, lease).into();
        let first_time = self.withdrawals.begins(request.nonce);
        let step = Step {
            key: Arc::clone(&key),
            election: Keys::election_within(&key),
            nonce: request.nonce,
            payload: request.payload(),
        };
        let outcome = match first_time {
            true => self.entering.ask(step).await,
            false => self.entering.ask_alone(&step).await,
        };
        let settled = match &outcome {
            Ok(won) => won.attempts == 1,
            Err(refused) => refused.settled,
        };
        if first_time && settled {
            self.withdrawals.settled(request.nonce);
        }
        let Place { own, head } = outcome.map_err(Refused::into_error)?.value;
        let Some(own) = own else {
            return Err(BackendError::new(
                BackendErrorKind::EntryGone,
                "this request to enter has been withdrawn",
            ));
        };
        if own.lease != lease {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("the key {key} has been taken by somebody else"),
            ));
        }
        // All of the payload but the value, which may have been updated since: it holds the nonce.
        let is_anothers = |found: Vec<u8>| {
            let payload = request.payload();
            !found.starts_with(&payload[..payload.len() - request.value.len()])
        };
        if own.other.is_some_and(is_anothers) {
            Box::pin(self.withdrawals.delete(&key, own.created)).await?;
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("the entry of an earlier request stood in the way at {key}, and has been removed"),
            ));
        }
        let version = u64::try_from(own.created).map_err(|_| malformed("create revision"))?;
        Ok(Entered {
            entry: Entry { election: request.election.clone(), key, version },
            leads: if head == Some(own.created) { token(own.created) } else { None },
        })
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        wait::wait_turn(&self.shared, self.lease, entry).await
    }

    async fn wait_deleted(&self, entry: &Entry) -> Result<(), BackendError> {
        self.until(entry, |parting| parting == EntryEvent::Deleted).await.map(drop)
    }

    async fn wait_entry_event(&self, entry: &Entry) -> Result<EntryEvent, BackendError> {
        self.until(entry, |_| true).await
    }

    fn entry_watcher(&self) -> Option<Box<dyn EntryWatcher>> {
        Some(Box::new(EtcdPartings::new(Arc::clone(&self.shared), self.lease)))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        let (key, lease) = (&*entry.key, self.lease);
        loop {
            let (found, _) = self.read("update", key, GetOptions::new()).await?;
            let Some(found) = found.filter(|kv| is_ours(kv, lease, entry)) else {
                return Err(gone(entry));
            };
            let payload = &replacement_payload(found.value(), request);
            let seen = found.mod_revision();
            let won = self
                .shared
                .members
                .call("update", Call::Bulk, |client| async move {
                    let txn = Txn::new()
                        .when([
                            Compare::create_revision(key, CompareOp::Equal, revision(entry)),
                            Compare::mod_revision(key, CompareOp::Equal, seen),
                        ])
                        .and_then([TxnOp::put(
                            key,
                            payload.as_slice(),
                            Some(PutOptions::new().with_lease(lease)),
                        )])
                        .or_else([TxnOp::get(key, None)]);
                    let answer = kv(&client).txn(txn).await?;
                    let value =
                        ranges(answer.op_responses()).flatten().next().map(|kv| kv.value() == payload);
                    Ok(answer.succeeded() || value == Some(true))
                })
                .await?;
            if won.value {
                return Ok(());
            }
        }
    }

    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        self.withdrawals.leave(request, entry).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        let lease = self.lease;
        let outcome = self
            .shared
            .members
            .call("close session", Call::Urgent, |client| async move {
                client.answered(client.lease_client().revoke(lease).await?.header());
                Ok(())
            })
            .await;
        match outcome {
            Err(error) if error.kind() != BackendErrorKind::SessionGone => return Err(error),
            _ => {}
        }
        self.withdrawals.stop();
        Ok(())
    }
}

impl fmt::Debug for EtcdSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSession").field("id", &self.id()).field("granted", &self.granted).finish()
    }
}
