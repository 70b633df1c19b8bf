//! Which faults are injected, where, and for how long: drawn from the seed.

use std::time::Duration;

use crate::options::StoreKind;

/// What a fault does to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disruption {
    Kill,
    Freeze,
    StalledDisk,
    FullDisk,
    /// All packets are dropped.
    Partition,
    InboundPartition,
    OutboundPartition,
    /// Packets between a server and its peers are dropped; clients still reach it.
    PartitionFromPeers,
    /// Connections stay open and carry nothing.
    HalfOpen,
    Reset,
    Slow,
    LostPackets,
    /// Packets between a server and its clients are dropped; its peer still reaches it.
    PartitionFromClients,
    /// The server itself ends the connections of all clients.
    Terminate,
    /// The replica does not follow any more, and is promoted then.
    Failover,
}

/// What a fault disrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    StoreLeader,
    Follower,
    Majority,
    /// Both API servers of Kubernetes.
    ApiServers,
    Candidate,
    LeadingCandidate,
}

use Disruption::*;

const SERVER_DISRUPTIONS: [Disruption; 12] = [
    Kill,
    Freeze,
    StalledDisk,
    FullDisk,
    Partition,
    InboundPartition,
    OutboundPartition,
    PartitionFromPeers,
    HalfOpen,
    Reset,
    Slow,
    LostPackets,
];
/// On PostgreSQL.
const POSTGRES_DISRUPTIONS: [Disruption; 14] = [
    Kill,
    Freeze,
    StalledDisk,
    FullDisk,
    Partition,
    InboundPartition,
    OutboundPartition,
    PartitionFromPeers,
    PartitionFromClients,
    HalfOpen,
    Reset,
    Slow,
    LostPackets,
    Terminate,
];
/// Of a Kubernetes API server. Its peer is the etcd.
const API_SERVER_DISRUPTIONS: [Disruption; 11] = [
    Kill,
    Freeze,
    Partition,
    InboundPartition,
    OutboundPartition,
    PartitionFromPeers,
    PartitionFromClients,
    HalfOpen,
    Reset,
    Slow,
    LostPackets,
];
/// Of the etcd of Kubernetes, which has no other clients than the API servers.
const KUBERNETES_ETCD_DISRUPTIONS: [Disruption; 6] =
    [Kill, Freeze, StalledDisk, FullDisk, Partition, LostPackets];
/// Candidates have no disk and no peers.
const CANDIDATE_DISRUPTIONS: [Disruption; 9] =
    [Kill, Freeze, Partition, InboundPartition, OutboundPartition, HalfOpen, Reset, Slow, LostPackets];

/// A fault that will be injected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedFault {
    pub(crate) target: Target,
    pub(crate) disruption: Disruption,
    pub(crate) duration: Duration,
    /// The time since the lane's previous fault has ended.
    pub(crate) delay: Duration,
    /// A random number that selects one of several targets of the same kind.
    pub(crate) selector: usize,
}

/// Which targets the faults of a lane have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetGroup {
    Servers,
    Candidates,
}

impl PlannedFault {
    /// Draws the next fault of a lane.
    pub(crate) fn draw(group: TargetGroup, store: StoreKind, ttl: Duration, rng: &mut fastrand::Rng) -> Self {
        let (target, disruption) = match group {
            // The primary more often than its replica, and one failover in five by an operator.
            TargetGroup::Servers if store == StoreKind::Postgres && rng.u8(..5) == 0 => {
                (Target::StoreLeader, Failover)
            }
            TargetGroup::Servers if store == StoreKind::Postgres => {
                let targets = [Target::StoreLeader, Target::StoreLeader, Target::Follower, Target::Majority];
                (one_of(&targets, rng), one_of(&POSTGRES_DISRUPTIONS, rng))
            }
            TargetGroup::Servers if store == StoreKind::Kubernetes => match rng.u8(..3) {
                0 => (Target::StoreLeader, one_of(&KUBERNETES_ETCD_DISRUPTIONS, rng)),
                1 => (Target::ApiServers, one_of(&API_SERVER_DISRUPTIONS, rng)),
                _ => (Target::Follower, one_of(&API_SERVER_DISRUPTIONS, rng)),
            },
            TargetGroup::Servers => {
                let targets = [Target::StoreLeader, Target::Follower, Target::Majority];
                (one_of(&targets, rng), one_of(&SERVER_DISRUPTIONS, rng))
            }
            TargetGroup::Candidates => {
                let targets = [Target::Candidate, Target::LeadingCandidate];
                (one_of(&targets, rng), one_of(&CANDIDATE_DISRUPTIONS, rng))
            }
        };
        // Six in ten are short, three are shorter than the TTL, and one is longer than any session.
        let duration = ttl.mul_f64(match rng.u8(..10) {
            0..6 => 0.03 + 0.3 * rng.f64(),
            6..9 => 0.3 + 0.7 * rng.f64(),
            _ => 1.0 + 1.0 * rng.f64(),
        });
        let delay = Duration::from_millis(rng.u64(..400));
        Self { target, disruption, duration, delay, selector: rng.usize(..) }
    }
}

fn one_of<T: Copy>(all: &[T], rng: &mut fastrand::Rng) -> T {
    all[rng.usize(..all.len())]
}
