//! What a client was granted, and until when: the arithmetic of the sidecar's promise.
//!
//! 1. The server reads its clock *before* it reads from the leadership how long it is valid. The grant ends that much after
//!    the reading, so at the latest when the leadership's work must stop.
//! 2. The client counts from before it sent its request, which is no later than when the server received it. The
//!    validity that is announced is the time from the receipt to the end of the grant, also after a wait for the election.
//! 3. The client's clock may be slower by the drift bound. The announced validity is that much less, rounded down to milliseconds.
//! 4. The end of the latest grant never moves back. Leadership is released after it, not before.
//! 5. A grant that has ended is not extended: its client has stopped.

use std::time::Duration;

use tenure::BootInstant;

/// What the client of one lease was granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grants {
    /// The longest grant.
    lease_time: Duration,
    drift: f64,
    /// The end of the latest grant, by the server's clock.
    until: Option<BootInstant>,
}

/// The latest grant has ended before the client asked for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lapsed;

impl Grants {
    /// Nothing was granted.
    pub(super) fn new(lease_time: Duration, drift: f64) -> Self {
        Self { lease_time, drift, until: None }
    }

    /// The end of the latest grant; `None` if there was none.
    pub(super) fn until(&self) -> Option<BootInstant> {
        self.until
    }

    /// Whether a grant was given and has ended at `now`.
    pub(super) fn has_lapsed(&self, now: BootInstant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// Grants `valid_for`, and at most the lease time, from `now` on. Returns the validity to announce for a request that was
    /// received at `received`. The client counts it from before it sent the request.
    ///
    /// `now` must have been read before `valid_for`.
    ///
    /// # Errors
    /// When the latest grant has ended.
    pub(super) fn extend(
        &mut self,
        received: BootInstant,
        now: BootInstant,
        valid_for: Duration,
    ) -> Result<Duration, Lapsed> {
        if self.has_lapsed(now) {
            return Err(Lapsed);
        }
        let until = now + valid_for.min(self.lease_time);
        self.until = Some(self.until.map_or(until, |latest| latest.max(until)));
        Ok(self.announced(received, until))
    }

    /// What is left of the latest grant, as it is announced. Extends nothing.
    pub(super) fn left(&self, received: BootInstant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| self.announced(received, until))
    }

    /// The time from `received` to `until` on a clock that is slower by the drift bound, in whole milliseconds.
    fn announced(&self, received: BootInstant, until: BootInstant) -> Duration {
        let time = until.since(received).mul_f64(1.0 - self.drift);
        Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE_TIME: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn less_is_announced_than_granted() {
        let mut grants = Grants::new(LEASE_TIME, 0.1);
        assert_eq!(grants.extend(at(1_000), at(1_000), millis(8_000)), Ok(millis(7_200)));
        assert_eq!(grants.until(), Some(at(9_000)));
        // Its own lease is shorter than the leadership.
        assert_eq!(grants.extend(at(2_000), at(2_000), millis(80_000)), Ok(millis(9_000)));
        assert_eq!(grants.until(), Some(at(12_000)));
    }

    /// The client counts from before its request, which was answered only when it was elected.
    #[test]
    fn a_long_wait_for_the_election_extends_nothing() {
        let mut grants = Grants::new(LEASE_TIME, 0.1);
        let announced = grants.extend(at(1_000), at(21_000), millis(8_000)).unwrap();
        assert_eq!((announced, grants.until()), (millis(25_200), Some(at(29_000))));
        let mut grants = Grants::new(LEASE_TIME, 0.1);
        let announced = grants.extend(at(0), at(30_000), millis(1_000)).unwrap();
        assert!(announced < millis(30_000), "it is over when the answer arrives");
    }

    #[test]
    fn the_end_never_moves_back() {
        let mut grants = Grants::new(LEASE_TIME, 0.0);
        grants.extend(at(0), at(0), millis(5_000)).unwrap();
        assert_eq!(grants.extend(at(1_000), at(1_000), millis(100)), Ok(millis(100)));
        assert_eq!(grants.until(), Some(at(5_000)));
        assert_eq!(grants.left(at(4_000)), millis(1_000));
    }

    #[test]
    fn a_grant_that_has_ended_is_not_extended() {
        let mut grants = Grants::new(LEASE_TIME, 0.0);
        assert!(!grants.has_lapsed(at(9)));
        grants.extend(at(0), at(0), millis(5)).unwrap();
        assert_eq!(grants.extend(at(5), at(5), millis(5_000)), Err(Lapsed));
        assert_eq!((grants.left(at(5)), grants.until()), (Duration::ZERO, Some(at(5))));
    }
}
