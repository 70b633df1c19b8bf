//! The guard: one candidate's term as leader.

use std::{fmt, future::Future, ops::Deref, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    BootInstant, CandidateId, ElectionName, Error, FencingToken, LossReason, Lost,
    candidate::check_value,
    config::check_grace_period,
    engine::{
        runtime::report::FLUSH_TIMEOUT,
        runtime::retry::{Retry, with_timeout},
        tasks::term::Term,
    },
    spi::{BackendErrorKind, EntryRequest},
    sync::timeout,
};

/// One candidate's term as leader: the guard.
///
/// # Guarantees
/// - [`is_leader`](LeadershipHandle::is_leader) and [`ensure`](LeadershipHandle::ensure) compare
///   the clock with the deadline on every call. They say no from `deadline − grace period` on,
///   before the store can give leadership to anybody else, and never yes again.
/// - Work under [`run`](LeadershipHandle::run) is told to stop at `deadline − grace period` and
///   dropped before the deadline. The entry is removed only after the work has stopped.
///
/// # Assumptions
/// The clock's rate differs from the store's by less than the configured drift, and nobody
/// deletes entries by hand. When they fail, the [fencing token](LeadershipHandle::fencing_token)
/// still protects a resource that checks it.
///
/// # Caveats
/// A side effect that was begun in time can take effect late. Send the token with it.
///
/// Dropping the guard resigns in the background: it never blocks, panics or spawns. To know that
/// the store has confirmed, call [`resign`](Self::resign).
#[derive(Debug)]
pub struct Leadership {
    handle: LeadershipHandle,
}

