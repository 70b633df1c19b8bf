//! How long a waiter waits before it looks again.

use std::time::Duration;

use crate::watch::{Subscription, Woken};

/// The kernel tells of a file's closing shortly before it lets go of its lock.
const BRISK: Duration = Duration::from_millis(1);
const BRISK_LOOKS: u32 = 20;
/// Where the kernel tells nothing.
const POLL: Duration = Duration::from_millis(10);
/// A look in case the kernel's word was missed (somebody renamed a parent directory, say).
const SAFETY: Duration = Duration::from_millis(250);
const SAFETY_MAX: Duration = Duration::from_secs(8);

/// The pace of one waiter's looks.
#[derive(Debug)]
pub(crate) struct Pace {
    brisk: u32,
    safety: Duration,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { brisk: 0, safety: SAFETY }
    }

    /// Waits until it is time to look again.
    pub(crate) async fn wait(&mut self, subscription: &Subscription) {
        let at_most = if self.brisk > 0 {
            BRISK
        } else if subscription.is_blind() {
            POLL
        } else {
            self.safety
        };
        let woken = subscription.woken(at_most).await;
        if woken != Woken::Not {
            self.safety = SAFETY;
        }
        match woken {
            Woken::Closing => self.brisk = BRISK_LOOKS,
            Woken::Change => {}
            Woken::Not if self.brisk > 0 => self.brisk -= 1,
            // Thousands of idle waiters shall cost nothing that can be felt.
            Woken::Not => self.safety = (self.safety * 2).min(SAFETY_MAX),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, time::Instant};

    use super::*;
    use crate::{layout::entry_file, watch::Watcher};

    /// The event of a crash may come while the lock is still held: one look is not enough.
    #[tokio::test]
    async fn after_a_closing_the_waiter_looks_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::default();
        let mut subscription = Subscription::new(&watcher, dir.path().to_owned());
        subscription.renew();
        let mut pace = Pace::new();
        let file = fs::File::create(dir.path().join(entry_file(1))).unwrap();
        pace.wait(&subscription).await;
        drop(file);
        let began = Instant::now();
        let looks = async {
            for _ in 0..BRISK_LOOKS {
                pace.wait(&subscription).await;
            }
        };
        let in_time = tokio::time::timeout(SAFETY * 2, looks).await;
        assert!(in_time.is_ok(), "{:?}", began.elapsed());
    }
}
