//! When leases run out, by the count of one member: the leader's counts, and that of a former one that
//! does not know yet.

use std::{collections::BTreeMap, time::Duration};

use super::store::Granted;

#[derive(Debug)]
pub(super) struct Lessor {
    /// How fast its clock runs.
    rate: f64,
    leases: BTreeMap<i64, Counted>,
    next_look: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    /// In seconds.
    ttl: i64,
    expires: Duration,
}

/// How often a leader looks for leases that have run out.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Lessor {
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, leases: BTreeMap::new(), next_look: Duration::ZERO }
    }

    /// Gives `lease` its whole TTL, in seconds, from now on.
    pub(super) fn renew(&mut self, now: Duration, lease: i64, ttl: i64) {
        let expires = now + Duration::from_secs(ttl.unsigned_abs()).div_f64(self.rate);
        self.leases.insert(lease, Counted { ttl, expires });
    }

    /// The TTL of a lease that this member counts.
    pub(super) fn ttl(&self, lease: i64) -> Option<i64> {
        self.leases.get(&lease).map(|counted| counted.ttl)
    }

    pub(super) fn has_expired(&self, now: Duration, lease: i64) -> bool {
        self.leases.get(&lease).is_some_and(|counted| counted.expires <= now)
    }

    pub(super) fn left(&self, now: Duration, lease: i64) -> Duration {
        self.leases.get(&lease).map_or(Duration::ZERO, |counted| counted.expires.saturating_sub(now))
    }

    /// Takes over: every lease has its whole TTL again.
    pub(super) fn promote(&mut self, now: Duration, leases: &BTreeMap<i64, Granted>) {
        self.leases.clear();
        for (lease, granted) in leases {
            self.renew(now, *lease, granted.ttl);
        }
        self.next_look = now + LOOK_EVERY;
    }

    /// The leases that are found to have run out now; looked for twice a second.
    pub(super) fn expired(&mut self, now: Duration) -> Vec<i64> {
        if now < self.next_look {
            return Vec::new();
        }
        self.next_look = now + LOOK_EVERY;
        self.overdue(now)
    }

    /// All that have run out by this count, no longer counted.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<i64> {
        let (overdue, counted): (BTreeMap<i64, Counted>, _) =
            std::mem::take(&mut self.leases).into_iter().partition(|(_, counted)| counted.expires <= now);
        self.leases = counted;
        overdue.into_keys().collect()
    }
}
