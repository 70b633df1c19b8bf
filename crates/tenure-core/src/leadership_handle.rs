//! The handle of a leadership: everything but the ownership of it.

use std::{any::Any, fmt, future::Future, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    BootInstant, CandidateId, ElectionName, Error, FencingToken, LeadershipState, LossReason, Lost, Shutdown,
    config::{check_grace_period, check_value},
    engine::tasks::term::Term,
    spi::{BackendErrorKind, BackendSession, SessionRecord},
};

/// A handle to a [`Leadership`](crate::Leadership) that can be cloned and passed to other tasks. It does not keep the leadership: only the guard does.
#[derive(Clone)]
pub struct LeadershipHandle {
    pub(crate) term: Arc<Term>,
}

impl fmt::Debug for LeadershipHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeadershipHandle")
            .field("election", self.term.election())
            .field("candidate", self.term.candidate_id())
            .field("token", &self.term.token)
            .field("over", &self.term.reason())
            .finish_non_exhaustive()
    }
}

impl LeadershipHandle {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        Self { term }
    }

    /// The term that the guard and its handles share.
    pub(crate) fn term(&self) -> Arc<Term> {
        Arc::clone(&self.term)
    }

    /// Replaces the value that others read, for this term. At most 64 KiB.
    ///
    /// # Errors
    /// [`Error::ValueTooLarge`]; [`Error::Lost`] when the leadership is over; an error when the store refuses the request.
    /// Retries during an outage.
    ///
    /// # Cancellation safety
    /// When the future is dropped, others may read the old or the new value. The store can carry out an unanswered request
    /// after a later one.
    pub async fn set_value(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        let value = value.into();
        check_value(&value)?;
        let handle = self.clone();
        self.term.session.shared.runtime.call(handle.update_value(value)).await?
    }

    async fn update_value(self, value: Vec<u8>) -> Result<(), Error> {
        let term = &self.term;
        self.ensure()?;
        let entry_value = term.registered_entry().value();
        let number = entry_value.set(value.into());
        term.candidate_entry().store_value();
        let stored = tokio::select! {
            biased;
            reason = self.lost() => return Err(Lost::new(reason).into()),
            stored = entry_value.wait_stored(number) => stored,
        };
        let Err(error) = stored else { return Ok(()) };
        match error.kind() {
            BackendErrorKind::EntryGone => term.end(LossReason::EntryGone),
            BackendErrorKind::SessionGone => term.session.end(LossReason::SessionExpired),
            _ => return Err(error.into()),
        }
        Ok(self.ensure()?)
    }

    /// Whether this leadership has a parent.
    pub(crate) fn has_parent(&self) -> bool {
        self.term.parent().is_some()
    }

    /// The election.
    pub fn election(&self) -> &ElectionName {
        self.term.election()
    }

    /// The candidate that leads.
    pub fn candidate_id(&self) -> &CandidateId {
        self.term.candidate_id()
    }

    /// The fencing token of this term. Send it with every write.
    pub fn fencing_token(&self) -> FencingToken {
        self.term.token
    }

    /// The entry's name in the store: an etcd key, or the path of a znode.
    ///
    /// A transaction of the same store is fenced if it checks the entry: on etcd, that its create revision is the
    /// fencing token; on ZooKeeper, that it exists.
    pub fn entry(&self) -> &str {
        &self.term.entry().key
    }

    /// Identifies the session of this leadership, for a supervisor that ends it with
    /// [`Elector::end_session`](crate::Elector::end_session) should this process be killed. `None` if the session ends with the
    /// process anyway, as on the local store, or if this store cannot end the session of another process.
    ///
    /// The record is valid for as long as the leadership lasts, and can be serialized. It contains no password, but whoever may
    /// write to the store can end the session with it. Sends a request to the store where its cluster has to be identified.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the store does not answer within the request timeout.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn session_record(&self) -> Result<Option<SessionRecord>, Error> {
        let term = self.term();
        let record = async move {
            let session = &term.session;
            session.shared.record(&*session.backend_session).await
        };
        Ok(self.term.session.shared.runtime.call(record).await??)
    }

    /// The store's own session, for the store's own crate: `None` when the session is of another type than `S`,
    /// also when another backend wraps it.
    ///
    /// A crate offers with it what only its store can do, such as `tenure_local::lock_file`. The type of a session is private to
    /// that crate, so that nobody else can call it.
    pub fn backend_session<S: BackendSession>(&self) -> Option<&S> {
        let session: &dyn Any = &*self.term.session.backend_session;
        session.downcast_ref()
    }

    /// Whether leadership may be assumed now. Compares the clock on every call; sends no request to the store.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.term.enforce().is_ok()
    }

    /// Checks [`is_leader`](Self::is_leader). Use it with `?` before each side effect.
    ///
    /// # Errors
    /// [`Lost`], with the reason, when leadership is over.
    pub fn ensure(&self) -> Result<(), Lost> {
        self.term.enforce()
    }

    /// The current deadline: the instant at which leadership is over, and by which all work has stopped. A confirmed heartbeat
    /// extends it. [`BootInstant::NEVER`] if the kernel keeps the session.
    ///
    /// Checks fail and work is cancelled one [grace period](Self::grace_period) before it. With a
    /// [parent](crate::Leadership::with_parent), it is the earlier deadline of the two. It comes earlier when the leadership ends for
    /// another reason.
    ///
    /// | Method | What |
    /// |---|---|
    /// | [`deadline`](Self::deadline) | the instant at which leadership is over |
    /// | [`remaining`](Self::remaining) | the time until then: for stopping, cleaning up, killing a process |
    /// | [`valid_for`](Self::valid_for) | the time until work must stop: for beginning something |
    #[must_use]
    pub fn deadline(&self) -> BootInstant {
        self.term.deadline().min(self.term.stop_by())
    }

    /// The time before the [`deadline`](Self::deadline) in which work must stop. Checks fail from its beginning.
    #[must_use]
    pub fn grace_period(&self) -> Duration {
        self.term.grace_period()
    }

    /// The time left until the [`deadline`](Self::deadline); zero when it has passed. [`Duration::MAX`] if the kernel keeps the
    /// session.
    ///
    /// Not zero while cancelled work still stops: [`valid_for`](Self::valid_for) is.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.time_until(self.deadline())
    }

    /// The time for which leadership may be assumed, unless a heartbeat extends it or it is lost for another reason: until work
    /// must stop. Zero when it may not be assumed. [`Duration::MAX`] if the kernel keeps the session.
    ///
    /// This is the time until the [`deadline`](Self::deadline), less the [grace period](Self::grace_period) in force there, or
    /// less with a [parent](crate::Leadership::with_parent) whose grace period begins earlier. A step that takes longer than this
    /// will not be complete when the work is cancelled.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        if self.term.enforce().is_err() {
            return Duration::ZERO;
        }
        self.time_until(self.term.cancel_at(Duration::ZERO))
    }

    fn time_until(&self, instant: BootInstant) -> Duration {
        if self.term.is_forked() {
            return Duration::ZERO;
        }
        if instant == BootInstant::NEVER {
            return Duration::MAX;
        }
        instant.since(self.term.session.shared.clock.now())
    }

    /// The state of this leadership, copied out: it does not change any more, and holding it blocks nothing. Compares the clock;
    /// sends no request to the store.
    #[must_use]
    pub fn state(&self) -> LeadershipState {
        let Err(lost) = self.term.enforce() else {
            return LeadershipState::Active { deadline: self.deadline(), valid_for: self.valid_for() };
        };
        if self.term.is_forked() {
            // Takes no lock: a thread of the parent may have held it.
            return LeadershipState::Released { reason: lost.reason, confirmed: false };
        }
        match self.term.withdrawal() {
            Some(_) => LeadershipState::Released {
                reason: lost.reason,
                confirmed: Shutdown::of_term(&self.term).confirmed,
            },
            None => LeadershipState::Stopping { reason: lost.reason, deadline: self.deadline() },
        }
    }

    /// Ends this leadership as [`Leadership::resign`](crate::Leadership::resign) does, without its guard and without waiting.
    ///
    /// # Behavior
    /// - Cancels the work. From now on checks fail, [`run`](Self::run) begins no work, and [`lost`](Self::lost) returns
    ///   [`LossReason::Resigned`].
    /// - The entry is removed once the work has stopped and the owner of the guard has resigned or dropped it, or at the
    ///   deadline. The owner's [`resign`](crate::Leadership::resign) then succeeds, and waits for that.
    /// - Can be called from anywhere, also by the work itself, and any number of times. Has no effect when the leadership is over
    ///   for another reason.
    pub fn request_resign(&self) {
        self.term.end(LossReason::Resigned);
    }

    /// A token that is cancelled when work must stop. Cancelling the token has no effect on the leadership.
    ///
    /// A dedicated thread cancels it on time, even when every worker of the runtime is blocked. It is a type of `tokio-util`,
    /// because many libraries take one in order to be stopped, it has child tokens, and it works under any executor.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.term.cancellation_token()
    }

    /// Waits until leadership is over, and returns the reason.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> LossReason {
        self.term.session.shared.runtime.relayed(self.term.wait_ended()).await;
        self.term.reason().unwrap_or(LossReason::Deadline)
    }

    /// The reason for which leadership is over, or `None` while it may be assumed.
    #[must_use]
    pub fn loss(&self) -> Option<LossReason> {
        self.term.enforce().err().map(|lost| lost.reason)
    }

    /// Runs `work` under this leadership.
    ///
    /// # Behavior
    /// - At `deadline − grace period` the work is cancelled through [`cancellation_token`](Self::cancellation_token). Just
    ///   before the deadline it is dropped.
    /// - When the store itself says that leadership is over, or the time of day has jumped, the work is dropped at once.
    /// - The loss is polled before the work, so that work that was not polled for a while does not resume after its
    ///   deadline.
    /// - The entry stays in the store until the work has stopped.
    ///
    /// # Errors
    /// [`Lost`] when the work was dropped, or when leadership was over before it began. The output of work that returns in time
    /// is returned, even when the work was cancelled.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the work.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Lost> {
        self.term.run(work).await
    }

    /// Runs `work` as [`run`](Self::run) does, with a grace period of at least `grace_period`.
    ///
    /// A grace period that is longer than the configured one applies to the whole leadership from now on: it is over that
    /// much before the deadline.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the grace period is zero, or longer than the TTL of the session allows (a third of it, or
    /// less); otherwise as [`run`](Self::run).
    ///
    /// # Cancellation safety
    /// Dropping the future drops the work.
    pub async fn run_with_grace_period<F: Future>(
        &self,
        grace_period: Duration,
        work: F,
    ) -> Result<F::Output, Error> {
        let (max, ttl) = self.term.largest_grace_period();
        check_grace_period(grace_period, ttl, max)?;
        self.term.raise_grace_period(grace_period);
        Ok(self.term.run(work).await?)
    }
}
