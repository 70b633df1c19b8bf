//! The rules of the protocol, each to be broken on purpose.

use clap::ValueEnum;

/// Which store's way of keeping sessions is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Store {
    /// Leases, and a deposed leader that goes on answering keepalives (hazard E14).
    Etcd,
    /// Sessions that followers relay touches of, and a follower that may be cut off (hazard Z18).
    Zookeeper,
}

impl Store {
    /// How long the store keeps a session of which it hears nothing, in ticks of its clock: no longer than it takes
    /// for a heartbeat to be confirmed before the deadline, and to leave more than was left.
    pub(crate) fn ttl(self) -> u8 {
        match self {
            Self::Etcd => 3,
            Self::Zookeeper => 4,
        }
    }
}

/// A rule that can be broken; the names are those of the simulation where both have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// A deadline is counted from before the request is sent, not from its answer.
    DeadlineFromRequestStart,
    /// An answered heartbeat counts once it is confirmed.
    ConfirmHeartbeats,
    /// A confirming read has to be of the heartbeat's term (etcd).
    CompareEpochs,
    /// A keepalive's answer names the term in which it was given (etcd).
    NameTheTerm,
    /// A read that confirms is one that a quorum stands behind (etcd).
    ReadFromAQuorum,
    /// A heartbeat is a write that a quorum answers (ZooKeeper).
    HeartbeatByWrite,
    /// A confirming write is sent a gap after the answer to the one before (ZooKeeper).
    KeepHeartbeatGap,
    /// The gap is counted from the answer, not from the question (ZooKeeper).
    CountTheGapFromTheAnswer,
    /// A heartbeat ends with a sync, which the leader answers after all that its follower has told it before (ZooKeeper).
    SyncAfterWriting,
    /// The deadline allows for the drift of clocks.
    AllowForDrift,
    /// A window that has closed is not opened again.
    NeverReopenWindow,
    /// Every check compares the clock.
    CheckClock,
    /// Work is dropped by the deadline.
    DropWorkAtDeadline,
    /// An entry is removed after its work has stopped.
    StopWorkBeforeLeaving,
    /// A session is closed after all its work has stopped.
    StopWorkBeforeClosing,
    /// Every term has a token of its own.
    UniqueTokens,
    /// When the predecessor went, a waiter looks who stands before it leads.
    LookOnWinning,
    /// Whoever enters looks whether others stand before it.
    LookOnEntering,
    /// The resource refuses a token lower than the highest it has seen.
    Fence,
}

use Rule::*;

impl Rule {
    /// All that mean something on this store.
    pub(crate) fn all_of(store: Store) -> Vec<Self> {
        let of_both = [
            DeadlineFromRequestStart,
            ConfirmHeartbeats,
            AllowForDrift,
            NeverReopenWindow,
            CheckClock,
            DropWorkAtDeadline,
            StopWorkBeforeLeaving,
            StopWorkBeforeClosing,
            UniqueTokens,
            LookOnWinning,
            LookOnEntering,
            Fence,
        ];
        let own: &[Self] = match store {
            Store::Etcd => &[CompareEpochs, NameTheTerm, ReadFromAQuorum],
            Store::Zookeeper => {
                &[HeartbeatByWrite, KeepHeartbeatGap, CountTheGapFromTheAnswer, SyncAfterWriting]
            }
        };
        of_both.iter().chain(own).copied().collect()
    }
}
