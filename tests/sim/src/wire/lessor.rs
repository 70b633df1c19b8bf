//! The expiry of leases as one member counts it: the leader's count is the valid one; a deposed leader has one, too.

use std::{collections::BTreeMap, time::Duration};

use super::store::Granted;

#[derive(Debug)]
pub(super) struct Lessor {
    /// The rate of its clock.
    rate: f64,
    leases: BTreeMap<i64, TimedLease>,
    next_expiry_check: Duration,
}

#[derive(Clone, Copy, Debug)]
struct TimedLease {
    /// In seconds.
    ttl: i64,
    expires: Duration,
}

/// The interval at which a leader revokes expired leases.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

impl Lessor {
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, leases: BTreeMap::new(), next_expiry_check: Duration::ZERO }
    }

    /// Extends `lease` by its whole TTL, in seconds.
    pub(super) fn renew(&mut self, now: Duration, lease: i64, ttl: i64) {
        let expires = now + Duration::from_secs(ttl.unsigned_abs()).div_f64(self.rate);
        self.leases.insert(lease, TimedLease { ttl, expires });
    }

    /// The TTL, in seconds, of a lease in this count.
    pub(super) fn ttl(&self, lease: i64) -> Option<i64> {
        self.leases.get(&lease).map(|counted| counted.ttl)
    }

    pub(super) fn has_expired(&self, now: Duration, lease: i64) -> bool {
        self.leases.get(&lease).is_some_and(|counted| counted.expires <= now)
    }

    pub(super) fn left(&self, now: Duration, lease: i64) -> Duration {
        self.leases.get(&lease).map_or(Duration::ZERO, |counted| counted.expires.saturating_sub(now))
    }

    /// Becomes the leader's count: every lease gets its whole TTL.
    pub(super) fn promote(&mut self, now: Duration, leases: &BTreeMap<i64, Granted>) {
        self.leases.clear();
        for (lease, granted) in leases {
            self.renew(now, *lease, granted.ttl);
        }
        self.next_expiry_check = now + EXPIRY_INTERVAL;
    }

    /// The expired leases, twice a second.
    pub(super) fn expired(&mut self, now: Duration) -> Vec<i64> {
        if now < self.next_expiry_check {
            return Vec::new();
        }
        self.next_expiry_check = now + EXPIRY_INTERVAL;
        self.overdue(now)
    }

    /// Removes and returns all expired leases.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<i64> {
        let (overdue, counted): (BTreeMap<i64, TimedLease>, _) =
            std::mem::take(&mut self.leases).into_iter().partition(|(_, counted)| counted.expires <= now);
        self.leases = counted;
        overdue.into_keys().collect()
    }
}
