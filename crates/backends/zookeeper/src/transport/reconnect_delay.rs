//! The delays between attempts to reconnect.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use super::lock;

const MIN_DELAY: Duration = Duration::from_millis(50);
/// A connection that lasted for as long is replaced without a delay.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(1);

/// Delays that grow by a third each time, with jitter (hazard Z20).
///
/// They do not double, since a session expires meanwhile: the delay in which the servers answer again is about a third of the
/// outage before it, and 1 s at most. Ten attempts take some 2.5 s. After that there is about one attempt a second.
#[derive(Debug)]
pub(crate) struct ReconnectDelay(Mutex<Duration>);

impl Default for ReconnectDelay {
    fn default() -> Self {
        Self(Mutex::new(MIN_DELAY))
    }
}

impl ReconnectDelay {
    /// The delay before the next attempt.
    pub(crate) fn current(&self) -> Duration {
        self.lock().mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// The delay before the next attempt, which makes the one after that longer.
    pub(crate) fn next(&self) -> Duration {
        let next = self.current();
        let mut delay = self.lock();
        *delay = (*delay * 4 / 3).min(MAX_DELAY);
        next
    }

    /// Starts again with the first delay, after a connection that lasted for [`MAX_DELAY`] or over which a request succeeded.
    pub(crate) fn reset(&self) {
        *self.lock() = MIN_DELAY;
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazard Z20: at most about one attempt a second after the first ten, over 25 s; several in the first half second.
    #[test]
    fn attempts_become_rare() {
        for _ in 0..50 {
            let delay = ReconnectDelay::default();
            let attempts_within = |seconds: f64| {
                delay.reset();
                let mut elapsed = Duration::ZERO;
                (0..)
                    .take_while(|_| {
                        elapsed += delay.next();
                        elapsed.as_secs_f64() < seconds
                    })
                    .count()
            };
            let (soon, all) = (attempts_within(0.5), attempts_within(25.0));
            assert!((4..=7).contains(&soon), "{soon} in half a second");
            assert!((25..=38).contains(&all), "{all} in 25 s");
        }
    }
}
