//! The timing of heartbeats, and which heartbeat proves which.

use std::{collections::VecDeque, time::Duration};

use crate::{
    Backoff, BootInstant,
    failpoints::{SafetyRule, is_disabled},
    spi::{HeartbeatProof, Stamp},
};

/// The first delay before an unanswered heartbeat is repeated.
pub(crate) const MIN_RETRY_DELAY: Duration = Duration::from_millis(20);
/// The longest delay before an unanswered heartbeat is repeated.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// The upper limit of [`UnprovenHeartbeats::spacing`].
const MAX_SPACING: Duration = Duration::from_millis(50);

/// What heartbeats are sent for. Decided before each one is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeartbeatPurpose {
    /// Candidates wait, and none is next in line: the session has to live, and no window has to be open.
    KeepAlive,
    /// No candidate leads, and one may lead soon: the window has to be open.
    StandBy,
    /// A candidate leads, enters or leaves: the window has to outlast an outage of the store.
    Lead,
}

/// How often a heartbeat is sent.
///
/// Every third of the TTL where the answer is the proof, or more often where drift bound and grace period leave less time. Where later
/// heartbeats are the proof, the credited one is up to a gap and `count` intervals old when the next one is proven. What is
/// left of the window then is the outage that a leadership survives.
pub(crate) fn interval(
    proof: HeartbeatProof,
    purpose: HeartbeatPurpose,
    ttl: Duration,
    drift: f64,
    grace_period: Duration,
) -> Duration {
    let usable = usable(ttl, drift, grace_period);
    match (proof, purpose) {
        // A candidate that comes to lead is credited with one of the last two, and needs time until a heartbeat is proven. Just more
        // often than ZooKeeper's client sends pings of its own.
        (HeartbeatProof::LaterHeartbeats { .. }, HeartbeatPurpose::KeepAlive) => ttl * 11 / 50,
        (HeartbeatProof::LaterHeartbeats { gap, count }, purpose) => {
            let gap = gap_by_store_clock(gap, drift);
            let spare = usable.saturating_sub(gap);
            // One heartbeat may be lost, and one be late.
            let longest = spare / (count + 3);
            match purpose {
                HeartbeatPurpose::Lead => (gap / 5).max(ttl / 18).min(longest),
                _ => (gap / 3).max(ttl / 10).min(longest),
            }
        }
        _ => (ttl / 3).min(usable / 2),
    }
}

/// The time in which a heartbeat allows leading.
fn usable(ttl: Duration, drift: f64, grace_period: Duration) -> Duration {
    ttl.mul_f64(1.0 - drift).saturating_sub(grace_period)
}

/// The timeout of a heartbeat. `interval` is that of a leader.
pub(crate) fn timeout(proof: HeartbeatProof, interval: Duration, request_timeout: Duration) -> Duration {
    match proof {
        // Shorter than the tolerated outage, and long enough that a slow answer is not asked for again at once.
        HeartbeatProof::LaterHeartbeats { .. } => request_timeout.min(interval * 2),
        // It may consist of two requests. An unanswered one is repeated when the next is due.
        _ => (request_timeout * 2).min(interval),
    }
}

/// The delays before an unanswered heartbeat is repeated. The longest is a small part of the TTL: there is
/// little time left.
pub(crate) fn retry_backoff(timeout: Duration) -> Backoff {
    Backoff { min: MIN_RETRY_DELAY, max: (timeout / 16).max(MIN_RETRY_DELAY) }
}

/// The delays once a TTL has passed since an answer, and nobody leads: the store either keeps the session for longer or has ended it.
pub(crate) fn retry_backoff_after_ttl(ttl: Duration) -> Backoff {
    let max = (ttl / 5).clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
    Backoff { min: (ttl / 50).clamp(MIN_RETRY_DELAY, max), max }
}

/// A gap that is long enough by the store's clock as well.
fn gap_by_store_clock(gap: Duration, drift: f64) -> Duration {
    gap.div_f64(1.0 - drift)
}

/// The largest grace period that heartbeats leave room for, when their interval is computed from `grace_period`.
pub(crate) fn largest_grace_period(
    proof: HeartbeatProof,
    ttl: Duration,
    drift: f64,
    grace_period: Duration,
) -> Duration {
    let length = ttl.mul_f64(1.0 - drift);
    // Settings that need more than a hundred heartbeats per TTL are refused.
    let interval = interval(proof, HeartbeatPurpose::Lead, ttl, drift, grace_period).max(ttl / 100);
    let used = match proof {
        HeartbeatProof::Process => Duration::ZERO,
        // The credited heartbeat is up to a gap (rounded up to intervals) and `count` intervals old when the next one is
        // proven. Half an interval is left for its answer, and one heartbeat may be lost.
        HeartbeatProof::LaterHeartbeats { gap, count } => {
            gap_by_store_clock(gap, drift) + interval * (count + 2) + interval / 2
        }
        // The next heartbeat is sent after an interval; half of one is left for its answer.
        _ => interval * 3 / 2,
    };
    length.saturating_sub(used).min(ttl / 3)
}

