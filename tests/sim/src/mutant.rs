//! Mutants: each disables one safety rule, of the engine or of a simulated recipe.

use std::cell::Cell;

use clap::ValueEnum;

#[cfg(tenure_mutants)]
use tenure_core::failpoints::SafetyRule;

/// A rule of a store's recipe that can be disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
        let engine = SafetyRule::ALL.iter().copied().filter(|rule| is_simulated(*rule)).map(Self::Engine);
        engine.chain(RecipeRule::value_variants().iter().copied().map(Self::RecipeRule)).collect()
    }
}

/// Whether the simulation can notice that this rule is disabled. `CountLaterHeartbeats` takes a stall of the leader, and the loss of a follower
/// and of the host within milliseconds after it, which 10 000 seeds have not hit: the model notices it. The others concern threads, files and sessions that serve one
/// election (`cargo xtask races`), or the transport to real servers (`cargo xtask trials`).
#[cfg(tenure_mutants)]
fn is_simulated(rule: SafetyRule) -> bool {
    use SafetyRule::*;
    !matches!(
        rule,
        CountLaterHeartbeats
            | SingleLossReason
            | CompareAndSwapDeadline
            | OrderWorkAndLoss
            | KeepWakeups
            | NoUserCodeOnEngine
            | GuardBeforeSpawn
            | HeartbeatByWrite
            | FailOver
            | LockResumeFile
            | ResumeInPlace
            | OpenWindowOnWin
            | WindowFromWinningRequest
            | WithdrawWaits
            | WakeOnOpening
            | StopHeartbeatsBeforeLeaving
            | CheckProvenEntry
    )
}
