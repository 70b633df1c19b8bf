//! What is broken, where, and for how long: drawn from the seed.

use std::time::Duration;

/// A way to break something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kill,
    Stop,
    StalledDisk,
    FullDisk,
    /// From everybody.
    CutOff,
    CutOffIn,
    CutOffOut,
    /// From its peers alone: its clients still reach it.
    CutOffFromPeers,
    /// Connections stay open, and carry nothing.
    HalfOpen,
    Reset,
    Slow,
    LostPackets,
}

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    StoreLeader,
    Follower,
    Majority,
    Candidate,
    LeadingCandidate,
}

use Kind::*;

const OF_STORES: [Kind; 12] = [
    Kill,
    Stop,
    StalledDisk,
    FullDisk,
    CutOff,
    CutOffIn,
    CutOffOut,
    CutOffFromPeers,
    HalfOpen,
    Reset,
    Slow,
    LostPackets,
];
/// Candidates have no disk and no peers.
const OF_CANDIDATES: [Kind; 9] =
    [Kill, Stop, CutOff, CutOffIn, CutOffOut, HalfOpen, Reset, Slow, LostPackets];

/// One fault to come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) target: Target,
    pub(crate) kind: Kind,
    pub(crate) lasts: Duration,
    /// How long it is quiet before.
    pub(crate) after: Duration,
    /// Chooses among several of the same kind.
    pub(crate) lot: usize,
}

/// Which targets a lane of faults breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Store,
    Candidates,
}

impl Planned {
    /// Draws the next fault of a lane.
    pub(crate) fn draw(side: Side, ttl: Duration, lots: &mut fastrand::Rng) -> Self {
        let (target, kind) = match side {
            Side::Store => {
                let targets = [Target::StoreLeader, Target::Follower, Target::Majority];
                (one_of(&targets, lots), one_of(&OF_STORES, lots))
            }
            Side::Candidates => {
                let targets = [Target::Candidate, Target::LeadingCandidate];
                (one_of(&targets, lots), one_of(&OF_CANDIDATES, lots))
            }
        };
        // Blips, outages that a session survives, and some that none does.
        let lasts = ttl.mul_f64(match lots.u8(..10) {
            0..6 => 0.03 + 0.3 * lots.f64(),
            6..9 => 0.3 + 0.7 * lots.f64(),
            _ => 1.0 + 1.0 * lots.f64(),
        });
        let after = Duration::from_millis(lots.u64(..400));
        Self { target, kind, lasts, after, lot: lots.usize(..) }
    }
}

fn one_of<T: Copy>(all: &[T], lots: &mut fastrand::Rng) -> T {
    all[lots.usize(..all.len())]
}
