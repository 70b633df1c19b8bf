//! How long a waiting candidate or observer waits before it checks the directory again.

use std::time::Duration;

use crate::watch::{Subscription, WakeReason};

/// The interval after a file was closed: the kernel reports the closing shortly before it releases the file's lock.
const FAST_INTERVAL: Duration = Duration::from_millis(1);
const FAST_RECHECKS: u32 = 20;
/// The interval where the kernel reports no changes.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The first interval without an event, in case an event was missed (because a parent directory was renamed, for
/// example). It doubles up to [`MAX_IDLE_INTERVAL`].
const MIN_IDLE_INTERVAL: Duration = Duration::from_millis(250);
const MAX_IDLE_INTERVAL: Duration = Duration::from_secs(8);

/// Times the checks of one waiter.
#[derive(Debug)]
pub(crate) struct RecheckTimer {
    fast_rechecks_left: u32,
    idle_interval: Duration,
}

impl RecheckTimer {
    pub(crate) fn new() -> Self {
        Self { fast_rechecks_left: 0, idle_interval: MIN_IDLE_INTERVAL }
    }

    /// Waits until the next check is due.
    pub(crate) async fn wait(&mut self, subscription: &Subscription) {
        let timeout = if self.fast_rechecks_left > 0 {
            FAST_INTERVAL
        } else if subscription.is_polling() {
            POLL_INTERVAL
        } else {
            self.idle_interval
        };
        let reason = subscription.wait(timeout).await;
        if reason != WakeReason::Timeout {
            self.idle_interval = MIN_IDLE_INTERVAL;
        }
        match reason {
            WakeReason::FileClosed => self.fast_rechecks_left = FAST_RECHECKS,
            WakeReason::Change => {}
            WakeReason::Timeout if self.fast_rechecks_left > 0 => self.fast_rechecks_left -= 1,
            // The interval grows, so that thousands of idle waiters cause no measurable load.
            WakeReason::Timeout => self.idle_interval = (self.idle_interval * 2).min(MAX_IDLE_INTERVAL),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, time::Instant};

    use super::*;
    use crate::{layout::entry_file, watch::Watcher};

    /// After a crash the event can come while the file is still locked, so that one check is not enough.
    #[tokio::test]
    async fn after_a_file_was_closed_the_waiter_checks_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::default();
        let mut subscription = Subscription::new(&watcher, dir.path().to_owned());
        subscription.ensure_watching();
        let mut recheck = RecheckTimer::new();
        let file = fs::File::create(dir.path().join(entry_file(1))).unwrap();
        recheck.wait(&subscription).await;
        drop(file);
        let began = Instant::now();
        let rechecks = async {
            for _ in 0..FAST_RECHECKS {
                recheck.wait(&subscription).await;
            }
        };
        let outcome = tokio::time::timeout(MIN_IDLE_INTERVAL * 2, rechecks).await;
        assert!(outcome.is_ok(), "{:?}", began.elapsed());
    }
}
