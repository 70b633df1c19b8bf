//! How long leadership may be assumed: the deadline, and everything that is compared with it.

use std::time::Duration;

use crate::{
    BootInstant, Clock, LossReason,
    failpoints::{SafetyRule, is_disabled},
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

/// When a request was handed to the store's client, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) at: BootInstant,
    /// Time of day minus clock.
    pub(crate) wall_offset: i64,
}

impl Sent {
    pub(crate) fn now(clock: &dyn Clock) -> Self {
        let at = clock.now();
        Self { at, wall_offset: wall_offset(clock, at) }
    }
}

/// The time in which a session's leaderships are valid.
///
/// One atomic for all leaderships of a session, so that a renewal costs the same for
/// one as for ten thousand.
#[derive(Debug)]
pub(crate) struct Window {
    deadline: AtomicU64,
    /// Time of day minus clock, when the heartbeat behind the deadline was sent.
    wall_offset: AtomicI64,
    budget: Duration,
    ttl: Duration,
    drift: f64,
}

impl Window {
    /// A window whose session was asked for at `sent` and granted `ttl`.
    pub(crate) fn opened(sent: Sent, ttl: Duration, drift: f64, budget: Duration) -> Self {
        let window = Self {
            deadline: AtomicU64::new(0),
            wall_offset: AtomicI64::new(sent.wall_offset),
            budget,
            ttl,
            drift,
        };
        window.deadline.store(window.until(sent.at, ttl).as_nanos(), Ordering::Release);
        window
    }

    /// A window that never closes: the kernel ends the session with the process.
    pub(crate) fn endless(clock: &dyn Clock, ttl: Duration, drift: f64, budget: Duration) -> Self {
        let window = Self::opened(Sent::now(clock), ttl, drift, budget);
        window.deadline.store(BootInstant::NEVER.as_nanos(), Ordering::Release);
        window
    }

    /// `sent + ttl · (1 − drift)`: the store counts the TTL from no earlier than `sent`, on
    /// a clock whose rate differs from ours by less than the drift bound.
    fn until(&self, sent: BootInstant, ttl: Duration) -> BootInstant {
        let drift = if is_disabled(SafetyRule::AllowForDrift) { 0.0 } else { self.drift };
        sent + ttl.mul_f64(1.0 - drift)
    }

    pub(crate) fn deadline(&self) -> BootInstant {
        BootInstant::from_nanos(self.deadline.load(Ordering::Acquire))
    }

    pub(crate) fn budget(&self) -> Duration {
        self.budget
    }

    /// The longest that work may go on once it has been told to stop, where no deadline is nearer.
    pub(crate) fn length(&self) -> Duration {
        self.ttl.mul_f64(1.0 - self.drift)
    }

    /// Whether leadership may be assumed now, and for another `budget`.
    pub(crate) fn check(&self, clock: &dyn Clock, budget: Duration) -> Result<(), LossReason> {
        let deadline = self.deadline();
        if deadline == BootInstant::NEVER {
            return Ok(());
        }
        let now = clock.now();
        if now + budget >= deadline {
            return Err(LossReason::Deadline);
        }
        // A paused virtual machine's clocks stand still together, and only the time of day is
        // put right afterwards: by then the store may have let go of us.
        let offset = self.wall_offset.load(Ordering::Relaxed);
        let jumped = |now| wall_offset(clock, now) - offset > self.wall_slack();
        // Looked at once more: this thread may have been stopped between the two readings.
        if jumped(now) && jumped(clock.now()) {
            return Err(LossReason::ClockJump);
        }
        Ok(())
    }

