//! Until when leadership may be assumed: the deadline, and the checks against it.
//!
//! The deadline is the instant by which work has stopped. Checks fail and work is cancelled one grace period before it.
//!
//! # Changing this file
//!
//! - Only changes that make the deadline earlier keep promise S1 of `docs/assurance/safety.md`. A later deadline needs a
//!   new argument there.
//! - `ttl · (1 − drift)` is also computed in [`Window::length`] and in `interval` and `largest_grace_period` of
//!   [`heartbeat`](super::heartbeat). Change them together.
//! - Guarded by the unit tests below, `tests/engine/{heartbeats,loss}.rs`, hazards G2 and G22, and the [`SafetyRule`]s
//!   `DeadlineFromRequestStart`, `OpeningFromRequestStart`, `AllowForDrift` and `NeverReopenWindow` (`cargo xtask
//!   mutants`) and `CompareAndSwapDeadline` (`cargo xtask races`). The model checks the design, not this code.

use std::time::Duration;

use crate::{
    BootInstant, Clock, LossReason, OnClockJump,
    failpoints::{SafetyRule, is_disabled},
    spi::{Stamp, wall_offset},
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

/// The deadline of a window that is not open.
const NOT_OPEN: u64 = 0;

/// The period in which leadership may be assumed under a session. It closes one grace period before the deadline.
///
/// It is not open before the candidate of a session that serves one election has won, and while all candidates of a session wait and
/// none is next in line ([`suspend`](Self::suspend)). A window that is not open is opened by a proven heartbeat or by that win; one
/// that has closed is never opened again, and its session ends.
///
/// One atomic serves all terms of a session, so that a heartbeat costs the same for one term as for ten thousand.
#[derive(Debug)]
pub(crate) struct Window {
    deadline: AtomicU64,
    /// Time of day minus monotonic clock when the heartbeat was sent from which the deadline is counted.
    wall_offset: AtomicI64,
    grace_period: Duration,
    ttl: Duration,
    drift: f64,
    on_clock_jump: OnClockJump,
    /// The sum of the jumps of the time of day that were accepted and not yet reported, in nanoseconds.
    unreported_jump: AtomicI64,
}

impl Window {
    /// The window of a session that no heartbeat has extended yet.
    pub(crate) fn not_open(ttl: Duration, drift: f64, grace_period: Duration) -> Self {
        Self {
            deadline: AtomicU64::new(NOT_OPEN),
            wall_offset: AtomicI64::new(0),
            grace_period,
            ttl,
            drift,
            on_clock_jump: OnClockJump::default(),
            unreported_jump: AtomicI64::new(0),
        }
    }

    /// The window of a session that was requested at `sent` and granted `ttl`.
    pub(crate) fn opened(sent: Stamp, ttl: Duration, drift: f64, grace_period: Duration) -> Self {
        let window = Self::not_open(ttl, drift, grace_period);
        window.wall_offset.store(sent.wall_offset, Ordering::Relaxed);
        window.deadline.store(window.deadline_from(sent.at, ttl).as_nanos(), Ordering::Release);
        window
    }

    /// A window that never closes: the kernel ends the session with the process.
    pub(crate) fn endless(clock: &dyn Clock, ttl: Duration, drift: f64, grace_period: Duration) -> Self {
        let window = Self::opened(Stamp::now(clock), ttl, drift, grace_period);
        window.deadline.store(BootInstant::NEVER.as_nanos(), Ordering::Release);
        window
    }

    /// Sets what a jump of the time of day does.
    pub(crate) fn on_clock_jump(mut self, policy: OnClockJump) -> Self {
        self.on_clock_jump = policy;
        self
    }

    /// `sent + ttl · (1 − drift)`: the store counts the TTL from no earlier than `sent`, with
    /// a clock whose rate differs from ours by less than the drift bound.
    fn deadline_from(&self, sent: BootInstant, ttl: Duration) -> BootInstant {
        let drift = if is_disabled(SafetyRule::AllowForDrift) { 0.0 } else { self.drift };
        sent + ttl.mul_f64(1.0 - drift)
    }

    pub(crate) fn deadline(&self) -> BootInstant {
        BootInstant::from_nanos(self.deadline.load(Ordering::Acquire))
    }

    /// Whether the window was opened, and not suspended since. It may have closed.
    pub(crate) fn is_open(&self) -> bool {
        self.deadline.load(Ordering::Acquire) != NOT_OPEN
    }

    /// Suspends an open window, under which nobody leads.
    ///
    /// # Errors
    /// Why the window has closed.
    pub(crate) fn suspend(&self, clock: &dyn Clock) -> Result<(), LossReason> {
        if self.is_open() {
            self.check(clock, self.grace_period)?;
            self.deadline.store(NOT_OPEN, Ordering::Release);
        }
        Ok(())
    }

    pub(crate) fn grace_period(&self) -> Duration {
        self.grace_period
    }

    /// The time from sending a heartbeat to the deadline that it gives: the longest that cancelled work may go on when
    /// no deadline is nearer.
    pub(crate) fn length(&self) -> Duration {
        self.ttl.mul_f64(1.0 - self.drift)
    }

    /// Whether leadership may be assumed now and for another `grace_period`.
    pub(crate) fn check(&self, clock: &dyn Clock, grace_period: Duration) -> Result<(), LossReason> {
        self.check_open(clock, grace_period).unwrap_or(Err(LossReason::Deadline))
    }

    /// The same; `None` when the window is not open.
    pub(crate) fn check_open(
        &self,
        clock: &dyn Clock,
        grace_period: Duration,
    ) -> Option<Result<(), LossReason>> {
        // Read once: it may be suspended meanwhile.
        let deadline = self.deadline();
        (deadline.as_nanos() != NOT_OPEN).then(|| self.check_deadline(clock, deadline, grace_period))
    }

    fn check_deadline(
        &self,
        clock: &dyn Clock,
        deadline: BootInstant,
        grace_period: Duration,
    ) -> Result<(), LossReason> {
        if deadline == BootInstant::NEVER {
            return Ok(());
        }
        let now = clock.now();
        if now + grace_period >= deadline {
            return Err(LossReason::Deadline);
        }
        // All clocks of a paused virtual machine stand still, and only its time of day is corrected afterwards:
        // by then the session may have expired in the store.
        let offset = self.wall_offset.load(Ordering::Relaxed);
        let jumped = |now| wall_offset(clock, now) - offset > self.max_wall_jump();
        // Read twice: this thread may have been stopped between reading the two clocks.
        if jumped(now) && jumped(clock.now()) {
            match self.on_clock_jump {
                OnClockJump::Lose | OnClockJump::StopByDeadline => return Err(LossReason::ClockJump),
                OnClockJump::Log => self.accept_clock_jump(clock, offset),
            }
        }
        Ok(())
    }

    /// Whether work must stop at once after an end for `reason`, because another candidate may lead already.
    pub(crate) fn must_stop_at_once(&self, reason: LossReason) -> bool {
        let has_until_deadline =
            reason == LossReason::ClockJump && self.on_clock_jump == OnClockJump::StopByDeadline;
        reason.successor_may_lead() && !has_until_deadline
    }

    /// Counts later jumps of the time of day from now on, so that each is reported once. `offset` is the offset that
    /// counted until now.
    fn accept_clock_jump(&self, clock: &dyn Clock, offset: i64) {
        let current = wall_offset(clock, clock.now());
        // Of several threads that see the same jump, one counts it.
        if self.wall_offset.compare_exchange(offset, current, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.unreported_jump.fetch_add(current.saturating_sub(offset), Ordering::AcqRel);
        }
    }

    /// How far the time of day has jumped since the last call; `None` if it has not, or if a jump closes the window.
    pub(crate) fn take_clock_jump(&self) -> Option<Duration> {
        let nanos = u64::try_from(self.unreported_jump.swap(0, Ordering::AcqRel)).unwrap_or(0);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// Extends the deadline for a confirmed heartbeat that was sent at `sent`.
    ///
    /// A heartbeat never moves the deadline back; a shorter TTL does ([`shorten`](Self::shorten)). A closed window stays
    /// closed: its work has been cancelled. A window that is not open opens; `Ok` without an effect if that would
    /// come too late.
    ///
    /// # Errors
    /// Why the window has closed.
    pub(crate) fn extend(&self, clock: &dyn Clock, sent: Stamp, ttl: Duration) -> Result<(), LossReason> {
        loop {
            let current = self.deadline.load(Ordering::Acquire);
            let moved = self.deadline_from(sent.at, ttl).as_nanos();
            if current == NOT_OPEN {
                let opened = Self::opened(sent, self.ttl, self.drift, self.grace_period);
                opened.deadline.store(moved, Ordering::Relaxed);
                if opened.on_clock_jump(self.on_clock_jump).check(clock, self.grace_period).is_err() {
                    return Ok(());
                }
                // Before the window opens: a check of another thread reads both.
                self.wall_offset.store(sent.wall_offset, Ordering::Release);
            } else if !is_disabled(SafetyRule::NeverReopenWindow) {
                self.check(clock, self.grace_period)?;
            }
            if moved <= current {
                return Ok(());
            }
            if is_disabled(SafetyRule::CompareAndSwapDeadline) {
                self.deadline.store(moved, Ordering::Release);
                return Ok(());
            }
            if self.deadline.compare_exchange(current, moved, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                let offset = match self.on_clock_jump {
                    OnClockJump::Lose | OnClockJump::StopByDeadline => sent.wall_offset,
                    // A jump since the sending has been accepted, and is not to be found again.
                    OnClockJump::Log => wall_offset(clock, clock.now()),
                };
                self.wall_offset.store(offset, Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    /// Moves the deadline back when the store has granted a shorter TTL than before, for a heartbeat sent at
    /// `sent`. True when the deadline came nearer.
    pub(crate) fn shorten(&self, sent: BootInstant, ttl: Duration) -> bool {
        let latest = self.deadline_from(sent, ttl).as_nanos();
        self.deadline.fetch_min(latest, Ordering::AcqRel) > latest
    }

    /// How far the time of day may run ahead of the monotonic clock, in nanoseconds.
    fn max_wall_jump(&self) -> i64 {
        let slack = self.ttl.mul_f64(self.drift / 2.0).max(Duration::from_millis(100));
        i64::try_from(slack.as_nanos()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SimClock, engine::rules::end::End};

    const TTL: Duration = Duration::from_secs(10);
    const GRACE_PERIOD: Duration = Duration::from_secs(1);

    fn window(clock: &SimClock) -> Window {
        Window::opened(Stamp::now(clock), TTL, 0.1, GRACE_PERIOD)
    }

    /// Hazards G2 and G22: the deadline is counted from before the request was sent, less the drift bound.
    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_counted_from_the_sending() {
        let clock = SimClock::new();
        let window = window(&clock);
        let sent = clock.now();
        tokio::time::advance(Duration::from_secs(3)).await;
        window
            .extend(&clock, Stamp { at: sent + Duration::from_secs(1), ..Stamp::now(&clock) }, TTL)
            .unwrap();
        assert_eq!(window.deadline(), sent + Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_never_moves_back() {
        let clock = SimClock::new();
        let window = window(&clock);
        let before = window.deadline();
        window
            .extend(&clock, Stamp { at: clock.now() - Duration::from_secs(5), ..Stamp::now(&clock) }, TTL)
            .unwrap();
        assert_eq!(window.deadline(), before);
    }

    /// Hazards G1 and G25: once the grace period has begun, no late response brings leadership back.
    #[tokio::test(start_paused = true)]
    async fn a_closed_window_stays_closed() {
        let clock = SimClock::new();
        let window = window(&clock);
        tokio::time::advance(Duration::from_millis(7_999)).await;
        assert_eq!(window.check(&clock, GRACE_PERIOD), Ok(()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(window.check(&clock, GRACE_PERIOD), Err(LossReason::Deadline));
        assert_eq!(window.extend(&clock, Stamp::now(&clock), TTL), Err(LossReason::Deadline));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Err(LossReason::Deadline));
    }

    /// Hazard G3: time goes on while the machine is suspended.
    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_wakes_up_past_its_deadline() {
        let clock = SimClock::new();
        let window = window(&clock);
        clock.jump(Duration::from_secs(60));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Err(LossReason::Deadline));
    }

    /// Hazard G23: the time of day runs ahead of the clock after a virtual machine was paused.
    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_time_of_day_closes_the_window() {
        let clock = SimClock::new();
        let window = window(&clock);
        clock.jump_wall(Duration::from_millis(400));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Ok(()));
        clock.jump_wall(Duration::from_millis(400));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Err(LossReason::ClockJump));
        assert_eq!(window.extend(&clock, Stamp::now(&clock), TTL), Err(LossReason::ClockJump));
    }

    /// Hazard G23: work that cannot be dropped at once has until the deadline.
    #[tokio::test(start_paused = true)]
    async fn a_jump_may_leave_work_until_the_deadline() {
        let clock = SimClock::new();
        let window = window(&clock).on_clock_jump(OnClockJump::StopByDeadline);
        clock.jump_wall(Duration::from_secs(3));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Err(LossReason::ClockJump));
        assert_eq!(window.extend(&clock, Stamp::now(&clock), TTL), Err(LossReason::ClockJump));
        let end = |reason| End::at(clock.now(), reason, &window).stop_by;
        assert_eq!(end(LossReason::ClockJump), window.deadline());
        assert!(end(LossReason::EntryGone) < window.deadline());
    }

    /// Hazard G23: a jump that is only logged is found once, also by a heartbeat that was sent before it.
    #[tokio::test(start_paused = true)]
    async fn a_jump_that_is_logged_is_found_once() {
        let clock = SimClock::new();
        let window = window(&clock).on_clock_jump(OnClockJump::Log);
        let sent = Stamp::now(&clock);
        tokio::time::advance(Duration::from_secs(1)).await;
        clock.jump_wall(Duration::from_secs(3));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Ok(()));
        assert_eq!(window.take_clock_jump(), Some(Duration::from_secs(3)));
        window.extend(&clock, Stamp { at: sent.at + Duration::from_secs(1), ..sent }, TTL).unwrap();
        assert_eq!(window.check(&clock, GRACE_PERIOD), Ok(()));
        assert_eq!(window.take_clock_jump(), None);
        clock.jump_wall(Duration::from_secs(2));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Ok(()));
        assert_eq!(window.take_clock_jump(), Some(Duration::from_secs(2)), "counted from the last jump");
        // The deadline holds as before.
        clock.jump(Duration::from_secs(9));
        assert_eq!(window.check(&clock, GRACE_PERIOD), Err(LossReason::Deadline));
    }

    /// Hazard G22: a clock that runs slow by less than the drift bound still closes the window before the
    /// store's TTL is over.
    #[tokio::test(start_paused = true)]
    async fn drift_within_the_bound_is_covered() {
        let clock = SimClock::with_rate(0.91);
        let window = window(&clock);
        tokio::time::advance(TTL).await;
        assert_eq!(window.check(&clock, Duration::ZERO), Err(LossReason::Deadline));
    }
}
