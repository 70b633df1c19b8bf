//! A session with a store: the trait that holds a candidate's entries.

use std::{any::Any, fmt, time::Duration};

use async_trait::async_trait;

use super::{
    BackendError, BackendErrorKind, Confirmation, Entered, Entry, EntryEvent, EntryRequest, Heartbeat,
    HeartbeatProof,
};
use crate::FencingToken;

/// A session with the store. Entries are created under it and expire with it.
#[async_trait]
pub trait BackendSession: Any + Send + Sync + fmt::Debug {
    /// The session's identifier as the store's own tools show it.
    fn id(&self) -> String;

    /// Identifies the store in which the session was opened, in a way that survives restarts of the store, for
    /// [`Backend::end_session`](super::Backend::end_session). Called before the session has an entry. Only stores that support
    /// ending sessions implement this.
    async fn cluster(&self) -> Result<String, BackendError> {
        Err(BackendError::new(BackendErrorKind::Invalid, "this store does not identify its cluster"))
    }

    /// The TTL that the store granted. Deadlines are computed from it.
    fn granted_ttl(&self) -> Duration;

    /// The longest time for which the store keeps the session after a request that extends it, by the store's clock: the TTL,
    /// and what the store adds by rounding it or by checking from time to time. The TTL and a second by default.
    ///
    /// A [shutdown](crate::Shutdown) that was not confirmed reports it. No deadline depends on it.
    fn expires_after(&self) -> Duration {
        self.granted_ttl().saturating_add(Duration::from_secs(1))
    }

    /// Whether nothing but a [`heartbeat`](Self::heartbeat) extends the session. False when other requests extend it too, or when
    /// the client sends pings of its own, and by default: then an unconfirmed [shutdown](crate::Shutdown) reports a longer time.
    fn only_heartbeats_extend(&self) -> bool {
        false
    }

    /// What confirms an answered heartbeat.
    fn proof(&self) -> HeartbeatProof;

    /// Asks the store to keep the session alive for another TTL.
    ///
    /// The engine reads the clock before it calls this method, and computes the deadline from that reading even when the
    /// backend repeats the request on another connection. The response to an *earlier* call must never be returned.
    ///
    /// # Behavior
    /// - `Ok` means that the store gives no entry of this session to another candidate for the returned TTL, counted from
    ///   some instant after this call began. That includes entries which [`enter`](Self::enter) or
    ///   [`wait_turn`](Self::wait_turn) has created in the store but whose calls have not returned yet.
    /// - The engine has one deadline for all entries of a session, and sends heartbeats while those calls are pending.
    ///   A heartbeat that extends only the entries known to the backend can lead to two leaders.
    ///
    /// # Errors
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) when the store says that the session has ended.
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError>;

    /// Checks that `heartbeat` was answered by a store that still had its quorum. Called only for sessions whose
    /// proof is [`HeartbeatProof::Read`].
    ///
    /// `probe_entry` is an entry of this session, if it has one. The read has to find it.
    ///
    /// # Errors
    /// By default always, so that a session with that proof but without a read keeps no leadership.
    async fn confirm(
        &self,
        heartbeat: &Heartbeat,
        probe_entry: Option<&Entry>,
    ) -> Result<Confirmation, BackendError> {
        let _ = (heartbeat, probe_entry);
        Err(BackendError::new(BackendErrorKind::Invalid, "this session has no confirming read"))
    }

    /// Enters a candidate into an election.
    ///
    /// # Behavior
    /// - The entry expires with the session from the instant at which the store creates it. A
    ///   [`heartbeat`](Self::heartbeat) after creation extends the entry even if `enter` was not answered yet.
    /// - Is idempotent: called again with the same request, it finds the entry that an earlier call created, and creates
    ///   no second one.
    /// - If a session can have only one entry in an election, the entry of an *earlier*, withdrawn request is
    ///   removed first and not reused.
    /// - The engine makes at most one call at a time per election.
    ///
    /// # Errors
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) when the session has ended.
    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError>;

    /// Waits until `entry` leads, and returns its fencing token. Not bounded in time.
    ///
    /// # Behavior
    /// - Returns only after the store has shown that `entry` existed and belonged to this session at the time its last
    ///   predecessor departed, or later.
    /// - Wakes when its immediate predecessor departs, and for at most one other candidate, not for every
    ///   departure.
    /// - Bounds each of its own requests in time.
    /// - If `wait_turn` creates the entry, the entry must expire with the session, as for [`enter`](Self::enter).
    ///
    /// # Errors
    /// [`EntryGone`](super::BackendErrorKind::EntryGone), promptly, when `entry` is deleted.
    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError>;

    /// Starts to watch the entries that lead. Called at most once per session.
    ///
    /// It is the only source from which the engine learns that an entry was deleted while the session continues, and of
    /// resign requests. [`PerEntryWatcher`](super::PerEntryWatcher) suits a store that watches one entry at a time.
    fn entry_watcher(&self) -> Box<dyn EntryWatcher>;

    /// Replaces the value that others read. `request` is the request that created the entry, with the new value.
    ///
    /// # Behavior
    /// - Is called for entries that wait as well as for the one that leads. Neither the queue position nor the token changes, and
    ///   no waiting candidate takes the entry for deleted.
    /// - Never creates an entry: an update that is carried out after the entry was removed has no effect.
    /// - Keeps a resign request ([`replacement_payload`](super::replacement_payload)).
    /// - The engine makes at most one call at a time per entry, and calls [`leave`](Self::leave) with the request that created it,
    ///   without the new value.
    ///
    /// # Errors
    /// [`EntryGone`](super::BackendErrorKind::EntryGone) when `entry` no longer exists.
    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError>;

    /// Removes the entry that an earlier [`enter`](Self::enter) of `request` has created or may still create. `entry` is
    /// given if that call was answered.
    ///
    /// # Behavior
    /// - Returns `Ok` only when the store has confirmed that the entry is gone.
    /// - Succeeds when there is no such entry.
    /// - Never removes an entry of another request, even under the same key: without `entry`, it is recognized by its
    ///   payload. It may be called while a later request has an entry.
    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError>;

    /// Ends the session in the store, which deletes all of its entries.
    async fn close(&self) -> Result<(), BackendError>;
}

/// Watches the leading entries of one session; see [`BackendSession::entry_watcher`].
#[async_trait]
pub trait EntryWatcher: Send {
    /// Starts to watch `entry`. Its events are reported under `number`.
    fn add(&mut self, number: u64, entry: &Entry);

    /// Stops watching an entry. Does nothing when it is not watched.
    fn remove(&mut self, number: u64);

    /// The next event of a watched entry. Each of [`Deleted`](EntryEvent::Deleted) and
    /// [`ResignRequested`](EntryEvent::ResignRequested) is reported once per entry. Not bounded in time.
    ///
    /// # Behavior
    /// - What happened before [`add`](Self::add) is reported as well.
    /// - An event is the result of reading the entry, also after a lost connection: the entry does not exist or does not
    ///   belong to this session any more, or it has a resign request.
    /// - Repeats its requests as long as that can help, and bounds each of them in time.
    ///
    /// # Errors
    /// After an error nothing is watched any more, and the engine ends the session.
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) means that it has already ended.
    ///
    /// # Cancellation safety
    /// No event is lost when the future is dropped. The engine drops it whenever it adds or removes an entry.
    async fn next(&mut self) -> Result<(u64, EntryEvent), BackendError>;
}
