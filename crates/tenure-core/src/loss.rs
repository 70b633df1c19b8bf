//! The reasons for which a leadership ends.

use std::fmt;

/// The reason for which a leadership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// No confirmed heartbeat extended the deadline in time; its grace period has begun.
    Deadline,
    /// The entry no longer exists in the store, or no longer belongs to this session.
    EntryGone,
    /// The store says that the session has ended.
    SessionExpired,
    /// A heartbeat failed, and the elector is configured to step down then
    /// ([`OnDisconnect::StepDown`](crate::OnDisconnect::StepDown)).
    Disconnected,
    /// The time of day ran ahead of the monotonic clock, as it does after a virtual machine was paused.
    ClockJump,
    /// It was resigned in this process: by [`Leadership::resign`](crate::Leadership::resign), or by
    /// [`LeadershipHandle::request_resign`](crate::LeadershipHandle::request_resign).
    Resigned,
    /// The leader was asked to resign ([`Elector::request_resign`](crate::Elector::request_resign)).
    ResignRequested,
    /// The parent leadership is over ([`Leadership::with_parent`](crate::Leadership::with_parent)).
    ParentLost,
    /// The guard was dropped.
    Dropped,
    /// The elector was closed.
    Closed,
    /// The engine gave up the session: a task ended without a result (a backend panicked, or its runtime was shut
    /// down), or the store refused to remove an entry.
    SessionGivenUp,
    /// This process was forked from the leader. The leader itself is not affected.
    ///
    /// A child that was made by `fork`, and has not called `exec`, has a copy of the guard, but neither the threads of the
    /// engine nor the session.
    Forked,
}

impl LossReason {
    /// A stable name, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::EntryGone => "entry_gone",
            Self::SessionExpired => "session_expired",
            Self::Disconnected => "disconnected",
            Self::ClockJump => "clock_jump",
            Self::Resigned => "resigned",
            Self::ResignRequested => "resign_requested",
            Self::ParentLost => "parent_lost",
            Self::Dropped => "dropped",
            Self::Closed => "closed",
            Self::SessionGivenUp => "session_given_up",
            Self::Forked => "forked",
        }
    }

    /// Whether another candidate may lead already.
    pub(crate) fn successor_may_lead(self) -> bool {
        matches!(self, Self::EntryGone | Self::SessionExpired | Self::ClockJump)
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "no heartbeat was confirmed in time",
            Self::EntryGone => "its entry is gone from the store",
            Self::SessionExpired => "its session has expired",
            Self::Disconnected => "a heartbeat failed",
            Self::ClockJump => "the time of day jumped ahead of the machine's clock",
            Self::Resigned => "it was resigned",
            Self::ResignRequested => "it was asked to resign",
            Self::ParentLost => "its parent leadership is over",
            Self::Dropped => "its guard was dropped",
            Self::Closed => "the elector was closed",
            Self::SessionGivenUp => "its session was given up",
            Self::Forked => "this process was forked from the leader",
        })
    }
}
