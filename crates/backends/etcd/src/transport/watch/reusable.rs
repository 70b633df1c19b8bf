//! A subscription that is reused from one read to the next.

use std::time::Duration;

use tokio::time::sleep;

use crate::transport::watch::{
    target::{START_NOW, WatchTarget},
    watcher::{Subscription, Watcher},
};

/// The least time after which the second candidate in the queue reads again without a signal.
const MIN_REREAD_INTERVAL_SECOND: Duration = Duration::from_secs(5);
/// The same for all other waiters.
const MIN_REREAD_INTERVAL: Duration = Duration::from_secs(30);

/// The average delay of a read that may be delayed, so that more urgent reads are served first.
const DISTANT_READ_DELAY: Duration = Duration::from_millis(20);

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WakeReason {
    /// [`EventMeaning::BecameLeader`](crate::transport::watch::target::EventMeaning::BecameLeader).
    BecameLeader,
    /// Anything else: read again.
    ReadAgain,
}

/// A subscription that is kept from one read to the next, as long as it is open and has the same targets.
#[derive(Debug, Default)]
pub(crate) struct ReusableSubscription {
    subscription: Option<(Vec<WatchTarget>, Subscription)>,
    start_now: bool,
    /// Whether the watch was established when the last wait ended. If so, the read since then saw a state after that.
    was_established: bool,
}

impl ReusableSubscription {
    /// Waits until the caller should read again. Its last read was at revision `read_at`, and its result depends on
    /// `targets`.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn wait(
        &mut self,
        watcher: &Watcher,
        targets: impl Into<Vec<WatchTarget>>,
        read_at: i64,
    ) -> WakeReason {
        let targets = targets.into();
        if let Some((watched, subscription)) = &self.subscription
            && (subscription.signal().is_closed() || *watched != targets)
        {
            self.start_now = subscription.signal().started_late();
            self.subscription = None;
            self.was_established = false;
        }
        // The second candidate in the queue should not wait long for an event that was lost.
        let is_second = targets.iter().any(|target| matches!(target, WatchTarget::Succession(_)));
        let min_interval = if is_second { MIN_REREAD_INTERVAL_SECOND } else { MIN_REREAD_INTERVAL };
        let interval = watcher.reread_interval(min_interval);
        let (_, subscription) = self.subscription.get_or_insert_with(|| {
            let start_revision = if self.start_now { START_NOW } else { read_at.saturating_add(1) };
            let subscription = watcher.watch(targets.iter().cloned(), start_revision);
            (targets, subscription)
        });
        let signal = subscription.signal();
        if self.was_established {
            signal.record_read();
        }
        tokio::select! {
            () = signal.changed() => {}
            () = sleep(interval) => {}
        }
        self.was_established = signal.is_established();
        if signal.can_delay() {
            tokio::select! {
                () = signal.changed() => {}
                () = sleep(DISTANT_READ_DELAY.mul_f64(0.5 + fastrand::f64())) => {}
            }
        }
        if signal.is_leader() { WakeReason::BecameLeader } else { WakeReason::ReadAgain }
    }
}