    /// Moves the deadline for a heartbeat sent at `sent`, now that it is confirmed. Never
    /// backwards, and not at all once the window has closed: work has been told to stop then.
    pub(crate) fn credit(&self, clock: &dyn Clock, sent: Sent, ttl: Duration) -> Result<(), LossReason> {
        loop {
            if !is_disabled(SafetyRule::NeverReopenWindow) {
                self.check(clock, self.budget)?;
            }
            let current = self.deadline.load(Ordering::Acquire);
            let moved = self.until(sent.at, ttl).as_nanos();
            if moved <= current {
                return Ok(());
            }
            if is_disabled(SafetyRule::CompareAndSwapDeadline) {
                self.deadline.store(moved, Ordering::Release);
                return Ok(());
            }
            if self.deadline.compare_exchange(current, moved, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                self.wall_offset.store(sent.wall_offset, Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    /// The store keeps the session for `ttl` from now on, and that may be less than it did: no
    /// deadline lies beyond it. True when the deadline came nearer.
    pub(crate) fn shorten(&self, sent: BootInstant, ttl: Duration) -> bool {
        let latest = self.until(sent, ttl).as_nanos();
        self.deadline.fetch_min(latest, Ordering::AcqRel) > latest
    }

    fn wall_slack(&self) -> i64 {
        let slack = self.ttl.mul_f64(self.drift / 2.0).max(Duration::from_millis(100));
        i64::try_from(slack.as_nanos()).unwrap_or(i64::MAX)
    }
}

/// The time of day minus the clock, which says `now`.
fn wall_offset(clock: &dyn Clock, now: BootInstant) -> i64 {
    let wall = i64::try_from(clock.wall().as_nanos()).unwrap_or(i64::MAX);
    wall.wrapping_sub_unsigned(now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimClock;

    const TTL: Duration = Duration::from_secs(10);
    const BUDGET: Duration = Duration::from_secs(1);

    fn window(clock: &SimClock) -> Window {
        Window::opened(Sent::now(clock), TTL, 0.1, BUDGET)
    }

    /// Hazards G2 and G22: the deadline is counted from before the request was sent, less the drift bound.
    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_counted_from_the_sending() {
        let clock = SimClock::new();
        let window = window(&clock);
        let sent = clock.now();
        tokio::time::advance(Duration::from_secs(3)).await;
        window.credit(&clock, Sent { at: sent + Duration::from_secs(1), ..Sent::now(&clock) }, TTL).unwrap();
        assert_eq!(window.deadline(), sent + Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_never_moves_back() {
        let clock = SimClock::new();
        let window = window(&clock);
        let before = window.deadline();
        window
            .credit(&clock, Sent { at: clock.now() - Duration::from_secs(5), ..Sent::now(&clock) }, TTL)
            .unwrap();
        assert_eq!(window.deadline(), before);
    }

    /// Hazards G1 and G25: once the grace period has begun, no late answer brings leadership back.
    #[tokio::test(start_paused = true)]
    async fn a_closed_window_stays_closed() {
        let clock = SimClock::new();
        let window = window(&clock);
        tokio::time::advance(Duration::from_millis(7_999)).await;
        assert_eq!(window.check(&clock, BUDGET), Ok(()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(window.check(&clock, BUDGET), Err(LossReason::Deadline));
        assert_eq!(window.credit(&clock, Sent::now(&clock), TTL), Err(LossReason::Deadline));
        assert_eq!(window.check(&clock, BUDGET), Err(LossReason::Deadline));
    }

    /// Hazard G3: time goes on while the machine is suspended.
    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_wakes_up_past_its_deadline() {
        let clock = SimClock::new();
        let window = window(&clock);
        clock.jump(Duration::from_secs(60));
        assert_eq!(window.check(&clock, BUDGET), Err(LossReason::Deadline));
    }

    /// Hazard G23: the time of day runs ahead of the clock after a virtual machine was paused.
    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_time_of_day_closes_the_window() {
        let clock = SimClock::new();
        let window = window(&clock);
        clock.jump_wall(Duration::from_millis(400));
        assert_eq!(window.check(&clock, BUDGET), Ok(()));
        clock.jump_wall(Duration::from_millis(400));
        assert_eq!(window.check(&clock, BUDGET), Err(LossReason::ClockJump));
        assert_eq!(window.credit(&clock, Sent::now(&clock), TTL), Err(LossReason::ClockJump));
    }

    /// Hazard G22: a clock that runs slow by less than the drift bound still closes the window before the store's TTL is over.
    #[tokio::test(start_paused = true)]
    async fn drift_within_the_bound_is_covered() {
        let clock = SimClock::with_rate(0.91);
        let window = window(&clock);
        tokio::time::advance(TTL).await;
        assert_eq!(window.check(&clock, Duration::ZERO), Err(LossReason::Deadline));
    }
}
