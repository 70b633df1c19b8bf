//! Which session timeouts are accepted, and how far apart heartbeats have to be.

use std::time::Duration;

use tenure_core::spi::{BackendError, BackendErrorKind};

/// The configured bounds of a session's timeout, and the servers' tick.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionBounds {
    pub(crate) min_ttl: Option<Duration>,
    pub(crate) max_ttl: Option<Duration>,
    pub(crate) tick: Option<Duration>,
}

impl SessionBounds {
    /// The time between a heartbeat's answer and the first heartbeat that counts for its proof.
    ///
    /// By then the leader has to have sent a ping, or be about to: it sends one every half tick. A full tick leaves room for a
    /// leader that is late with it. A quarter of the TTL is at least half a tick.
    pub(crate) fn heartbeat_gap(&self, granted: Duration) -> Duration {
        self.tick.map_or(granted / 4, |tick| tick.min(granted / 4))
    }

    /// The longest time for which the servers keep a session that is not touched: its timeout, and one and a half ticks.
    /// A tick is at most half of the timeout.
    pub(crate) fn expires_after(&self, granted: Duration) -> Duration {
        granted + self.tick.map_or(granted / 2, |tick| tick.min(granted / 2)) * 3 / 2
    }

    /// The bounds within which a granted timeout is accepted when `requested` was requested.
    pub(crate) fn accepted(&self, requested: Duration) -> (Duration, Duration) {
        (self.min_ttl.unwrap_or(requested / 2), self.max_ttl.unwrap_or(requested * 2))
    }

    /// Refuses a timeout out of bounds that `server` has granted.
    pub(crate) fn check(
        &self,
        requested: Duration,
        granted: Duration,
        server: &str,
    ) -> Result<(), BackendError> {
        let (min, max) = self.accepted(requested);
        if (min..=max).contains(&granted) {
            return Ok(());
        }
        let [requested, granted, min, max] = [requested, granted, min, max].map(humantime::format_duration);
        Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!(
                "ZooKeeper {server} grants a session of {granted} when {requested} is asked for, by its minSessionTimeout and \
                 maxSessionTimeout (2 and 20 ticks unless set); allowed are {min} to {max}: ask for a ttl that it grants, \
                 or set min_ttl and max_ttl"
            ),
        ))
    }
}
