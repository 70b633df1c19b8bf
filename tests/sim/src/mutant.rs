//! Mutants: each disables one safety rule, of the engine, of a simulated recipe or of `tenure-cas`.

use std::cell::Cell;

use clap::ValueEnum;

#[cfg(tenure_mutants)]
use tenure_cas::rules::CasRule;
#[cfg(tenure_mutants)]
use tenure_core::failpoints::SafetyRule;

#[cfg(tenure_mutants)]
use crate::{cas, wire};
use crate::{options::Store, run::Outcome};

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
    #[cfg(tenure_mutants)]
    Cas(CasRule),
    #[cfg_attr(not(tenure_mutants), expect(dead_code, reason = "only builds with failpoints disable rules"))]
    RecipeRule(RecipeRule),
}

impl Mutant {
    /// Disables this rule on this thread, and enables all others.
    pub(crate) fn choose(chosen: Option<Self>) {
        #[cfg(tenure_mutants)]
        {
            tenure_core::failpoints::disable(match chosen {
                Some(Self::Engine(rule)) => Some(rule),
                Some(Self::RecipeRule(RecipeRule::NeverApplyWithdrawn)) => {
                    Some(SafetyRule::WithdrawUncertainEntries)
                }
                _ => None,
            });
            tenure_cas::rules::disable(match chosen {
                Some(Self::Cas(rule)) => Some(rule),
                _ => None,
            });
        }
        DISABLED.set(match chosen {
            Some(Self::RecipeRule(rule)) => Some(rule),
            _ => None,
        });
    }

    /// The scenario with fixed times that notices it, where random runs do not or hardly ever do.
    pub(crate) fn scenario(self) -> Option<fn(u64, Option<Self>) -> Outcome> {
        match self {
            // The rule exists in the real client only, not in the simulated recipe.
            #[cfg(tenure_mutants)]
            Self::Engine(SafetyRule::DeleteBeforeMarking) => Some(wire::directed),
            #[cfg(tenure_mutants)]
            Self::Cas(rule) if is_directed(rule) => Some(cas::directed),
            _ => None,
        }
    }

    /// The stores over which it is run in turn.
    pub(crate) fn stores(self) -> &'static [Store] {
        match self {
            #[cfg(tenure_mutants)]
            Self::Cas(_) => &[Store::Cas],
            _ => &[Store::Etcd, Store::Zookeeper],
        }
    }

    /// Every mutant.
    #[cfg(tenure_mutants)]
    pub(crate) fn all() -> Vec<Self> {
        let engine = SafetyRule::ALL.iter().copied().filter(|rule| is_simulated(*rule)).map(Self::Engine);
        let recipes = RecipeRule::value_variants().iter().copied().map(Self::RecipeRule);
        // It is no safety rule: a unit test of `tenure-cas` disables it.
        let cas = CasRule::ALL.iter().copied().filter(|rule| *rule != CasRule::IgnoreLowerBeats);
        let cas = cas.map(Self::Cas);
        engine.chain(recipes).chain(cas).collect()
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

/// Whether hundreds of random runs do not notice that this rule is disabled. It takes a request that is carried out at a certain moment, another
/// TTL, a copy of a process, or a store that counts its failovers anew.
#[cfg(tenure_mutants)]
fn is_directed(rule: CasRule) -> bool {
    use CasRule::*;
    matches!(
        rule,
        AdoptOwnNonceOnly
            | AbsentIsNotEnded
            | BumpOnWithdrawal
            | CreateOnWithdrawal
            | EndBeforePurge
            | OneTokenPerHead
            | EpochRestartsTimers
            | SettleLongestTtl
            | RefuseLowerEpoch
            | EpochInsideSwap
    )
}