/// A view of a [`Leadership`] that can be cloned and given to other tasks, but cannot resign.
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

    /// A view of this leadership for another task.
    pub fn handle(&self) -> LeadershipHandle {
        self.handle.clone()
    }

    /// Has this leadership rest on another one, which it keeps: the leader of leaders rests on the leadership of its
    /// own group, say. [`Hierarchy`](crate::Hierarchy) does the whole of that.
    ///
    /// # Behavior
    /// - When `base` is over, so is this one, for the reason [`LossReason::ParentLost`]. Every check compares the clock with
    ///   both deadlines, and the [`deadline`](LeadershipHandle::deadline) is the earlier of the two.
    /// - The grace period is kept before both deadlines; before `base`'s, as much of it as its session's TTL allows.
    /// - When this one is over, `base` is resigned, after the work has stopped and the entry of this one has gone.
    pub fn with_parent(self, base: Self) -> Self {
        self.term.set_parent(base);
        self
    }

    /// Tells the work to stop, as [`resign`](Self::resign) does, without waiting for anything.
    pub fn begin_resign(&self) {
        self.term.lose(LossReason::Resigned);
    }

    /// Gives leadership back.
    ///
    /// # Behavior
    /// Tells the work to stop, waits for it, at most until the deadline, and then removes the
    /// entry; tries until the store confirms it or the session is dead.
    ///
    /// Waits for all of that for the [shutdown timeout](crate::Config::with_shutdown_timeout) at most, 5 s by default; the
    /// engine goes on with it.
    ///
    /// # Errors
    /// - [`Error::Lost`] when the leadership had been lost for another reason before; whatever
    ///   stood in the store is gone then too.
    /// - [`Error::NotConfirmed`] when the shutdown timeout is over: the work has not stopped, or the store has not confirmed.
    /// - [`Error::InsideWork`] when this is awaited by work of this leadership: it would wait for itself. The resignation has
    ///   begun, and is carried out once the work returns.
    /// - [`Error::TaskEnded`] when the engine was shut down under it, with the runtime it was given.
    ///
    /// # Cancellation safety
    /// Dropping the future does not stop the resignation.
    pub async fn resign(self) -> Result<(), Error> {
        let term = Arc::clone(&self.term);
        let inside = term.is_called_by_its_work();
        let departing = self.give_back();
        if inside {
            return Err(Error::InsideWork);
        }
        let shared = Arc::clone(&term.session.shared);
        let limit = shared.config.shutdown_timeout;
        let confirmed = match term.withdrawal() {
            // Also when the engine has ended by now.
            Some(confirmed) => Ok(confirmed),
            None => {
                shared.runtime.call(async move { timeout(limit, departing).await.map_err(|_| limit) }).await?
            }
        };
        // A program may end next.
        let reporter = shared.reporter.clone();
        let _ = shared.runtime.call(async move { timeout(FLUSH_TIMEOUT, reporter.flush()).await }).await;
        match (confirmed, term.reason()) {
            (Err(waited), _) => Err(Error::NotConfirmed { election: term.election().clone(), waited }),
            (Ok(false), _) => Err(Error::TaskEnded("nothing has confirmed that its entry is gone")),
            (Ok(true), Some(LossReason::Resigned) | None) => Ok(()),
            (Ok(true), Some(reason)) => Err(Lost::new(reason).into()),
        }
    }

    /// Resigns now; the future waits, without a bound, until nobody looks after the entry any more, and says whether it is gone.
    pub(crate) fn give_back(self) -> impl Future<Output = bool> + Send + 'static {
        let term = Arc::clone(&self.term);
        term.release(LossReason::Resigned);
        drop(self);
        term.wait_withdrawn()
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.term.release(LossReason::Dropped);
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

    /// What the guard and its handles share.
    pub(crate) fn term(&self) -> Arc<Term> {
        Arc::clone(&self.term)
    }

    /// Replaces the value that others read, for this term; at most 64 KiB.
    ///
    /// # Errors
    /// [`Error::ValueTooLarge`]; [`Error::Lost`] when the leadership is over; a refusal by the
    /// store. An outage is waited for.
    ///
    /// # Cancellation safety
    /// When the future is dropped, others may read the old value or the new. A request that went
    /// unanswered can still be carried out after a later one.
    pub async fn set_value(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        let value = value.into();
        check_value(&value)?;
        let handle = self.clone();
        self.term.session.shared.runtime.call(handle.update_value(value)).await?
    }

    async fn update_value(self, value: Vec<u8>) -> Result<(), Error> {
        let term = &self.term;
        let config = &term.session.shared.config;
        let request = EntryRequest {
            election: term.election().clone(),
            candidate: term.candidate().clone(),
            value: value.into(),
            nonce: term.request().nonce,
        };
        let mut retry = Retry::new(config.retry);
        loop {
            self.ensure()?;
            let update = term.session.spi.update(term.entry(), &request);
            let answer = tokio::select! {
                biased;
                reason = self.lost() => return Err(Lost::new(reason).into()),
                answer = with_timeout("updating the value", config.request_timeout, update) => answer,
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if error.is_permanent() => return Err(error.into()),
                Err(error) if error.kind() == BackendErrorKind::EntryGone => {
                    term.lose(LossReason::EntryGone);
                }
                Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                    term.session.end(LossReason::SessionExpired);
                }
                Err(error) => {
                    term.session.shared.status.failed(&error);
                    retry.pause().await;
                }
            }
        }
    }

    /// Whether it rests on another leadership.
    pub(crate) fn rests(&self) -> bool {
        self.term.parent().is_some()
    }

    /// Which election this leads.
    pub fn election(&self) -> &ElectionName {
        self.term.election()
    }

    /// Who leads.
    pub fn candidate(&self) -> &CandidateId {
        self.term.candidate()
    }

    /// The token of this term, to be sent with every side effect.
    pub fn fencing_token(&self) -> FencingToken {
        self.term.token
    }

    /// The entry's name in the store: an etcd key, a znode's path. A transaction of the store's own
    /// that checks it is fenced: on etcd, that its create revision is the fencing token; on
    /// ZooKeeper, that it exists.
    pub fn entry(&self) -> &str {
        &self.term.entry().key
    }

    /// A duplicate of the open file by whose lock the kernel keeps this leadership; `None` on stores whose sessions
    /// have deadlines.
    ///
    /// For programs that let another process work for them: given the duplicate, it keeps the leadership until it has
    /// ended too, should this process be killed before it. A resignation gives up the lock, however many
    /// duplicates there are.
    ///
    /// # Errors
    /// When the entry is not there any more, or the file cannot be duplicated.
    pub fn lock_file(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(self.term.session.spi.lock_file(self.term.entry())?)
    }

    /// Whether leadership may be assumed now. Compares the clock on every call; asks no store.
    pub fn is_leader(&self) -> bool {
        self.term.check().is_ok()
    }

    /// The same as an error, for use with `?` before each side effect.
    ///
    /// # Errors
    /// [`Lost`], with the reason, when leadership is over.
    pub fn ensure(&self) -> Result<(), Lost> {
        self.term.check()
    }

    /// The latest instant at which leadership may be assumed, as things stand; it moves forward
    /// with every confirmed heartbeat. [`BootInstant::NEVER`] where the kernel keeps the session.
    pub fn deadline(&self) -> BootInstant {
        self.term.deadline().min(self.term.stop_by())
    }

    /// The time before the [`deadline`](Self::deadline) that is kept for work to stop: leadership is over that much before it.
    pub fn grace_period(&self) -> Duration {
        self.term.grace_period()
    }

    /// The time left until [`deadline`](Self::deadline); zero when it has passed.
    pub fn remaining(&self) -> Duration {
        let deadline = self.deadline();
        if deadline == BootInstant::NEVER {
            return Duration::MAX;
        }
        deadline.since(self.term.session.shared.clock.now())
    }

    /// A token that is cancelled when the work has to stop. Cancelling it has no effect on the leadership.
    ///
    /// It is cancelled on time by a thread of its own, even when every worker of the runtime is blocked.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.term.cancellation_token()
    }

    /// Waits until leadership is over, and says why.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> LossReason {
        self.term.session.shared.runtime.relayed(self.term.wait_ended()).await;
        self.term.reason().unwrap_or(LossReason::Deadline)
    }

    /// Why leadership is over, if it is.
    pub fn loss(&self) -> Option<LossReason> {
        self.term.check().err().map(|lost| lost.reason)
    }

    /// Runs `work` under this leadership.
    ///
    /// # Behavior
    /// - At `deadline − grace period` the work is told to stop through
    ///   [`cancellation_token`](Self::cancellation_token); just before the deadline it is dropped.
    /// - When the store itself says that leadership is over, it is dropped at once.
    /// - The loss is polled before the work: work that nobody polled for a while is not resumed past its deadline.
    /// - The entry stays in the store until the work has stopped.
    ///
    /// # Errors
    /// [`Lost`] when the work was dropped, or leadership was over before it began. Work that
    /// returns in time has its output returned, even when it was told to stop.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the work.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Lost> {
        self.term.run(work).await
    }

    /// Runs `work` as [`run`](Self::run) does, with at least `budget` to stop in.
    ///
    /// A larger budget holds for the whole leadership from now on: it is over that much before the deadline.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the budget is zero, or more than the session's TTL allows (a third of it, or less);
    /// otherwise as [`run`](Self::run).
    ///
    /// # Cancellation safety
    /// Dropping the future drops the work.
    pub async fn run_with_grace_period<F: Future>(
        &self,
        budget: Duration,
        work: F,
    ) -> Result<F::Output, Error> {
        let (most, ttl) = self.term.largest_grace_period();
        check_grace_period(budget, ttl, most)?;
        self.term.raise_grace_period(budget);
        Ok(self.term.run(work).await?)
    }
}
