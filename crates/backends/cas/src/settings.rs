//! The settings of the recipe.

use std::time::Duration;

use tenure_core::{Error, InvalidConfig, StoreUrl};

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

    /// Reads the URL settings that most adapters share. `poll_interval` is the adapter's default. Other settings are those of [`new`](Self::new).
    ///
    /// | setting | meaning | default | allowed |
    /// |---|---|---|---|
    /// | `attempt_timeout` | the time after which a request is given up | 2 s | 100 ms to 1 min |
    /// | `poll_interval` | how often a record is read while the store gives no hints of changes, on average | `poll_interval` | 10 ms to 1 min |
    ///
    /// # Errors
    /// When a time cannot be read or is not allowed.
    pub fn from_url(url: &StoreUrl, poll_interval: Duration) -> Result<Self, Error> {
        let attempt_timeout = url.duration("attempt_timeout")?.unwrap_or(Duration::from_secs(2));
        let poll_interval = url.duration("poll_interval")?.unwrap_or(poll_interval);
        for (setting, given, min_ms, allowed) in [
            ("attempt_timeout", attempt_timeout, 100, "from 100ms to 1m"),
            ("poll_interval", poll_interval, 10, "from 10ms to 1m"),
        ] {
            if given != clamped(given, Duration::from_millis(min_ms), Duration::from_secs(60)) {
                return Err(InvalidConfig::Time { setting, given, allowed }.into());
            }
        }
        Ok(Self::new().with_request_timeout(attempt_timeout).with_poll_interval(poll_interval))
    }

    /// The time after which a request is given up.
    pub const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// How often a record is read while the store gives no hints of changes, on average.
    pub const fn poll_interval(&self) -> Duration {
        self.poll_interval
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

    /// The same for an adapter's setter `attempt_timeout`: at least 100 ms and at most a minute, as the setting in a URL. The nearest is used.
    #[must_use]
    pub const fn with_attempt_timeout(self, timeout: Duration) -> Self {
        self.with_request_timeout(clamped(timeout, Duration::from_millis(100), Duration::from_secs(60)))
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
        for (given, expected) in [(0, 100), (500, 500), (120_000, 60_000)] {
            let settings = CasSettings::new().with_attempt_timeout(Duration::from_millis(given));
            assert_eq!(settings.request_timeout().as_millis(), expected);
        }
    }

    #[test]
    fn a_url_sets_the_times() {
        let from = |url: &str| {
            let settings = CasSettings::from_url(&url.parse().unwrap(), Duration::from_secs(3));
            settings.map(|it| (it.request_timeout().as_millis(), it.poll_interval().as_millis()))
        };
        assert_eq!(from("x:").unwrap(), (2_000, 3_000));
        assert_eq!(from("x:?attempt_timeout=300ms&poll_interval=20ms").unwrap(), (300, 20));
        for (url, reason) in [
            ("x:?attempt_timeout=1ms", "attempt_timeout 1ms is not allowed: it must be from 100ms to 1m"),
            ("x:?poll_interval=2m", "poll_interval 2m is not allowed: it must be from 10ms to 1m"),
            ("x:?poll_interval=soon", "poll_interval=soon is not a time"),
        ] {
            let error = from(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
