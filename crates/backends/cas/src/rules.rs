//! The safety rules of the recipe. Tests disable one at a time, and check that this is noticed.
//!
//! No rule can be disabled outside the tests of this crate and builds with `--cfg tenure_mutants`, and none of the code for it is compiled.

/// Declares the rules once, as variants and as a list.
macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident,)*) => {
        /// A rule that can be disabled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum CasRule {
            $($(#[$doc])* $rule,)*
        }

        impl CasRule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$rule,)*];
        }
    };
}

rules! {
    /// C10: an election swap extends no window.
    OnlySessionSwapsExtend,
    /// C13: a heartbeat is credited only if the swap that stands was sent by it.
    CreditOwnNonceOnly,
    /// Only a record that this process has written is adopted after a conflict.
    AdoptOwnNonceOnly,
    /// C14: the TTL of a session never changes.
    ImmutableTtl,
    /// C14: a session is timed for its TTL and the drift bound.
    WaitWithDrift,
    /// C1: a higher beat restarts the timer of a session.
    HigherBeatRestarts,
    /// C1: a lower beat than the highest seen is ignored.
    IgnoreLowerBeats,
    /// C16: timers outlive the campaign that started them.
    KeepTimers,
    /// C11: an absent session is ended by a swap before it counts as ended.
    AbsentIsNotEnded,
    /// A session that has stood still is ended by a swap before its slots are removed.
    EndBeforePurge,
    /// Slots ahead are removed only if their own session was read as ended.
    PurgeOnlyEnded,
    /// C12: a withdrawal swaps the record also if the slot is not in it.
    BumpOnWithdrawal,
    /// C12: a withdrawal creates an absent record.
    CreateOnWithdrawal,
    /// C12: no read concludes a withdrawal, a stale one least of all.
    NoReadConcludes,
    /// A new head has a new token.
    NewTokenForHead,
    /// The token rises once, however many slots go.
    OneTokenPerHead,
    /// C5: a new epoch ends every session of an earlier one.
    EpochEndsSessions,
    /// C5: timers start again when a new epoch is seen.
    EpochRestartsTimers,
    /// C5: nobody leads in a new epoch before all windows of earlier ones have closed.
    SettleEpoch,
    /// C5: that wait is for the longest TTL of all sessions in the store.
    SettleLongestTtl,
    /// C5: an epoch is refused that is lower than one in which candidates have led.
    RefuseLowerEpoch,
    /// C15: the epoch is checked inside the swap.
    EpochInsideSwap,
    /// C2: every body has a nonce.
    NonceInBody,
    /// Garbage is ended only after it was timed.
    TimeGarbage,
}

#[cfg(any(test, tenure_mutants))]
mod mutants {
    use std::{cell::Cell, sync::OnceLock};

    use super::CasRule;

    thread_local! {
        static DISABLED: Cell<Option<CasRule>> = const { Cell::new(None) };
    }

    /// Disables `rule` on this thread, and enables the one that was disabled before.
    pub fn disable(rule: Option<CasRule>) {
        DISABLED.set(rule);
    }

    static DISABLED_EVERYWHERE: OnceLock<CasRule> = OnceLock::new();

    /// Disables `rule` on all threads of this process, permanently.
    pub fn disable_everywhere(rule: CasRule) {
        DISABLED_EVERYWHERE.get_or_init(|| rule);
    }

    /// Whether `rule` is disabled, on this thread or everywhere.
    pub fn is_disabled(rule: CasRule) -> bool {
        DISABLED.get() == Some(rule) || DISABLED_EVERYWHERE.get() == Some(&rule)
    }
}

#[cfg(any(test, tenure_mutants))]
pub use mutants::{disable, disable_everywhere, is_disabled};

/// No rule is disabled.
#[cfg(not(any(test, tenure_mutants)))]
pub const fn is_disabled(_rule: CasRule) -> bool {
    false
}
