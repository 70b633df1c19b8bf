//! The guard of a leadership, and its handle.

use std::{ops::Deref, pin::pin, time::Duration};

use tenure_core::{
    Error, LossReason, Shutdown,
    block_on::{block_on, block_on_timeout},
    spi::SessionRecord,
};

/// The guard of one candidate's term as leader; see [`tenure::Leadership`](tenure_core::Leadership).
///
/// Dropping it resigns in the background, without blocking.
#[derive(Debug)]
#[must_use = "dropping the guard resigns"]
pub struct Leadership {
    inner: tenure_core::Leadership,
    handle: LeadershipHandle,
}

/// A handle to a [`Leadership`] that can be cloned and passed to other threads.
///
/// It dereferences to the handle of the async interface, whose methods that do not wait are used as they are: `ensure`,
/// `is_leader`, `fencing_token`, `deadline` and others.
#[derive(Clone, Debug)]
pub struct LeadershipHandle(tenure_core::LeadershipHandle);

impl Leadership {
    pub(super) fn new(inner: tenure_core::Leadership) -> Self {
        let handle = LeadershipHandle::new(inner.handle());
        Self { inner, handle }
    }

    /// A handle to this leadership for another thread.
    pub fn handle(&self) -> LeadershipHandle {
        self.handle.clone()
    }

    /// Makes this leadership the child of `parent`, and takes ownership of `parent`: when `parent` is over, so is this leadership.
    /// See [`with_parent`](tenure_core::Leadership::with_parent).
    pub fn with_parent(self, parent: Self) -> Self {
        Self { inner: self.inner.with_parent(parent.inner), handle: self.handle }
    }

    /// Gives leadership back, and blocks until the entry is gone, at most for the shutdown timeout.
    ///
    /// # Errors
    /// See [`resign`](tenure_core::Leadership::resign); also [`Error::OnEngineThread`].
    pub fn resign(self) -> Result<(), Error> {
        block_on(self.inner.resign())?
    }

    /// Gives leadership back as [`resign`](Self::resign) does, blocks for at most `limit`, and returns what is left in the store
    /// by then.
    ///
    /// [`Duration::ZERO`] begins the resignation and returns at once. The engine continues in the background; see
    /// [`resign_within`](tenure_core::Leadership::resign_within).
    ///
    /// # Errors
    /// [`Error::OnEngineThread`]; the resignation has begun then. An unconfirmed [`Shutdown`] is no error.
    pub fn resign_within(self, limit: Duration) -> Result<Shutdown, Error> {
        block_on(self.inner.resign_within(limit))
    }
}

impl Deref for Leadership {
    type Target = LeadershipHandle;
    fn deref(&self) -> &Self::Target {
        &self.handle
    }
}

impl LeadershipHandle {
    pub(super) fn new(inner: tenure_core::LeadershipHandle) -> Self {
        Self(inner)
    }

    /// Calls `work` under this leadership, on the current thread.
    ///
    /// The entry stays in the store until `work` has returned, at most until the deadline. Work that still runs then has
    /// [overrun](super#work-that-blocks-cannot-be-dropped).
    ///
    /// # Errors
    /// [`Error::Lost`] when leadership was over before `work` began; [`Error::OnEngineThread`]. The output is returned even when
    /// leadership was lost meanwhile; [`ensure`](tenure_core::LeadershipHandle::ensure) tells.
    pub fn run<T>(&self, work: impl FnOnce(&Self) -> T) -> Result<T, Error> {
        // One poll that lasts as long as the work: the engine counts it, and sees when it lasts too long.
        Ok(block_on(self.0.run(async { work(self) }))??)
    }

    /// Calls `work` as [`run`](Self::run) does, with a grace period of at least `grace_period`.
    ///
    /// A grace period that is longer than the configured one applies to the whole leadership from now on: it is over that much
    /// before the deadline.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the grace period is zero, or longer than the TTL of the session allows (a third of it, or
    /// less); otherwise as [`run`](Self::run).
    pub fn run_with_grace_period<T>(
        &self,
        grace_period: Duration,
        work: impl FnOnce(&Self) -> T,
    ) -> Result<T, Error> {
        block_on(self.0.run_with_grace_period(grace_period, async { work(self) }))?
    }

    /// Blocks until leadership is over, and returns the reason.
    ///
    /// # Errors
    /// [`Error::OnEngineThread`].
    pub fn lost(&self) -> Result<LossReason, Error> {
        block_on(self.0.lost())
    }

    /// Blocks until leadership is over, at most for `timeout`. Returns the reason, or `None` while leadership lasts.
    ///
    /// # Errors
    /// [`Error::OnEngineThread`].
    pub fn lost_within(&self, timeout: Duration) -> Result<Option<LossReason>, Error> {
        block_on_timeout(pin!(self.0.lost()), timeout)
    }

    /// Replaces the value that others read, for this term. At most 64 KiB.
    ///
    /// # Errors
    /// See [`set_value`](tenure_core::LeadershipHandle::set_value); also [`Error::OnEngineThread`].
    pub fn set_value(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        block_on(self.0.set_value(value))?
    }

    /// Identifies the session of this leadership, for a supervisor that ends it should this process be killed.
    ///
    /// # Errors
    /// See [`session_record`](tenure_core::LeadershipHandle::session_record); also [`Error::OnEngineThread`].
    pub fn session_record(&self) -> Result<Option<SessionRecord>, Error> {
        block_on(self.0.session_record())?
    }
}

impl Deref for LeadershipHandle {
    type Target = tenure_core::LeadershipHandle;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
