//! Mutants: each disables one safety rule, of the engine or of a simulated recipe.

use std::cell::Cell;

#[cfg(tenure_mutants)]
use tenure_core::failpoints::SafetyRule;

/// A rule of a store's recipe that can be disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecipeRule {
    /// When the predecessor is gone, a waiting candidate reads the queue before it leads.
    ReadOnWinning,
    /// An entering candidate checks whether others are ahead of it.
    ReadOnEntering,
    /// An entry is identified by its request, not by its session alone.
    LeaveByNonce,
    /// A confirming read is linearizable (etcd).
    QuorumRead,
    /// A keepalive's answer contains the raft term in which it was given (etcd).
    ReportTerm,
    /// A withdrawn request is never applied. Disabling it also disables the engine's own withdrawal.
    NeverApplyWithdrawn,
}

#[cfg_attr(not(tenure_mutants), expect(dead_code, reason = "only builds with failpoints disable rules"))]
pub(crate) const RECIPE_RULES: [RecipeRule; 6] = [
    RecipeRule::ReadOnWinning,
    RecipeRule::ReadOnEntering,
    RecipeRule::LeaveByNonce,
    RecipeRule::QuorumRead,
    RecipeRule::ReportTerm,
    RecipeRule::NeverApplyWithdrawn,
];

thread_local! {
    static DISABLED: Cell<Option<RecipeRule>> = const { Cell::new(None) };
}

/// Whether this rule is disabled on this thread.
pub(crate) fn is_disabled(rule: RecipeRule) -> bool {
    DISABLED.get() == Some(rule)
}

/// One disabled rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    #[cfg(tenure_mutants)]
    Engine(SafetyRule),
    #[cfg_attr(not(tenure_mutants), expect(dead_code, reason = "only builds with failpoints disable rules"))]
    RecipeRule(RecipeRule),
}

impl Mutant {
    /// Disables this rule on this thread, and enables all others.
    pub(crate) fn choose(chosen: Option<Self>) {
        #[cfg(tenure_mutants)]
        tenure_core::failpoints::disable(match chosen {
            Some(Self::Engine(rule)) => Some(rule),
            Some(Self::RecipeRule(RecipeRule::NeverApplyWithdrawn)) => {
                Some(SafetyRule::WithdrawUncertainEntries)
            }
            _ => None,
        });
        DISABLED.set(match chosen {
            Some(Self::RecipeRule(rule)) => Some(rule),
            #[cfg(tenure_mutants)]
            Some(Self::Engine(_)) => None,
            None => None,
        });
    }

    /// Whether the rule exists in the real client only, not in the simulated recipes.
    pub(crate) fn needs_real_client(self) -> bool {
        match self {
            #[cfg(tenure_mutants)]
            Self::Engine(rule) => rule == SafetyRule::DeleteBeforeMarking,
            Self::RecipeRule(_) => false,
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
        engine.map(Self::Engine).into_iter().chain(RECIPE_RULES.map(Self::RecipeRule)).collect()
    }
}
