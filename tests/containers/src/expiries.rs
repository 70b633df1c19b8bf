//! Which etcd servers revoked leases that had run out, and when: only the leader may.
//!
//! A leader of old that comes to itself may revoke what it counts as run out and what lives on under the
//! new one (etcd-io/etcd#15247, and what its fix leaves open). That this is what
//! made two leaders can be seen from the servers alone, whatever the candidates think: around that moment a
//! server that did not lead has revoked leases, and the one that led has revoked none.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenure_core::{BootClock, Clock as _};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{EtcdAdmin, EtcdCluster, Expiries};

const PACE: Duration = Duration::from_millis(500);
/// A frozen server is asked again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long before a term begins the entry before it may have gone.
const BEFORE: u64 = 300_000_000;
/// How long after it the servers' next looks say who led.
const AFTER: u64 = 1_000_000_000;

/// What a server answered: some time after `asked` and before `answered`.
#[derive(Clone, Copy, Debug)]
struct Look {
    asked: u64,
    answered: u64,
    expiries: Expiries,
}

/// Looks at a cluster's members until it is dropped, to tell a store that broke its word from a fault of its client.
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), tenure_containers::ContainerError> {
/// use tenure_core::{BootClock, Clock as _};
/// use tenure_containers::{EtcdCluster, ExpiryWatch, Version};
///
/// let cluster = EtcdCluster::start(Version::Etcd35).await?;
/// let expiries = ExpiryWatch::start(&cluster);
/// let began = BootClock.now().as_nanos(); // a second candidate leads, and the first one still does
/// assert!(expiries.explains(began), "the library is at fault");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ExpiryWatch {
    looks: Arc<Mutex<Vec<Vec<Look>>>>,
    _looking: JoinSet<()>,
}

impl ExpiryWatch {
    /// Begins to look, twice a second. Call it in a tokio runtime.
    pub fn start(cluster: &EtcdCluster) -> Self {
        let members = cluster.endpoints().len();
        let looks = Arc::new(Mutex::new(vec![Vec::new(); members]));
        let mut looking = JoinSet::new();
        for member in 0..members {
            looking.spawn(look(member, cluster.member(member).admin().clone(), Arc::clone(&looks)));
        }
        Self { looks, _looking: looking }
    }

    /// Whether a member that did not lead revoked leases around this moment, in nanoseconds of
    /// [`BootClock`], and none that led: the store itself broke its word.
    ///
    /// Ask once [`has_seen`](Self::has_seen) says that the members have told of it.
    pub fn explains(&self, at: u64) -> bool {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        revoked_by_others(&looks, at)
    }

    /// Whether every member was looked at since this moment and what followed it; a frozen one never is.
    pub fn has_seen(&self, at: u64) -> bool {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let since = at.saturating_add(AFTER);
        looks.iter().all(|looks| looks.last().is_some_and(|look| look.asked >= since))
    }
}

async fn look(member: usize, admin: EtcdAdmin, looks: Arc<Mutex<Vec<Vec<Look>>>>) {
    loop {
        let asked = BootClock.now().as_nanos();
        if let Ok(Ok(expiries)) = timeout(PATIENCE, admin.expiries()).await {
            let answered = BootClock.now().as_nanos();
            looks.lock().unwrap_or_else(PoisonError::into_inner)[member].push(Look {
                asked,
                answered,
                expiries,
            });
        }
        sleep(PACE).await;
    }
}

/// Whether a server that did not lead revoked leases around this moment, and none that led.
fn revoked_by_others(looks: &[Vec<Look>], at: u64) -> bool {
    let from = at.saturating_sub(BEFORE);
    // Two looks of a server between which some of that time lies.
    let around = |member: usize| {
        looks[member].windows(2).filter(move |pair| pair[0].asked <= at && pair[1].answered >= from)
    };
    let revoked =
        |member: usize| around(member).any(|pair| pair[1].expiries.revoked > pair[0].expiries.revoked);
    // Whoever another server took for the leader.
    let led = |member: usize| {
        let id = looks[member].first().map(|look| look.expiries.member);
        let others = (0..looks.len()).filter(|&other| other != member);
        let mut then = others
            .flat_map(|other| &looks[other])
            .filter(|look| look.answered >= from && look.asked <= at.saturating_add(AFTER));
        id.is_some_and(|id| then.any(|look| look.expiries.leader == id))
    };
    let (leaders, others): (Vec<_>, Vec<_>) = (0..looks.len()).partition(|&member| led(member));
    !leaders.is_empty() && others.into_iter().any(revoked) && !leaders.into_iter().any(revoked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A server's looks, two a second, from what it says of the leader and of revocations at each.
    fn server(member: u64, said: &[(u64, u64)]) -> Vec<Look> {
        let look = |(n, &(leader, revoked)): (usize, &(u64, u64))| {
            let asked = n as u64 * SECOND / 2;
            Look { asked, answered: asked + 1_000_000, expiries: Expiries { member, leader, revoked } }
        };
        said.iter().enumerate().map(look).collect()
    }

    #[test]
    fn who_leads_may_revoke() {
        let leader = server(1, &[(1, 0), (1, 0), (1, 2), (1, 2)]);
        let follower = |id| server(id, &[(1, 0); 4]);
        assert!(!revoked_by_others(&[leader, follower(2), follower(3)], SECOND));
    }

    #[test]
    fn who_led_once_may_not() {
        let former = server(1, &[(1, 4), (2, 4), (2, 6), (2, 6)]);
        let others = |id| server(id, &[(2, 0); 4]);
        let looks = [former, others(2), others(3)];
        assert!(revoked_by_others(&looks, SECOND));
        // Long before that, and long after, it had nothing to do with it.
        assert!(!revoked_by_others(&looks, 20 * SECOND));
    }

    #[test]
    fn nothing_is_explained_by_revocations_that_the_leader_made_too() {
        let former = server(1, &[(1, 4), (2, 4), (2, 6), (2, 6)]);
        let leader = server(2, &[(2, 0), (2, 0), (2, 1), (2, 1)]);
        assert!(!revoked_by_others(&[former, leader, server(3, &[(2, 0); 4])], SECOND));
        assert!(!revoked_by_others(&[vec![], vec![], vec![]], SECOND));
    }
}
