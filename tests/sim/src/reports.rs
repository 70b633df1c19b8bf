//! How followers report to the leader which sessions they have touched (ZooKeeper).
//!
//! The leader pings its followers every half tick. A follower answers with the sessions that have sent something since. Pings, commits and
//! their answers keep their order on the connection between the two, each direction of which may be slow. A leader that stalls commits
//! nothing meanwhile. Afterwards it sends a due ping late, and may commit a write before it.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::cluster::{Cluster, MEMBERS, State};

/// Within this time after a stall, the leader sends a ping that is due.
const LATE_PING: Duration = Duration::from_millis(20);
/// How long after a stall a report counts as late.
const AFTER_STALL: Duration = Duration::from_millis(400);

/// The touched sessions between the followers and the leader, by follower.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Sessions that the follower has touched, and has not reported.
    unreported: [Vec<u64>; MEMBERS],
    /// The number of pings on their way to the follower.
    pings: [usize; MEMBERS],
    /// Sessions in reports on their way to the leader.
    reported: [Vec<u64>; MEMBERS],
    /// Whether the leader stalls.
    pub(crate) stalled: bool,
    /// When the last stall ended.
    stalled_until: Option<Instant>,
}

impl State {
    /// The leader receives a request through `member`: reports that were sent before arrive first.
    pub(crate) fn receive_reports(&mut self, member: usize) {
        let reported = std::mem::take(&mut self.reports.reported[member]);
        if self.is_connected(member) {
            for session in reported {
                drop(self.touch(session));
            }
        }
    }

    /// `member` has received a request of `session`.
    pub(crate) fn touch_at(&mut self, member: usize, session: u64) {
        if self.leader == Some(member) {
            drop(self.touch(session));
        } else {
            self.reports.unreported[member].push(session);
        }
    }

    /// The leader commits a write of a client of `member`. Pings that were sent before arrive there first.
    pub(crate) fn commit(&mut self, member: usize) {
        self.deliver_pings(member);
    }

    /// The pings on their way to `member` arrive, and it sends its report.
    fn deliver_pings(&mut self, member: usize) {
        if std::mem::take(&mut self.reports.pings[member]) > 0 && self.is_connected(member) {
            let unreported = std::mem::take(&mut self.reports.unreported[member]);
            self.reports.reported[member].extend(unreported);
        }
    }

    /// Whether the leader has stalled a moment ago, and the report that `member` has sent since has not arrived.
    pub(crate) fn has_late_report(&self, member: usize) -> bool {
        self.reports.stalled_until.is_some_and(|end| end.elapsed() < AFTER_STALL)
            && !self.reports.reported[member].is_empty()
    }

    fn is_connected(&self, member: usize) -> bool {
        let at = self.members[member];
        !at.cut_off && !at.frozen && self.leader.is_some()
    }
}

/// Pings the followers, until it is aborted. `ttl` is that of all sessions, which is at least two ticks.
pub(crate) async fn ping_followers(cluster: Cluster, ttl: Duration, rate: f64, mut random: Rng) {
    loop {
        tokio::time::sleep((ttl / 4).mul_f64(0.99 / rate)).await;
        if random.u8(..15) == 0 {
            cluster.change_members(|state| state.reports.stalled = true);
            tokio::time::sleep((ttl / 2).mul_f64(random.f64())).await;
            cluster.change_members(|state| {
                state.reports.stalled = false;
                state.reports.stalled_until = Some(Instant::now());
            });
            tokio::time::sleep(LATE_PING).await;
        }
        for member in 0..MEMBERS {
            cluster.change(|state| state.reports.pings[member] += 1);
            // Some travel slowly.
            let slow = if random.bool() { 0 } else { random.u64(..300) };
            tokio::spawn(report(cluster.clone(), member, Duration::from_millis(slow)));
        }
    }
}

/// The ping arrives at `member`, and its report at the leader.
async fn report(cluster: Cluster, member: usize, travel: Duration) {
    tokio::time::sleep(travel).await;
    cluster.change(|state| state.deliver_pings(member));
    tokio::time::sleep(travel).await;
    cluster.change(|state| state.receive_reports(member));
}
