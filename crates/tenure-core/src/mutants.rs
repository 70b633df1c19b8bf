//! The engine's rules, each to be broken on purpose, to see whether anybody notices.
//!
//! Without `--cfg tenure_mutants` no rule can be broken, and nothing of this is compiled in.

/// A rule that can be broken.
#[cfg_attr(not(tenure_mutants), expect(dead_code, unreachable_pub, reason = "no rule can be broken"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
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
    /// A confirming write has to be sent a gap later.
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
    /// Every term has a token of its own.
    NewTokens,
}

#[cfg(tenure_mutants)]
mod chosen {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeMap,
    };

    use super::Rule;
    use crate::{CandidateId, ElectionName, FencingToken};

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Breaks `rule` on this thread, and mends whatever was broken before.
    #[doc(hidden)]
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
        TOKENS.take();
    }

    pub(crate) fn broken(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
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
pub use chosen::break_rule;
#[cfg(tenure_mutants)]
pub(crate) use chosen::{broken, first_token};

/// No rule is broken.
#[cfg(not(tenure_mutants))]
pub(crate) const fn broken(_rule: Rule) -> bool {
    false
}
