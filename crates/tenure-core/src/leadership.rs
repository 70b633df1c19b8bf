//! The guard of one candidate's term as leader, and its handle.

use std::{fmt, future::Future, ops::Deref, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    BootInstant, CandidateId, ElectionName, Error, FencingToken, LossReason, Lost,
    config::{check_grace_period, check_value},
    engine::{runtime::report::FLUSH_TIMEOUT, tasks::term::Term},
    spi::BackendErrorKind,
    sync::timeout,
};

/// The guard of one candidate's term as leader.
///
/// # Guarantees
/// - [`is_leader`](LeadershipHandle::is_leader) and [`ensure`](LeadershipHandle::ensure) compare the clock with the deadline
///   on every call. They deny leadership from `deadline − grace period` on, which is before the store can give leadership to
///   another candidate, and never affirm it again.
/// - Work under [`run`](LeadershipHandle::run) is cancelled at `deadline − grace period` and, unless it blocks its thread,
///   dropped before the deadline. The entry is removed only after the work has stopped.
///
/// # Assumptions
/// The rates of this machine's clock and of the store's differ by less than the configured drift bound, and nothing deletes
/// a live entry. If that does not hold, the [fencing token](LeadershipHandle::fencing_token) still protects a resource that
/// checks it.
///
/// # Caveats
/// A write that was sent before the deadline can arrive after it. Send the fencing token with every write.
///
/// Dropping the guard resigns in the background. It never blocks, panics or spawns. To wait until the store has confirmed the
/// resignation, call [`resign`](Self::resign).
#[derive(Debug)]
pub struct Leadership {
    handle: LeadershipHandle,
}

/// A handle to a [`Leadership`] that can be cloned and passed to other tasks, but cannot resign.
#[derive(Clone)]
pub struct LeadershipHandle {
    term: Arc<Term>,
}

impl fmt::Debug for LeadershipHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeadershipHandle")
            .field("election", self.term.election())
            .field("candidate", self.term.candidate())
            .field("token", &self.term.token)
            .field("over", &self.term.reason())
            .finish_non_exhaustive()
    }
}

