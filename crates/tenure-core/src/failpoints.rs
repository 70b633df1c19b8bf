//! The safety rules of the engine and of the backends. Mutation tests disable one at a time, and check that a test fails.
//!
//! Without `--cfg tenure_mutants` no rule can be disabled, and none of the code for it is compiled.

/// Declares the rules once, as variants and as a list.
macro_rules! safety_rules {
    ($($(#[$doc:meta])* $rule:ident,)*) => {
        /// A rule that can be disabled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum SafetyRule {
            $($(#[$doc])* $rule,)*
        }

        impl SafetyRule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$rule,)*];
        }
    };
}

safety_rules! {
    /// A deadline is counted from the instant before its request is sent, not from the answer.
    DeadlineFromRequestStart,
    /// The first deadline of a session is counted from the instant before the request that opens it.
    OpeningFromRequestStart,
    /// A heartbeat extends the deadline only once it is confirmed.
    ConfirmHeartbeats,
    /// A request that only keeps the session alive extends no deadline.
    KeepalivesExtendNothing,
    /// The window of a session that serves one election is not open before it has won that election.
    OpenWindowOnWin,
    /// That window is counted from before the first attempt of the write that won.
    WindowFromWinningRequest,
    /// The watchdog is woken when a window opens, to enforce its deadline.
    WakeOnOpening,
    /// The heartbeats of a session that serves one election stop before its entry is removed.
    StopHeartbeatsBeforeLeaving,
    /// A candidate that waits for a proven heartbeat checks its entry again before it leads.
    CheckProvenEntry,
    /// A wait that was dropped is withdrawn, if it may have created the entry.
    WithdrawWaits,
    /// etcd: a read confirms a heartbeat only if both have the same epoch.
    CompareEpochs,
    /// ZooKeeper: a heartbeat is proven by later ones, the first of which is sent a gap after its answer.
    KeepHeartbeatGap,
    /// ZooKeeper: a heartbeat is proven by three later ones, not by two.
    CountLaterHeartbeats,
    /// The deadline allows for the drift bound.
    AllowForDrift,
    /// A leadership window that has closed is never reopened.
    NeverReopenWindow,
    /// Every check compares the clock with the deadline.
    CheckClock,
    /// Work is dropped by the deadline.
    DropWorkAtDeadline,
    /// An entry is removed only after its work has stopped.
    StopWorkBeforeLeaving,
    /// A session is closed only after all of its work has stopped.
    StopWorkBeforeClosing,
    /// A leader watches its own entry.
    WatchOwnEntry,
    /// A request whose outcome is unknown is withdrawn.
    WithdrawUncertainEntries,
    /// etcd: a known entry is deleted before its request is marked as withdrawn.
    DeleteBeforeMarking,
    /// Every term has a new fencing token.
    UniqueTokens,
    /// ZooKeeper: a heartbeat is a write, which a quorum has to answer.
    HeartbeatByWrite,
    /// A request that one server does not answer is sent to another.
    FailOver,
    /// A leadership has one loss reason, even when it and its session end at the same time.
    SingleLossReason,
    /// A deadline is extended by compare-and-swap.
    CompareAndSwapDeadline,
    /// Work that begins while its leadership ends either sees the loss, or is seen by the task that ends it.
    OrderWorkAndLoss,
    /// A wake-up of the watchdog is not lost when the watchdog is about to wait.
    KeepWakeups,
    /// The threads of the engine call no code of the application.
    NoUserCodeOnEngine,
    /// The guard that cleans up after a task is made before the task is spawned.
    GuardBeforeSpawn,
    /// The sessions in a resume file are ended only by the process that holds its lock.
    LockResumeFile,
    /// The sessions in a resume file are ended only if it was written on this machine since its start, and is no copy.
    ResumeInPlace,
}

#[cfg(tenure_mutants)]
mod mutants {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeMap,
        sync::OnceLock,
    };

    use super::SafetyRule;
    use crate::{CandidateId, ElectionName, FencingToken};

    thread_local! {
        static DISABLED: Cell<Option<SafetyRule>> = const { Cell::new(None) };
    }

    /// Disables `rule` on this thread, and enables the one that was disabled before.
    pub fn disable(rule: Option<SafetyRule>) {
        DISABLED.set(rule);
        TOKENS.take();
    }

    static DISABLED_EVERYWHERE: OnceLock<SafetyRule> = OnceLock::new();

    /// Disables `rule` on all threads of this process, permanently.
    pub fn disable_everywhere(rule: SafetyRule) {
        DISABLED_EVERYWHERE.get_or_init(|| rule);
    }

    /// Whether `rule` is disabled, on this thread or everywhere.
    pub fn is_disabled(rule: SafetyRule) -> bool {
        DISABLED.get() == Some(rule) || DISABLED_EVERYWHERE.get() == Some(&rule)
    }

    thread_local! {
        static TOKENS: RefCell<BTreeMap<(ElectionName, CandidateId), FencingToken>> = RefCell::default();
    }

    /// The token of the first term of this candidate.
    pub(crate) fn first_token(
        election: &ElectionName,
        candidate: &CandidateId,
        token: FencingToken,
    ) -> FencingToken {
        let key = (election.clone(), candidate.clone());
        TOKENS.with_borrow_mut(|tokens| *tokens.entry(key).or_insert(token))
    }
}

#[cfg(tenure_mutants)]
pub(crate) use mutants::first_token;
#[cfg(tenure_mutants)]
pub use mutants::{disable, disable_everywhere, is_disabled};

/// No rule is disabled.
#[cfg(not(tenure_mutants))]
pub const fn is_disabled(_rule: SafetyRule) -> bool {
    false
}
