//! The rules of the compare-and-swap recipe, each of which can be disabled.

use clap::ValueEnum;

/// A rule that can be disabled. The numbers are those of the recipe's rules in `docs/assurance/compare-and-swap.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Rule {
    /// 1: a deadline allows for a slow clock.
    DeadlineWithDrift,
    /// 1: a deadline counts from before the session swap was sent, not from its answer.
    DeadlineFromRequestStart,
    /// 1: a swap of the election record extends no window, not even the one that wins (hazard C10).
    CreditSessionSwapsOnly,
    /// 2: a challenger's wait allows for a fast clock (hazard C14).
    WaitWithDrift,
    /// 2: a wait begins with a fresh read.
    FreshReadStartsTimer,
    /// 2: a wait counts for the beat that it began with, not for a later one.
    NewBeatRestartsTimer,
    /// 2: the TTL of a session never changes (hazard C14).
    ImmutableTtl,
    /// 3: a session that is absent has not ended: a replica may lag (hazard C11).
    AbsentIsNotEnded,
    /// 3: a session that has stood still is ended by a swap before its slots are removed.
    EndSessionBeforePurge,
    /// 3: a session that has ended is never live again.
    EndIsPermanent,
    /// 4: a slot is removed after `ended` was read, not after the swap to `ended` was sent.
    ReadEndedBeforePurge,
    /// 4: an owner removes its slot after its work has stopped.
    StopWorkBeforeLeaving,
    /// 4: a new head raises the token.
    RaiseToken,
    /// 4: the token is computed from the record that is swapped, not from an earlier read.
    TokenFromSwappedRecord,
    /// 5: a withdrawal is concluded by a swap, not by a read that shows no slot (hazard C12).
    ConcludeBySwap,
    /// 5: a withdrawal changes the version even if the record has no slot of the request (hazard C6).
    BumpOnWithdrawal,
    /// 5: a withdrawal creates the record if there is none (hazard C12).
    CreateOnWithdrawal,
    /// 5: no request to enter is sent once a withdrawal has begun.
    NoEnterAfterWithdrawal,
    /// 6: after a conflict the sending of the beat that is found counts, not that of a later one (hazard C13).
    CreditFoundBeat,
    /// 7: an epoch raises the token above all tokens of earlier epochs (hazard C5).
    EpochInToken,
    /// 7: the store compares the epoch in the same step as the version (hazard C15).
    EpochInsideSwap,
    /// 7: a higher epoch ends sessions, restarts timers and raises the token.
    ObserveEpoch,
    /// 7: every timer starts anew when a higher epoch is seen.
    EpochRestartsTimers,
    /// 7: nobody leads in a new epoch before a wait for leaders whose entries are lost.
    WaitForLostEntries,
    /// No two bodies are equal: each has a nonce (hazard C2).
    NonceInBody,
    /// 10: only a session record that says `ended` is deleted, whatever its age.
    EndBeforeDelete,
}

impl Rule {
    /// Whether only a failover can show that the rule is disabled.
    pub(crate) fn is_about_epochs(self) -> bool {
        use Rule::*;
        matches!(
            self,
            EpochInToken | EpochInsideSwap | ObserveEpoch | EpochRestartsTimers | WaitForLostEntries
        )
    }
}
