//! The rules of the engine and of the backends, each to be broken on purpose, to see whether anybody notices.
//!
//! Without `--cfg tenure_mutants` no rule can be broken, and nothing of this is compiled in.

/// A rule that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// A deadline is counted from before the request is sent, not from its answer.
    CountFromTheSending,
    /// The same for the opening of a session.
    CountOpeningFromTheSending,
    /// An answered heartbeat counts once it is confirmed.
    Confirm,
    /// A confirming read has to be of the heartbeat's epoch.
    CompareEpochs,
    /// A confirming write has to be sent a gap after the answer to the one before.
    KeepTheGap,
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
    /// A leader watches its own entry.
    WatchOwnEntry,
    /// A request whose outcome is unknown is withdrawn.
    ResolveTheUnknown,
    /// On etcd a known entry is deleted before its request is marked as withdrawn.
    DeleteBeforeMarking,
    /// Every term has a token of its own.
    NewTokens,
    /// ZooKeeper's heartbeat is a write, which a quorum has to answer.
    BeatByWriting,
    /// What one server does not answer is asked of another.
    AskElsewhere,
    /// A leadership has one reason for its end, though it and its session may end at once.
    OneReason,
    /// A deadline is moved only from where it was last seen.
    CompareAndSwap,
    /// Work that begins as its leadership ends sees that, or is seen.
    OrderWorkAndLoss,
    /// The watchdog that is told to look again looks, also when it is about to wait.
    RememberTheWake,
    /// The threads of the engine call nothing that a user wrote.
    CallUsersElsewhere,
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

    use super::Rule;
    use crate::{CandidateId, ElectionName, FencingToken};

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Breaks `rule` on this thread, and mends whatever was broken before.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
        TOKENS.take();
    }

    static EVERYWHERE: OnceLock<Rule> = OnceLock::new();

    /// Breaks `rule` in this whole process, for good.
    pub fn break_everywhere(rule: Rule) {
        EVERYWHERE.get_or_init(|| rule);
    }

    /// Whether this rule is broken, on this thread or everywhere.
    pub fn broken(rule: Rule) -> bool {
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
pub use chosen::{break_everywhere, break_rule, broken};

/// No rule is broken.
#[cfg(not(tenure_mutants))]
pub const fn broken(_rule: Rule) -> bool {
    false
}
