//! The settings of the recipe.

use std::time::Duration;

/// The settings of a [`CasBackend`](crate::CasBackend).
#[derive(Clone, Debug)]
pub struct CasSettings {
    pub(crate) poll_interval: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) garbage_interval: Duration,
    pub(crate) allows_unknown_epochs: bool,
}

impl CasSettings {
    /// The default settings: records are polled every second where the store gives no hints, a request is given up after 5 s, and
    /// garbage is collected every ten minutes.
    pub const fn new() -> Self {
        Self {
            poll_interval: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            garbage_interval: Duration::from_secs(600),
            allows_unknown_epochs: false,
        }
    }

    /// Sets how often a waiting candidate, a leader and an observer read an election's record, on average. A handover takes about
    /// half of it. With hints from the store it is read ten times less often, and a handover takes as long as the hint.
    ///
    /// At least 10 ms and at most a minute: the nearest is used.
    #[must_use]
    pub const fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = clamped(interval, Duration::from_millis(10), Duration::from_secs(60));
        self
    }

    /// Sets the time after which a request is given up. It may be carried out later.
    #[must_use]
    pub const fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how often each elector looks for the records of dead sessions, on average.
    ///
    /// At least a second and at most a day: the nearest is used.
    #[must_use]
    pub const fn with_garbage_interval(mut self, interval: Duration) -> Self {
        self.garbage_interval = clamped(interval, Duration::from_secs(1), Duration::from_secs(86_400));
        self
    }

    /// Allows a store that can lose acknowledged writes at a failover and does not say when
    /// ([`EpochState::Unknown`](crate::EpochState::Unknown)). Refused by default.
    ///
    /// Neither of the promises holds across a failover then: two candidates may lead at the same time, with the same fencing token.
    #[must_use]
    pub const fn with_unknown_epochs(mut self, allowed: bool) -> Self {
        self.allows_unknown_epochs = allowed;
        self
    }
}

const fn clamped(given: Duration, min: Duration, max: Duration) -> Duration {
    match given.as_nanos() {
        nanos if nanos < min.as_nanos() => min,
        nanos if nanos > max.as_nanos() => max,
        _ => given,
    }
}

impl Default for CasSettings {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No setting makes a loop without a pause.
    #[test]
    fn intervals_are_bounded() {
        let with = |interval| {
            let settings = CasSettings::new().with_poll_interval(interval).with_garbage_interval(interval);
            (settings.poll_interval, settings.garbage_interval)
        };
        assert_eq!(with(Duration::ZERO), (Duration::from_millis(10), Duration::from_secs(1)));
        assert_eq!(with(Duration::from_secs(7)), (Duration::from_secs(7), Duration::from_secs(7)));
        assert_eq!(with(Duration::MAX), (Duration::from_secs(60), Duration::from_secs(86_400)));
    }
}
