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
    CountFromTheSending,
    /// An answered heartbeat counts once it is confirmed.
    Confirm,
    /// A confirming read has to be of the heartbeat's term (etcd).
    CompareEpochs,
    /// A keepalive's answer names the term in which it was given (etcd).
    NameTheTerm,
    /// A read that confirms is one that a quorum stands behind (etcd).
    ReadFromAQuorum,
    /// A heartbeat is a write that a quorum answers (ZooKeeper).
    BeatByWriting,
    /// A confirming write is sent a gap after the answer to the one before (ZooKeeper).
    KeepTheGap,
    /// The gap is counted from the answer, not from the question (ZooKeeper).
    CountTheGapFromTheAnswer,
    /// A heartbeat ends with a sync, which the leader answers after all that its follower has told it before (ZooKeeper).
    SyncAfterWriting,
    /// The deadline allows for the drift of clocks.
    AllowForDrift,
    /// A window that has closed is not opened again.
    CloseForGood,
    /// Every check compares the clock.
    CompareTheClock,
    /// Work is dropped by the deadline.
    DropWork,
    /// An entry is removed after its work has stopped.
    StopBeforeLeaving,
    /// A session is closed after all its work has stopped.
    StopBeforeClosing,
    /// Every term has a token of its own.
    NewTokens,
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
            CountFromTheSending,
            Confirm,
            AllowForDrift,
            CloseForGood,
            CompareTheClock,
            DropWork,
            StopBeforeLeaving,
            StopBeforeClosing,
            NewTokens,
            LookOnWinning,
            LookOnEntering,
            Fence,
        ];
        let own: &[Self] = match store {
            Store::Etcd => &[CompareEpochs, NameTheTerm, ReadFromAQuorum],
            Store::Zookeeper => &[BeatByWriting, KeepTheGap, CountTheGapFromTheAnswer, SyncAfterWriting],
        };
        of_both.iter().chain(own).copied().collect()
    }
}