/// The answered heartbeats of a session that later ones have to prove, the oldest first.
#[derive(Debug)]
pub(crate) struct UnprovenHeartbeats {
    heartbeats: VecDeque<UnprovenHeartbeat>,
    /// The minimum time between an answer and the sending of the first heartbeat that counts.
    gap: Duration,
    /// The minimum time between the answer to a heartbeat that counts and the sending of the next one that does.
    spacing: Duration,
    /// How many heartbeats have to be answered.
    required: u32,
    /// How long a heartbeat can extend the window: older ones are useless.
    length: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnprovenHeartbeat {
    sent: Stamp,
    ttl: Duration,
    /// When it was answered, or the last heartbeat that counted for it.
    answered_at: BootInstant,
    /// How many later heartbeats have counted.
    counted: u32,
}

impl UnprovenHeartbeats {
    /// `None` where the answer to a heartbeat is its proof.
    pub(crate) fn new(proof: HeartbeatProof, ttl: Duration, drift: f64) -> Option<Self> {
        let HeartbeatProof::LaterHeartbeats { gap, count } = proof else { return None };
        let gap = match is_disabled(SafetyRule::KeepHeartbeatGap) {
            true => Duration::ZERO,
            false => gap_by_store_clock(gap, drift),
        };
        let count = if is_disabled(SafetyRule::CountLaterHeartbeats) { count - 1 } else { count };
        let (spacing, length) = (MAX_SPACING.min(ttl / 40), ttl.mul_f64(1.0 - drift));
        Some(Self { heartbeats: VecDeque::new(), gap, spacing, required: count, length })
    }

    /// Adds an answered heartbeat or keepalive, which later heartbeats may prove.
    pub(crate) fn add(&mut self, sent: Stamp, ttl: Duration, now: BootInstant) {
        self.heartbeats.retain(|earlier| earlier.sent.at + self.length > now);
        self.heartbeats.push_back(UnprovenHeartbeat { sent, ttl, answered_at: now, counted: 0 });
    }

    /// Counts a heartbeat that was sent at `sent` and answered `now`. Takes the newest one that it proves, and drops all older
    /// ones. Returns when that one was sent, and its TTL.
    ///
    /// The gap is counted from the *response*: the store may have executed the earlier heartbeat only just before that,
    /// however long ago it was sent.
    pub(crate) fn record_answer(&mut self, sent: BootInstant, now: BootInstant) -> Option<(Stamp, Duration)> {
        for earlier in &mut self.heartbeats {
            let pause = if earlier.counted == 0 { self.gap } else { self.spacing };
            if earlier.answered_at + pause <= sent {
                earlier.counted += 1;
                earlier.answered_at = now;
            }
        }
        let proven = self.heartbeats.iter().rposition(|earlier| earlier.counted >= self.required)?;
        self.heartbeats.drain(..=proven).next_back().map(|proven| (proven.sent, proven.ttl))
    }

    /// The first instant at which a heartbeat counts, if it is sent then.
    pub(crate) fn earliest_that_counts(&self) -> Option<BootInstant> {
        self.heartbeats.iter().map(|earlier| self.counts_from(earlier)).min()
    }

    /// How long the window stays open at least, just before the next heartbeat is proven, while heartbeats are sent every `interval`. If it closes
    /// sooner, the credited heartbeat is old, and the next ones are sent as early as they count.
    pub(crate) fn reserve(&self, interval: Duration, grace_period: Duration) -> Duration {
        self.length.saturating_sub(grace_period + self.gap + interval * (self.required + 1))
    }

    /// The instant to send a heartbeat that is due at `next`: a little later if it counts then for an earlier heartbeat for which
    /// none has counted yet.
    pub(crate) fn align(&self, next: BootInstant, interval: Duration) -> BootInstant {
        let fresh = self.heartbeats.iter().filter(|earlier| earlier.counted == 0);
        let soon = fresh.map(|earlier| self.counts_from(earlier)).filter(|at| *at <= next + interval / 4);
        soon.max().map_or(next, |at| at.max(next))
    }

