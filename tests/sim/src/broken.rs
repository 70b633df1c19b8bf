//! The rules, each broken on purpose: the engine's, and those of the recipes.

use std::cell::Cell;

#[cfg(tenure_mutants)]
use tenure_core::failpoints::SafetyRule;

/// A rule of a store's recipe that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// When the predecessor went, a waiter looks who stands before it leads.
    LookOnWinning,
    /// Whoever enters looks whether others stand before it.
    LookOnEntering,
    /// An entry is known by its request, not by its session alone.
    LeaveByNonce,
    /// A read that confirms is one that a quorum stands behind (etcd).
    ReadFromAQuorum,
    /// A keepalive's answer names the term in which it was given (etcd).
    NameTheTerm,
    /// What was withdrawn cannot be carried out any more; the engine looks for it no more either.
    ForgetNothing,
}

#[cfg_attr(not(tenure_mutants), expect(dead_code, reason = "no rule is broken"))]
pub(crate) const RECIPES: [Recipe; 6] = [
    Recipe::LookOnWinning,
    Recipe::LookOnEntering,
    Recipe::LeaveByNonce,
    Recipe::ReadFromAQuorum,
    Recipe::NameTheTerm,
    Recipe::ForgetNothing,
];

thread_local! {
    static BROKEN: Cell<Option<Recipe>> = const { Cell::new(None) };
}

/// Whether this rule is broken on this thread.
pub(crate) fn broken(rule: Recipe) -> bool {
    BROKEN.get() == Some(rule)
}

/// One rule, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    #[cfg(tenure_mutants)]
    Engine(SafetyRule),
    #[cfg_attr(not(tenure_mutants), expect(dead_code, reason = "no rule is broken"))]
    Recipe(Recipe),
}

impl Mutant {
    /// Breaks this rule on this thread, and no other.
    pub(crate) fn choose(chosen: Option<Self>) {
        #[cfg(tenure_mutants)]
        tenure_core::failpoints::disable(match chosen {
            Some(Self::Engine(rule)) => Some(rule),
            Some(Self::Recipe(Recipe::ForgetNothing)) => Some(SafetyRule::WithdrawUncertainEntries),
            _ => None,
        });
        BROKEN.set(match chosen {
            Some(Self::Recipe(rule)) => Some(rule),
            #[cfg(tenure_mutants)]
            Some(Self::Engine(_)) => None,
            None => None,
        });
    }

    /// Whether the rule is one of a real client's, which the simulated recipes do without.
    pub(crate) fn is_of_a_client(self) -> bool {
        match self {
            #[cfg(tenure_mutants)]
            Self::Engine(rule) => rule == SafetyRule::DeleteBeforeMarking,
            Self::Recipe(_) => false,
        }
    }

    /// Every mutant.
    #[cfg(tenure_mutants)]
    pub(crate) fn all() -> Vec<Self> {
        use SafetyRule::*;
        let engine = [
            DeadlineFromRequestStart,
            OpeningFromRequestStart,
            ConfirmHeartbeats,
            CompareEpochs,
            KeepHeartbeatGap,
            AllowForDrift,
            NeverReopenWindow,
            CheckClock,
            DropWorkAtDeadline,
            StopWorkBeforeLeaving,
            StopWorkBeforeClosing,
            WatchOwnEntry,
            WithdrawUncertainEntries,
            UniqueTokens,
            DeleteBeforeMarking,
        ];
        engine.map(Self::Engine).into_iter().chain(RECIPES.map(Self::Recipe)).collect()
    }
}