impl Leadership {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        Self { handle: LeadershipHandle::new(term) }
    }

    /// A handle to this leadership for another task.
    pub fn handle(&self) -> LeadershipHandle {
        self.handle.clone()
    }

    /// Makes this leadership the child of `parent`, and takes ownership of `parent`.
    ///
    /// A leader of leaders, for example, is the child of its leadership in its own group.
    /// [`Hierarchy`](crate::Hierarchy) does all of that.
    ///
    /// # Behavior
    /// - When `parent` is over, so is this leadership, with the reason [`LossReason::ParentLost`]. Every check compares the clock
    ///   with both deadlines. The [`deadline`](LeadershipHandle::deadline) is the earlier of the two.
    /// - The grace period is kept before both deadlines. Before the deadline of `parent`, it is limited to what the TTL of its
    ///   session allows.
    /// - When this leadership is over, `parent` is resigned, after the work has stopped and the entry of this leadership
    ///   is gone.
    pub fn with_parent(self, parent: Self) -> Self {
        self.term.set_parent(parent);
        self
    }

    /// Cancels the work as [`resign`](Self::resign) does, without waiting.
    pub fn begin_resign(&self) {
        self.term.end(LossReason::Resigned);
    }

    /// Gives leadership back, and waits until the entry is gone.
    ///
    /// # Behavior
    /// - Cancels the work, waits for it until the deadline at most, and then removes the entry. Retries until the store
    ///   confirms that the entry is gone, or the session has expired.
    /// - Returns after the [shutdown timeout](crate::Config::with_shutdown_timeout) at the latest, 5 s by default. The engine
    ///   continues in the background.
    ///
    /// # Errors
    /// - [`Error::Lost`] when the leadership had been lost before, for another reason. Its entry is gone too.
    /// - [`Error::NotConfirmed`] when the work has not stopped, or the store has not confirmed, within the shutdown timeout.
    /// - [`Error::InsideWork`] when the work of this leadership awaits this method: it would wait for itself. The resignation
    ///   has begun, and completes once the work returns.
    /// - [`Error::TaskEnded`] when the engine was shut down together with the runtime it was given.
    ///
    /// # Cancellation safety
    /// Dropping the future does not stop the resignation.
    pub async fn resign(self) -> Result<(), Error> {
        let term = Arc::clone(&self.term);
        let inside = term.is_called_by_its_work();
        let withdrawn = self.release_and_wait();
        if inside {
            return Err(Error::InsideWork);
        }
        let shared = Arc::clone(&term.session.shared);
        let limit = shared.config.shutdown_timeout;
        let confirmed = match term.withdrawal() {
            // This works even when the engine has ended.
            Some(confirmed) => Ok(confirmed),
            None => {
                shared.runtime.call(async move { timeout(limit, withdrawn).await.map_err(|_| limit) }).await?
            }
        };
        // The program may exit next: its log is complete before this returns.
        let reporter = shared.reporter.clone();
        let _ = shared.runtime.call(async move { timeout(FLUSH_TIMEOUT, reporter.flush()).await }).await;
        match (confirmed, term.reason()) {
            (Err(waited), _) => Err(Error::NotConfirmed { election: term.election().clone(), waited }),
            (Ok(false), _) => Err(Error::TaskEnded("nothing has confirmed that its entry is gone")),
            (Ok(true), Some(LossReason::Resigned) | None) => Ok(()),
            (Ok(true), Some(reason)) => Err(Lost::new(reason).into()),
        }
    }

    /// Resigns. The future waits, without a bound in time, until no task handles the entry any more, and returns whether it is
    /// gone.
    pub(crate) fn release_and_wait(self) -> impl Future<Output = bool> + Send + 'static {
        let term = Arc::clone(&self.term);
        term.guard_dropped(LossReason::Resigned);
        drop(self);
        term.wait_withdrawn()
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.term.guard_dropped(LossReason::Dropped);
    }
}

impl Deref for Leadership {
    type Target = LeadershipHandle;
    fn deref(&self) -> &Self::Target {
        &self.handle
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
    pub fn candidate(&self) -> &CandidateId {
        self.term.candidate()
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

    /// A duplicate of the open file whose lock keeps this leadership. `None` for stores whose sessions have deadlines.
    ///
    /// Pass the duplicate to a child process that does the work: the kernel then keeps the leadership until the child has
    /// ended too, even when this process is killed first. A resignation releases the lock regardless of duplicates.
    ///
    /// # Errors
    /// When the entry no longer exists, or the file cannot be duplicated.
    pub fn lock_file(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(self.term.session.backend_session.lock_file(self.term.entry())?)
    }

    /// Whether leadership may be assumed now. Compares the clock on every call; sends no request to the store.
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

    /// The current deadline: the instant by which work has stopped. Checks fail and work is cancelled one
    /// [grace period](Self::grace_period) before it. A confirmed heartbeat extends it.
    /// [`BootInstant::NEVER`] if the kernel keeps the session.
    pub fn deadline(&self) -> BootInstant {
        self.term.deadline().min(self.term.stop_by())
    }

    /// The time before the [`deadline`](Self::deadline) in which work must stop. Checks fail from its beginning.
    pub fn grace_period(&self) -> Duration {
        self.term.grace_period()
    }

    /// The time left until the [`deadline`](Self::deadline); zero when it has passed.
    pub fn remaining(&self) -> Duration {
        let deadline = self.deadline();
        if deadline == BootInstant::NEVER {
            return Duration::MAX;
        }
        deadline.since(self.term.session.shared.clock.now())
    }

    /// A token that is cancelled when work must stop. Cancelling the token has no effect on the leadership.
    ///
    /// A dedicated thread cancels it on time, even when every worker of the runtime is blocked.
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
