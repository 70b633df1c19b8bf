//! The shutdown after a termination signal.

use std::time::Duration;

use tokio::time::Instant;

use super::service_manager::ServiceManager;

/// When the shutdown began, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shutdown<'a> {
    /// When the first termination signal arrived.
    begun_at: Option<Instant>,
    timeout: Duration,
    service_manager: &'a ServiceManager,
}

impl<'a> Shutdown<'a> {
    /// A shutdown that has not begun.
    pub(super) fn new(timeout: Duration, service_manager: &'a ServiceManager) -> Self {
        Self { begun_at: None, timeout, service_manager }
    }

    /// Begins the shutdown, if it has not begun yet.
    pub(super) fn begin(&mut self) {
        self.begun_at.get_or_insert_with(Instant::now);
        self.service_manager.stopping(self.timeout);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun_at.is_some()
    }

    /// When the program is killed: after four fifths of the timeout, so that there is time left to release leadership
    /// in the store.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        Some(self.begun_at? + self.timeout * 4 / 5)
    }

    /// The time that is left: the whole timeout if the shutdown has not begun.
    pub(super) fn left(&self) -> Duration {
        self.begun_at.map_or(self.timeout, |begun_at| self.timeout.saturating_sub(begun_at.elapsed()))
    }

    /// Returns when the timeout has passed.
    pub(super) async fn timed_out(&self) {
        match self.begun_at {
            Some(begun_at) => tokio::time::sleep_until(begun_at + self.timeout).await,
            None => std::future::pending().await,
        }
    }
}
