//! The guard of one candidate's term as leader.

use std::{future::Future, ops::Deref, sync::Arc, time::Duration};

use crate::{
    Error, LeadershipHandle, LossReason, Lost, Shutdown,
    engine::{runtime::report::FLUSH_TIMEOUT, tasks::term::Term},
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
/// A child made by `fork` without `exec` does not lead: every check fails there with [`LossReason::Forked`], and dropping its
/// copy of the guard has no effect. `exec` ends the engine's threads, and with them the heartbeats: resign before.
///
/// Dropping the guard resigns in the background. It never blocks, panics or spawns. To wait until the store has confirmed the
/// resignation, call [`resign`](Self::resign).
///
/// # A guard that is not kept
/// resigns at once. The compiler warns of it:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # #[allow(dead_code)]
/// # async fn campaigns(elector: &dyn tenure_core::Elector) -> Result<(), tenure_core::Error> {
/// elector.campaign("billing").await?; // leads for a moment
/// # Ok(()) }
/// ```
///
/// ```
/// #![deny(unused_must_use)]
/// # #[allow(dead_code)]
/// # async fn campaigns(elector: &dyn tenure_core::Elector) -> Result<(), tenure_core::Error> {
/// let leadership = elector.campaign("billing").await?; // leads until `leadership` is dropped
/// # drop(leadership);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a guard that is not kept resigns at once; bind it to a variable"]
pub struct Leadership {
    handle: LeadershipHandle,
}

impl Leadership {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        Self { handle: LeadershipHandle::new(term) }
    }

    /// A handle to this leadership for another task.
    #[must_use]
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
        if term.is_forked() {
            return Err(Lost::new(LossReason::Forked).into());
        }
        let waited = term.session.shared.config.shutdown_timeout;
        match (self.release_within(waited).await, term.reason()) {
            (Release::InsideWork, _) => Err(Error::InsideWork),
            (Release::Pending, _) => Err(Error::NotConfirmed { election: term.election().clone(), waited }),
            (Release::EngineEnded(what), _) => Err(Error::TaskEnded(what)),
            (Release::Gone, Some(LossReason::Resigned) | None) => Ok(()),
            (Release::Gone, Some(reason)) => Err(Lost::new(reason).into()),
        }
    }

    /// Gives leadership back as [`resign`](Self::resign) does, waits for at most `limit`, and returns what is left in the
    /// store by then.
    ///
    /// [`Duration::ZERO`] begins the resignation and returns at once.
    ///
    /// # Behavior
    /// - The engine continues in the background: it removes the entry once the work has stopped and the store answers, also
    ///   after this method has returned. See [`Shutdown::expires_in`] for what is true if the process ends before.
    /// - A leadership that had been lost before is confirmed when its entry is gone.
    /// - Returns at once, with an unconfirmed shutdown, when the work of this leadership awaits this method: it would wait for
    ///   itself. The resignation has begun, and completes once the work returns.
    ///
    /// # Cancellation safety
    /// Dropping the future does not stop the resignation.
    pub async fn resign_within(self, limit: Duration) -> Shutdown {
        let term = Arc::clone(&self.term);
        if term.is_forked() {
            return Shutdown::UNKNOWN;
        }
        let _ = self.release_within(limit).await;
        Shutdown::of_term(&term)
    }

    /// Resigns, and waits for at most `limit` until no task handles the entry any more.
    async fn release_within(self, limit: Duration) -> Release {
        let term = Arc::clone(&self.term);
        let inside = term.is_called_by_its_work();
        let withdrawn = self.release_and_wait();
        if inside {
            return Release::InsideWork;
        }
        let shared = Arc::clone(&term.session.shared);
        let gone = match term.withdrawal() {
            // This works even when the engine has ended.
            Some(gone) => Ok(gone),
            None => {
                let waiting = async move { timeout(limit, withdrawn).await.map_err(drop) };
                match shared.runtime.call(waiting).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        return Release::EngineEnded("its runtime was shut down, or a backend has panicked");
                    }
                }
            }
        };
        // The program may exit next: its log is complete before this returns.
        let reporter = shared.reporter.clone();
        let _ = shared.runtime.call(async move { timeout(FLUSH_TIMEOUT, reporter.flush()).await }).await;
        match gone {
            Ok(true) => Release::Gone,
            Ok(false) => Release::EngineEnded("nothing has confirmed that its entry is gone"),
            Err(()) => Release::Pending,
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

/// What has become of a resignation.
enum Release {
    /// The entry is gone, or its session has expired.
    Gone,
    /// The work has not stopped, or the store has not confirmed.
    Pending,
    /// It was awaited by the work that it waits for.
    InsideWork,
    /// The engine has ended before.
    EngineEnded(&'static str),
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

/// Compiles only if the future is awaited and its outcome used.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # #[allow(dead_code)]
/// # async fn resigns(leadership: tenure_core::Leadership) {
/// leadership.resign_within(std::time::Duration::from_secs(3)); // does nothing but drop the guard
/// # }
/// ```
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # #[allow(dead_code)]
/// # async fn resigns(leadership: tenure_core::Leadership) {
/// leadership.resign_within(std::time::Duration::from_secs(3)).await; // ignores what is left
/// # }
/// ```
///
/// ```
/// #![deny(unused_must_use)]
/// # #[allow(dead_code)]
/// # async fn resigns(leadership: tenure_core::Leadership) {
/// let shutdown = leadership.resign_within(std::time::Duration::from_secs(3)).await;
/// # let _ = shutdown.confirmed;
/// # }
/// ```
#[cfg(doctest)]
struct MustUse;
