//! The safety rules of the protocol, each of which can be disabled.

use clap::ValueEnum;

/// The store whose sessions are modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Store {
    /// Leases, and a deposed leader that goes on answering keepalives (hazard E14).
    Etcd,
    /// Sessions that followers relay touches of, and a follower that may be cut off (hazard Z18).
    Zookeeper,
}

impl Store {
    /// The TTL of a session, in ticks of the store's clock: the shortest in which a heartbeat can be confirmed before the deadline and
    /// extend it.
    pub(crate) fn ttl(self) -> u8 {
        match self {
            Self::Etcd => 3,
            Self::Zookeeper => 4,
        }
    }
}

/// A rule that can be disabled. Rules that the engine or the simulation has, too, have the same names there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Rule {
    /// A deadline is counted from before the request is sent, not from its answer.
    DeadlineFromRequestStart,
    /// An answered heartbeat counts once it is confirmed.
    ConfirmHeartbeats,
    /// A confirming read has to be of the heartbeat's term (etcd).
    CompareEpochs,
    /// A keepalive's answer contains the raft term in which it was given (etcd).
    ReportTerm,
    /// A confirming read is linearizable (etcd).
    QuorumRead,
    /// A heartbeat is a write that a quorum answers (ZooKeeper).
    HeartbeatByWrite,
    /// The first write that counts is sent a gap after the answer to the heartbeat (ZooKeeper).
    KeepHeartbeatGap,
    /// The gap is measured from the answer, not from the request (ZooKeeper).
    MeasureGapFromAnswer,
    /// A heartbeat is proven by three later ones, not by two: the first shows that the leader runs, the second follows its ping, and the
    /// third follows the follower's report (ZooKeeper).
    CountLaterHeartbeats,
    /// A heartbeat is proven by more than one later one (ZooKeeper).
    CountSecondHeartbeat,
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
    /// When the predecessor is gone, a waiting candidate reads the queue before it leads.
    ReadOnWinning,
    /// An entering candidate checks whether others are ahead of it.
    ReadOnEntering,
    /// The resource refuses a token lower than the highest it has seen.
    Fence,
}

impl Rule {
    /// All rules that this store's protocol has.
    pub(crate) fn all_of(store: Store) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|rule| rule.applies_to(store)).collect()
    }

    fn applies_to(self, store: Store) -> bool {
        use Rule::*;
        match self {
            CompareEpochs | ReportTerm | QuorumRead => store == Store::Etcd,
            HeartbeatByWrite | KeepHeartbeatGap | MeasureGapFromAnswer | CountLaterHeartbeats
            | CountSecondHeartbeat => store == Store::Zookeeper,
            _ => true,
        }
    }
}
