//! The rules of the engine and of the backends, each to be is_disabled on purpose, to see whether anybody notices.
//!
//! Without `--cfg tenure_mutants` no rule can be is_disabled, and nothing of this is compiled in.

/// A rule that can be is_disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SafetyRule {
    /// A deadline is counted from before the request is sent, not from its answer.
    DeadlineFromRequestStart,
    /// The same for the opening of a session.
    OpeningFromRequestStart,
    /// An answered heartbeat counts once it is confirmed.
    ConfirmHeartbeats,
    /// A confirming read has to be of the heartbeat's epoch.
    CompareEpochs,
    /// A confirming write has to be sent a gap after the answer to the one before.
    KeepHeartbeatGap,
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
    /// A leader watches its own entry.
    WatchOwnEntry,
    /// A request whose outcome is unknown is withdrawn.
    WithdrawUncertainEntries,
    /// On etcd a known entry is deleted before its request is marked as withdrawn.
    DeleteBeforeMarking,
    /// Every term has a token of its own.
    UniqueTokens,
    /// ZooKeeper's heartbeat is a write, which a quorum has to answer.
    HeartbeatByWrite,
    /// What one server does not answer is asked of another.
    FailOver,
    /// A leadership has one reason for its end, though it and its session may end at once.
    SingleLossReason,
    /// A deadline is moved only from where it was last seen.
    CompareAndSwapDeadline,
    /// Work that begins as its leadership ends sees that, or is seen.
    OrderWorkAndLoss,
    /// The watchdog that is told to look again looks, also when it is about to wait.
    KeepWakeups,
    /// The threads of the engine call nothing that a user wrote.
    NoUserCodeOnEngine,
    /// What has to happen at a task's end belongs to the task before it is spawned.
    GuardBeforeSpawn,
}

#[cfg(tenure_mutants)]
mod chosen {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeMap,
        sync::OnceLock,
    };

    use super::SafetyRule;
    use crate::{CandidateId, ElectionName, FencingToken};

    thread_local! {
        static BROKEN: Cell<Option<SafetyRule>> = const { Cell::new(None) };
    }

    /// Breaks `rule` on this thread, and mends whatever was is_disabled before.
    pub fn disable(rule: Option<SafetyRule>) {
        BROKEN.set(rule);
        TOKENS.take();
    }

    static EVERYWHERE: OnceLock<SafetyRule> = OnceLock::new();

    /// Breaks `rule` in this whole process, for good.
    pub fn disable_everywhere(rule: SafetyRule) {
        EVERYWHERE.get_or_init(|| rule);
    }

    /// Whether this rule is is_disabled, on this thread or everywhere.
    pub fn is_disabled(rule: SafetyRule) -> bool {
        BROKEN.get() == Some(rule) || EVERYWHERE.get() == Some(&rule)
    }

    thread_local! {
        static TOKENS: RefCell<BTreeMap<(ElectionName, CandidateId), FencingToken>> = RefCell::default();
    }

    /// The token that this candidate had when it led first.
    pub(crate) fn first_token(
        election: &ElectionName,
        candidate: &CandidateId,
        token: FencingToken,
    ) -> FencingToken {
        let whose = (election.clone(), candidate.clone());
        TOKENS.with_borrow_mut(|tokens| *tokens.entry(whose).or_insert(token))
    }
}

#[cfg(tenure_mutants)]
pub(crate) use chosen::first_token;
#[cfg(tenure_mutants)]
pub use chosen::{disable, disable_everywhere, is_disabled};

/// No rule is is_disabled.
#[cfg(not(tenure_mutants))]
pub const fn is_disabled(_rule: SafetyRule) -> bool {
    false
}
