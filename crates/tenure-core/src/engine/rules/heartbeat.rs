//! The timing of heartbeats, and which heartbeat confirms which.

use std::{collections::VecDeque, time::Duration};

use crate::{
    Backoff, BootInstant,
    failpoints::{SafetyRule, is_disabled},
    spi::{Heartbeat, HeartbeatProof, Stamp},
};

/// The first delay before an unanswered heartbeat is repeated.
pub(crate) const MIN_RETRY_DELAY: Duration = Duration::from_millis(20);

/// How often a heartbeat is sent: every third of the TTL, or more often where drift bound, grace
/// period and confirmation leave less time.
pub(crate) fn interval(proof: HeartbeatProof, ttl: Duration, drift: f64, grace_period: Duration) -> Duration {
    let usable = ttl.mul_f64(1.0 - drift).saturating_sub(grace_period);
    match proof {
        // A confirmed heartbeat is up to a gap and an interval old, and one heartbeat may be lost. A short gap alone
        // makes the interval no shorter than an eighth of the TTL; little usable time does (the last `min`).
        HeartbeatProof::NextHeartbeat { gap } => {
            gap.max(ttl / 8).min(ttl / 3).min(usable.saturating_sub(gap_by_store_clock(gap, drift)) / 3)
        }
        _ => (ttl / 3).min(usable / 2),
    }
}

/// The timeout of a heartbeat: the interval, so that an unanswered one is repeated when the next is due. Half of it
/// where a later heartbeat confirms, so that the repetition fits into the same interval.
pub(crate) fn timeout(proof: HeartbeatProof, interval: Duration, request_timeout: Duration) -> Duration {
    match proof {
        HeartbeatProof::NextHeartbeat { .. } => request_timeout.min(interval / 2),
        // It may consist of two requests.
        _ => (request_timeout * 2).min(interval),
    }
}

/// The delays before an unanswered heartbeat is repeated. The longest is a small part of the TTL: there is
/// little time left.
pub(crate) fn retry_backoff(timeout: Duration) -> Backoff {
    Backoff { min: MIN_RETRY_DELAY, max: (timeout / 16).max(MIN_RETRY_DELAY) }
}

/// The least time between the response to a heartbeat and the sending of the one that confirms it.
pub(crate) fn confirmation_gap(gap: Duration, drift: f64) -> Duration {
    if is_disabled(SafetyRule::KeepHeartbeatGap) { Duration::ZERO } else { gap_by_store_clock(gap, drift) }
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
    let interval = interval(proof, ttl, drift, grace_period).max(ttl / 100);
    let used = match proof {
        HeartbeatProof::Process => Duration::ZERO,
        // The confirmed heartbeat is up to a gap (at least an interval) and an interval old; the next one is sent an
        // interval later and answered within its timeout, half an interval.
        HeartbeatProof::NextHeartbeat { gap } => {
            gap_by_store_clock(gap, drift).max(interval) + interval * 5 / 2
        }
        // The next heartbeat is sent after an interval; half of one is left for its answer.
        _ => interval * 3 / 2,
    };
    length.saturating_sub(used).min(ttl / 3)
}

/// An answered heartbeat that is not confirmed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnconfirmedHeartbeat {
    pub(crate) sent: Stamp,
    pub(crate) answered_at: BootInstant,
    pub(crate) heartbeat: Heartbeat,
}

/// Takes the newest heartbeat that was answered at least `gap` before `sent`, and drops all older ones.
///
/// The gap is counted from the *response*: the store may have executed the heartbeat only just before that,
/// however long ago it was sent.
pub(crate) fn take_confirmed(
    unconfirmed: &mut VecDeque<UnconfirmedHeartbeat>,
    sent: BootInstant,
    gap: Duration,
) -> Option<UnconfirmedHeartbeat> {
    let mut confirmed = None;
    while let Some(earlier) = unconfirmed.front() {
        if earlier.answered_at + gap > sent {
            break;
        }
        confirmed = unconfirmed.pop_front();
    }
    confirmed
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Heartbeat = Heartbeat::new(Duration::from_secs(6));
    const GAP: Duration = Duration::from_millis(1_500);

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    fn unconfirmed(sent_millis: u64, answered_millis: u64) -> UnconfirmedHeartbeat {
        UnconfirmedHeartbeat {
            sent: Stamp { at: at(sent_millis), wall_offset: 0 },
            answered_at: at(answered_millis),
            heartbeat: HEARTBEAT,
        }
    }

    /// Hazard Z18: an answered write is confirmed only by one that was sent long enough after it.
    #[test]
    fn an_answer_is_confirmed_by_a_later_heartbeat_only() {
        let mut pending = VecDeque::from([unconfirmed(0, 0)]);
        assert_eq!(take_confirmed(&mut pending, at(1_499), GAP), None);
        pending.push_back(unconfirmed(1_499, 1_499));
        assert_eq!(take_confirmed(&mut pending, at(1_600), GAP), Some(unconfirmed(0, 0)));
        pending.push_back(unconfirmed(1_600, 1_600));
        assert_eq!(take_confirmed(&mut pending, at(3_100), GAP), Some(unconfirmed(1_600, 1_600)));
        assert!(pending.is_empty());
    }

    /// Hazard Z18: a write that was in flight for long may have been executed only just before its response, when its
    /// server had not replicated it yet.
    #[test]
    fn the_gap_is_counted_from_the_answer() {
        let mut pending = VecDeque::from([unconfirmed(0, 1_400)]);
        assert_eq!(take_confirmed(&mut pending, at(2_899), GAP), None);
        assert_eq!(take_confirmed(&mut pending, at(2_900), GAP), Some(unconfirmed(0, 1_400)));
    }
}
