//! Detects etcd members that revoke leases although they do not lead.
//!
//! A former leader that was frozen may, when it thaws, revoke leases that expired by its own count and that the new leader
//! has kept alive (etcd-io/etcd#15247, and the cases that its fix leaves open). The members' metrics show whether this
//! caused two leaders, whatever the candidates report: around that time a member that did not lead has revoked leases, and
//! the leader has revoked none.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenure_core::{BootClock, Clock as _};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::etcd::{
    admin::{EtcdAdmin, LeaseExpiryStats},
    cluster::EtcdCluster,
};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// A frozen member does not answer; it is asked again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long before a term begins its predecessor's entry may have been deleted.
const LOOKBACK_NANOS: u64 = 300_000_000;
/// By when after a term began the members' next samples show which of them led.
const LOOKAHEAD_NANOS: u64 = 1_000_000_000;

/// The statistics of a member at some time after `requested_at` and before `answered_at`.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requested_at: u64,
    answered_at: u64,
    stats: LeaseExpiryStats,
}

/// Samples the members of a cluster until it is dropped, to tell whether the store or its client is at fault for two
/// leaders.
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), tenure_containers::ContainerError> {
/// use tenure_core::{BootClock, Clock as _};
/// use tenure_containers::{EtcdCluster, LeaseExpiryMonitor, Version};
///
/// let cluster = EtcdCluster::start(Version::Etcd35).await?;
/// let monitor = LeaseExpiryMonitor::start(&cluster);
/// let began = BootClock.now().as_nanos(); // a second candidate leads, and the first one still does
/// assert!(monitor.non_leader_revoked_around(began), "the library is at fault");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LeaseExpiryMonitor {
    /// The samples of each member, in order.
    samples: Arc<Mutex<Vec<Vec<Sample>>>>,
    _tasks: JoinSet<()>,
}

impl LeaseExpiryMonitor {
    /// Starts to sample every member twice a second. Must be called in a tokio runtime.
    pub fn start(cluster: &EtcdCluster) -> Self {
        let members = cluster.endpoints().len();
        let samples = Arc::new(Mutex::new(vec![Vec::new(); members]));
        let mut tasks = JoinSet::new();
        for member in 0..members {
            tasks.spawn(sample(member, cluster.member(member).admin().clone(), Arc::clone(&samples)));
        }
        Self { samples, _tasks: tasks }
    }

    /// Whether around this time, in nanoseconds of [`BootClock`], a member that did not lead revoked leases and no leader
    /// did: then the store deleted entries whose leases were alive.
    ///
    /// Call it once [`has_sampled`](Self::has_sampled) returns true for the same time.
    pub fn non_leader_revoked_around(&self, at: u64) -> bool {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        non_leader_revoked(&samples, at)
    }

    /// Whether every member was sampled late enough to judge this time. A member that stays frozen never is.
    pub fn has_sampled(&self, at: u64) -> bool {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let since = at.saturating_add(LOOKAHEAD_NANOS);
        samples.iter().all(|samples| samples.last().is_some_and(|sample| sample.requested_at >= since))
    }
}

async fn sample(member: usize, admin: EtcdAdmin, samples: Arc<Mutex<Vec<Vec<Sample>>>>) {
    loop {
        let requested_at = BootClock.now().as_nanos();
        if let Ok(Ok(stats)) = timeout(REQUEST_TIMEOUT, admin.lease_expiry_stats()).await {
            let answered_at = BootClock.now().as_nanos();
            samples.lock().unwrap_or_else(PoisonError::into_inner)[member].push(Sample {
                requested_at,
                answered_at,
                stats,
            });
        }
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// Whether a member that did not lead revoked leases around this time, and no leader did.
fn non_leader_revoked(samples: &[Vec<Sample>], at: u64) -> bool {
    let from = at.saturating_sub(LOOKBACK_NANOS);
    // Pairs of successive samples of a member that enclose a part of that time.
    let around = |member: usize| {
        samples[member]
            .windows(2)
            .filter(move |pair| pair[0].requested_at <= at && pair[1].answered_at >= from)
    };
    let revoked = |member: usize| around(member).any(|pair| pair[1].stats.revoked > pair[0].stats.revoked);
    // A member led if another member took it for the leader.
    let led = |member: usize| {
        let id = samples[member].first().map(|sample| sample.stats.member);
        let others = (0..samples.len()).filter(|&other| other != member);
        let mut then = others.flat_map(|other| &samples[other]).filter(|sample| {
            sample.answered_at >= from && sample.requested_at <= at.saturating_add(LOOKAHEAD_NANOS)
        });
        id.is_some_and(|id| then.any(|sample| sample.stats.leader == id))
    };
    let (leaders, others): (Vec<_>, Vec<_>) = (0..samples.len()).partition(|&member| led(member));
    !leaders.is_empty() && others.into_iter().any(revoked) && !leaders.into_iter().any(revoked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A member's samples, two a second, from the leader and the count of revocations in each.
    fn samples_of(member: u64, stats: &[(u64, u64)]) -> Vec<Sample> {
        let sample = |(n, &(leader, revoked)): (usize, &(u64, u64))| {
            let requested_at = n as u64 * SECOND / 2;
            let stats = LeaseExpiryStats { member, leader, revoked };
            Sample { requested_at, answered_at: requested_at + 1_000_000, stats }
        };
        stats.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn the_leader_may_revoke() {
        let leader = samples_of(1, &[(1, 0), (1, 0), (1, 2), (1, 2)]);
        let follower = |id| samples_of(id, &[(1, 0); 4]);
        assert!(!non_leader_revoked(&[leader, follower(2), follower(3)], SECOND));
    }

    #[test]
    fn a_former_leader_may_not_revoke() {
        let former = samples_of(1, &[(1, 4), (2, 4), (2, 6), (2, 6)]);
        let others = |id| samples_of(id, &[(2, 0); 4]);
        let samples = [former, others(2), others(3)];
        assert!(non_leader_revoked(&samples, SECOND));
        // Nothing was revoked around a much later time.
        assert!(!non_leader_revoked(&samples, 20 * SECOND));
    }

    #[test]
    fn revocations_that_the_leader_made_too_prove_nothing() {
        let former = samples_of(1, &[(1, 4), (2, 4), (2, 6), (2, 6)]);
        let leader = samples_of(2, &[(2, 0), (2, 0), (2, 1), (2, 1)]);
        assert!(!non_leader_revoked(&[former, leader, samples_of(3, &[(2, 0); 4])], SECOND));
        assert!(!non_leader_revoked(&[vec![], vec![], vec![]], SECOND));
    }
}
