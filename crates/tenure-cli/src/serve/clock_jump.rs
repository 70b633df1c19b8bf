//! Whether the time of day has run ahead of the machine's clock, as it does after a virtual machine was paused.
//!
//! The engine's own answer to that, [`OnClockJump::Lose`](tenure::OnClockJump::Lose), removes the entry after 50 ms, because it
//! can drop the work by then. The sidecar's clients work on until their grants end, and an NTP step looks the same. So the
//! engine only logs jumps, and the sidecar grants nothing more after one and keeps the entry until the grants have ended.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tenure::{BootInstant, Clock};

/// The smallest jump that is noticed.
const MIN_JUMP: Duration = Duration::from_millis(100);
/// How often the offset is recorded in a TTL.
const RECORDS_IN_TTL: u32 = 10;
/// For how many TTLs it is kept: the store may grant a longer one.
const KEPT_TTLS: u32 = 2;

/// The offsets of the last TTLs. The deadline of a leadership that begins can rest on a heartbeat that was sent before a jump.
#[derive(Debug)]
pub(super) struct RecentOffsets {
    /// The first one may be older: nothing newer is known for the beginning of that time.
    records: Mutex<VecDeque<(BootInstant, i128)>>,
    ttl: Duration,
}

impl RecentOffsets {
    /// Begins with the present offset.
    pub(super) fn new(clock: &dyn Clock, ttl: Duration) -> Self {
        Self { records: Mutex::new(VecDeque::from([(clock.now(), offset(clock))])), ttl }
    }

    /// Records the offset for as long as `self` is used elsewhere.
    pub(super) async fn record_while_used(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let this = Arc::downgrade(&self);
        let interval = self.ttl / RECORDS_IN_TTL;
        drop(self);
        loop {
            clock.sleep_until(clock.now() + interval).await;
            let Some(this) = this.upgrade() else { return };
            this.record(clock.now(), offset(&*clock));
        }
    }

    fn record(&self, now: BootInstant, offset: i128) {
        let mut records = self.lock();
        records.push_back((now, offset));
        while records.get(1).is_some_and(|(at, _)| *at + self.ttl * KEPT_TTLS < now) {
            records.pop_front();
        }
    }

    fn smallest(&self) -> Option<i128> {
        self.lock().iter().map(|(_, offset)| *offset).min()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(BootInstant, i128)>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices jumps since the last confirmed heartbeat, as the engine does.
#[derive(Clone, Copy, Debug)]
pub(super) struct JumpCheck {
    /// The offset when `deadline` was first seen; the smallest of the TTLs before, for the first deadline.
    offset: i128,
    deadline: BootInstant,
    /// The largest difference that is no jump.
    max_nanos: i128,
}

impl JumpCheck {
    /// Begins now, with a new leadership. `drift` is that of the election.
    pub(super) fn new(clock: &dyn Clock, recent: &RecentOffsets, deadline: BootInstant, drift: f64) -> Self {
        let max = recent.ttl.mul_f64(drift / 2.0).max(MIN_JUMP);
        let now = offset(clock);
        let offset = recent.smallest().map_or(now, |smallest| smallest.min(now));
        Self { offset, deadline, max_nanos: nanos(max) }
    }

    /// Whether the time of day has jumped ahead since the last call that saw another deadline.
    pub(super) fn has_jumped(&mut self, clock: &dyn Clock, deadline: BootInstant) -> bool {
        // Read twice: this thread may have been stopped between the two clocks.
        self.is_jump(deadline, offset(clock)) && self.is_jump(deadline, offset(clock))
    }

    fn is_jump(&mut self, deadline: BootInstant, offset: i128) -> bool {
        if offset - self.offset > self.max_nanos {
            return true;
        }
        if deadline != self.deadline {
            (self.deadline, self.offset) = (deadline, offset);
        }
        false
    }
}

/// Time of day minus clock, in nanoseconds.
fn offset(clock: &dyn Clock) -> i128 {
    nanos(clock.wall()) - i128::from(clock.now().as_nanos())
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use tenure::BootClock;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn new_check(deadline: BootInstant) -> JumpCheck {
        JumpCheck::new(&BootClock, &RecentOffsets::new(&BootClock, TTL), deadline, 0.1)
    }

    /// A virtual machine is paused between the heartbeat and the election.
    #[test]
    fn a_jump_in_the_ttl_before_the_election_is_noticed() {
        let (now, present, second) = (BootClock.now(), offset(&BootClock), 1_000_000_000);
        let recent = RecentOffsets::new(&BootClock, TTL);
        recent.record(now, present - 5 * second);
        recent.record(now + TTL / 10, present);
        let deadline = BootInstant::from_nanos(1);
        assert!(JumpCheck::new(&BootClock, &recent, deadline, 0.1).has_jumped(&BootClock, deadline));
        // Three TTLs later, no deadline rests on what was before.
        recent.record(now + TTL, present);
        recent.record(now + TTL * 2, present);
        recent.record(now + TTL * 3, present);
        assert!(!JumpCheck::new(&BootClock, &recent, deadline, 0.1).has_jumped(&BootClock, deadline));
    }

    #[test]
    fn a_jump_ahead_is_noticed_until_the_lease_ends() {
        let deadline = BootInstant::from_nanos(1);
        let mut check = new_check(deadline);
        assert!(!check.has_jumped(&BootClock, deadline));
        let (start, second) = (check.offset, 1_000_000_000);
        assert!(!check.is_jump(deadline, start + second / 2), "slewing");
        assert!(!check.is_jump(deadline, start - 1_000 * second), "a jump back");
        assert!(check.is_jump(deadline, start + second));
        assert!(check.is_jump(BootInstant::from_nanos(2), start + second), "also beside a heartbeat");
    }

    /// Slewing by less than the bound between two heartbeats never adds up.
    #[test]
    fn differences_are_counted_from_the_last_heartbeat() {
        let mut check = new_check(BootInstant::from_nanos(0));
        for heartbeat in 1..100 {
            let offset = check.offset + 400_000_000;
            assert!(!check.is_jump(BootInstant::from_nanos(heartbeat), offset));
        }
    }
}