    fn counts_from(&self, earlier: &UnprovenHeartbeat) -> BootInstant {
        earlier.answered_at + if earlier.counted == 0 { self.gap } else { self.spacing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(6);
    const GAP: Duration = Duration::from_millis(1_500);

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    fn stamp(millis: u64) -> Stamp {
        Stamp { at: at(millis), wall_offset: 0 }
    }

    fn unproven() -> UnprovenHeartbeats {
        let proof = HeartbeatProof::LaterHeartbeats { gap: GAP, count: 3 };
        UnprovenHeartbeats::new(proof, TTL, 0.0).unwrap()
    }

    /// Hazards Z18 and Z24: an answered write is proven by three later ones, of which the first was sent long enough after it.
    #[test]
    fn an_answer_is_proven_by_three_later_heartbeats_only() {
        let mut unproven = unproven();
        unproven.add(stamp(0), TTL, at(0));
        assert_eq!(unproven.record_answer(at(1_499), at(1_499)), None);
        unproven.add(stamp(1_499), TTL, at(1_499));
        assert_eq!(unproven.record_answer(at(1_500), at(1_500)), None);
        assert_eq!(unproven.record_answer(at(1_600), at(1_600)), None);
        assert_eq!(unproven.record_answer(at(1_700), at(1_700)), Some((stamp(0), TTL)));
        assert_eq!(unproven.record_answer(at(3_000), at(3_000)), None);
        assert_eq!(unproven.record_answer(at(3_100), at(3_100)), None);
        assert_eq!(unproven.record_answer(at(3_200), at(3_200)), Some((stamp(1_499), TTL)));
        assert!(unproven.heartbeats.is_empty());
    }

    /// Hazard Z24: of heartbeats that are sent at once, one counts.
    #[test]
    fn heartbeats_that_count_are_sent_apart() {
        let mut unproven = unproven();
        unproven.add(stamp(0), TTL, at(0));
        assert_eq!(unproven.record_answer(at(1_500), at(1_510)), None);
        assert_eq!(unproven.earliest_that_counts(), Some(at(1_560)));
        for sent in [1_510, 1_559] {
            assert_eq!(unproven.record_answer(at(sent), at(sent)), None);
        }
        assert_eq!(unproven.record_answer(at(1_560), at(1_561)), None);
        assert_eq!(unproven.record_answer(at(1_611), at(1_612)), Some((stamp(0), TTL)));
    }

    /// Hazard Z18: a write that was in flight for long may have been executed only just before its response, when its
    /// server had not replicated it yet.
    #[test]
    fn the_gap_is_counted_from_the_answer() {
        let mut unproven = unproven();
        unproven.add(stamp(0), TTL, at(1_400));
        assert_eq!(unproven.record_answer(at(2_899), at(2_899)), None);
        assert_eq!(unproven.earliest_that_counts(), Some(at(2_900)));
        for sent in [2_900, 3_000] {
            assert_eq!(unproven.record_answer(at(sent), at(sent)), None);
        }
        assert_eq!(unproven.record_answer(at(3_100), at(3_100)), Some((stamp(0), TTL)));
    }

    /// The newest of several is credited.
    #[test]
    fn the_newest_that_is_proven_counts() {
        let mut unproven = unproven();
        unproven.add(stamp(0), TTL, at(0));
        unproven.add(stamp(300), TTL, at(300));
        unproven.add(stamp(600), TTL, at(600));
        assert_eq!(unproven.record_answer(at(1_800), at(1_800)), None);
        assert_eq!(unproven.record_answer(at(2_100), at(2_100)), None);
        assert_eq!(unproven.record_answer(at(2_400), at(2_400)), Some((stamp(300), TTL)));
    }

    /// A heartbeat that is due just before it would count waits for that.
    #[test]
    fn heartbeats_are_sent_when_they_count() {
        let mut unproven = unproven();
        unproven.add(stamp(0), TTL, at(10));
        unproven.add(stamp(300), TTL, at(310));
        let interval = Duration::from_millis(300);
        assert_eq!(unproven.align(at(1_500), interval), at(1_510));
        assert_eq!(unproven.align(at(1_400), interval), at(1_400));
        assert_eq!(unproven.align(at(1_600), interval), at(1_600));
    }

    /// The figures that the documentation gives for ZooKeeper at a TTL of 5 s.
    #[test]
    fn a_leader_on_zookeeper_sends_eighteen_heartbeats_per_ttl() {
        let proof = HeartbeatProof::LaterHeartbeats { gap: TTL / 4, count: 3 };
        let interval = |purpose| interval(proof, purpose, TTL, 0.1, TTL / 10);
        assert_eq!(interval(HeartbeatPurpose::KeepAlive), TTL * 11 / 50);
        let lead = interval(HeartbeatPurpose::Lead);
        assert!(lead.abs_diff(TTL / 18) < Duration::from_micros(1), "{lead:?}");
        let stand_by = interval(HeartbeatPurpose::StandBy);
        assert!(stand_by > TTL / 12 && stand_by < TTL / 11, "{stand_by:?}");
    }
}
