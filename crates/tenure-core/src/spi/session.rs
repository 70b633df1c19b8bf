//! The trait of a session with a store.

use std::{
    any::Any,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    BackendError, BackendErrorKind, Entered, Entry, EntryEvent, EntryRequest, Heartbeat, HeartbeatProof,
    QueuePosition, Won,
};

/// A session with the store. Entries are created under it and expire with it.
#[async_trait]
pub trait BackendSession: Any + Send + Sync + fmt::Debug {
    /// The session's identifier as the store's own tools show it.
    fn id(&self) -> String;

    /// Identifies the store in which the session was opened, in a way that survives restarts of the store, for
    /// [`Backend::end_session`](super::Backend::end_session). Called at any time. Only stores that support ending sessions
    /// implement this.
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

    /// Extends the session by another TTL.
    ///
    /// The engine reads the clock before it calls this method, and computes the deadline from that reading even when the
    /// backend repeats the request. The response to an *earlier* call must never be returned.
    ///
    /// Called while a candidate of the session leads, may be next in line, or is about to enter, and while the session has no
    /// candidate. If the session serves [one election](super::SessionScope::Election): only once its entry leads, and not after
    /// [`leave`](Self::leave) was called; one may be in flight then.
    ///
    /// # Behavior
    /// - `Ok` means that the store gives no entry of this session to another candidate for the returned TTL, counted from
    ///   some instant after this call began; with [`LaterHeartbeats`](HeartbeatProof::LaterHeartbeats), once later heartbeats were
    ///   answered too. A TTL of zero ends the session. That includes entries which
    ///   [`enter`](Self::enter) or [`wait_turn`](Self::wait_turn) has created in the store but whose calls have not returned yet.
    /// - The engine has one deadline for all entries of a session, and sends heartbeats while those calls are pending.
    ///   A heartbeat that extends only the entries known to the backend can lead to two leaders.
    ///
    /// # Errors
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) when the store says that the session has ended.
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError>;

    /// Extends the session by another TTL, without a proof: the answer extends no deadline.
    ///
    /// Called instead of [`heartbeat`](Self::heartbeat) while all candidates of the session wait and none is
    /// [next in line](QueuePosition). By default a heartbeat; worth implementing where a proof costs requests. With
    /// [`LaterHeartbeats`](HeartbeatProof::LaterHeartbeats) it has to extend the session in the same way as a heartbeat does,
    /// because later heartbeats prove it.
    ///
    /// # Errors
    /// As for [`heartbeat`](Self::heartbeat).
    async fn keep_alive(&self) -> Result<(), BackendError> {
        self.heartbeat().await.map(drop)
    }

    /// Enters a candidate into an election.
    ///
    /// # Behavior
    /// - The entry expires with the session from the instant at which the store creates it. A
    ///   [`heartbeat`](Self::heartbeat) after creation extends the entry even if `enter` was not answered yet.
    /// - Is called again after a [`wait_turn`](Self::wait_turn) without an entry has failed, if the session serves
    ///   [one election](super::SessionScope::Election): its answer ends an outage.
    /// - Is idempotent: called again with the same request, it finds the entry that an earlier call created, and creates
    ///   no second one.
    /// - If a session can have only one entry in an election, the entry of an *earlier*, withdrawn request is
    ///   removed first and not reused.
    /// - The engine makes at most one call at a time per election. It calls [`leave`](Self::leave) after a call that was dropped
    ///   or whose outcome is unknown.
    ///
    /// # Errors
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) when the session has ended.
    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError>;

    /// Waits until the candidate leads. `request` is that of [`enter`](Self::enter), and `entry` is the entry that it returned, if
    /// any, or that of an earlier [`Won`], which is checked once more. Not bounded in time.
    ///
    /// # Behavior
    /// - Returns only after the store has shown that the entry existed and belonged to this session at the time its last
    ///   predecessor was removed, or later.
    /// - Wakes when its immediate predecessor is removed, and for at most one other candidate, not for every
    ///   removal.
    /// - Bounds each of its own requests in time.
    /// - Without `entry` it creates one, by a request of which a second copy creates no second entry. If the call is dropped
    ///   or fails, the engine calls [`leave`](Self::leave) without an entry. With `entry` it creates none.
    /// - May report to `position` whether the candidate is next in line.
    ///
    /// # Errors
    /// [`EntryGone`](super::BackendErrorKind::EntryGone), promptly, when `entry` is deleted.
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) when the session has ended.
    async fn wait_turn(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError>;

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
    ///
    /// If the session serves [one election](super::SessionScope::Election), `Ok` also means that no request sent earlier can create an
    /// entry any more: the engine closes such a session without a [`leave`](Self::leave) when it has ended early, and repeats
    /// no withdrawal after it.
    async fn close(&self) -> Result<(), BackendError>;
}

/// Watches the leading entries of one session; see [`BackendSession::entry_watcher`].
pub trait EntryWatcher: Send {
    /// Starts to watch `entry`. Its events are reported under `id`, which no watched entry has.
    fn add(&mut self, id: u64, entry: &Entry);

    /// Stops watching an entry. Does nothing when it is not watched.
    fn remove(&mut self, id: u64);

    /// Polls for the next event of a watched entry. Each of [`Deleted`](EntryEvent::Deleted) and
    /// [`ResignRequested`](EntryEvent::ResignRequested) is reported once per entry.
    ///
    /// # Behavior
    /// - What happened before [`add`](Self::add) is reported as well.
    /// - An event is the result of reading the entry, also after a lost connection: the entry does not exist or does not
    ///   belong to this session any more, or it has a resign request.
    /// - Repeats its requests as long as that can help, and bounds each of them in time.
    /// - When it returns [`Pending`](Poll::Pending), it has arranged for the task to be woken. The engine also polls after it has
    ///   added or removed an entry.
    ///
    /// # Errors
    /// After an error nothing is watched any more, and the engine ends the session.
    /// [`SessionGone`](super::BackendErrorKind::SessionGone) means that it has already ended.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<(u64, EntryEvent), BackendError>>;
}
