//! One scenario for each rule. With the rule a promise holds; with the rule disabled the same scenario breaks it.
//!
//! Two candidates lead when one is at the head while the window of an earlier head is still open.
//!
//! Time is tokio's, which has to be paused.

pub(crate) mod host;
mod scenario;

use futures::{FutureExt as _, future::LocalBoxFuture};

use crate::rules::CasRule;

/// A scenario that shows why a rule is needed.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The rule without which it breaks a promise.
    pub rule: CasRule,
    run: fn() -> LocalBoxFuture<'static, bool>,
}

impl Scenario {
    /// Runs it, and returns whether a promise was broken.
    pub async fn breaks_a_promise(self) -> bool {
        (self.run)().await
    }
}

/// Makes the list of scenarios, and a test of each.
macro_rules! scenarios {
    ($($name:ident: $rule:ident;)*) => {
        impl Scenario {
            /// All scenarios.
            pub const ALL: &'static [Self] = &[
                $(Self {
                    name: stringify!($name),
                    rule: CasRule::$rule,
                    run: || scenario::$name().boxed_local(),
                },)*
            ];
        }

        #[cfg(test)]
        mod tests {
            use super::*;
            use crate::rules::disable;

            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    assert!(!scenario::$name().await, "a promise is broken");
                    disable(Some(CasRule::$rule));
                    let is_broken = scenario::$name().await;
                    disable(None);
                    assert!(is_broken, "the disabled rule {:?} was not detected", CasRule::$rule);
                }
            )*

            /// Every rule has a scenario here, or a unit test that disables it.
            #[test]
            fn every_rule_is_tested() {
                // In `timers.rs`.
                let elsewhere = [CasRule::IgnoreLowerBeats];
                for rule in CasRule::ALL {
                    let is_here = Scenario::ALL.iter().any(|scenario| scenario.rule == *rule);
                    assert!(is_here || elsewhere.contains(rule), "{rule:?} has no test");
                }
            }
        }
    };
}

scenarios! {
    both_clocks_drift: WaitWithDrift;
    the_ttl_is_immutable: ImmutableTtl;
    a_beat_restarts_the_timer: HigherBeatRestarts;
    one_shot_campaigns_take_over: KeepTimers;
    an_absent_session_has_not_ended: AbsentIsNotEnded;
    a_session_is_ended_before_its_slot_goes: EndBeforePurge;
    a_silent_session_is_not_removed: PurgeOnlyEnded;
    a_withdrawal_fences_a_late_enter: BumpOnWithdrawal;
    a_withdrawal_creates_an_absent_record: CreateOnWithdrawal;
    a_read_concludes_no_withdrawal: NoReadConcludes;
    a_new_epoch_ends_sessions: EpochEndsSessions;
    a_new_epoch_restarts_timers: EpochRestartsTimers;
    a_lost_enter_keeps_its_window: SettleEpoch;
    the_longest_ttl_is_waited_for: SettleLongestTtl;
    an_epoch_that_begins_again_is_refused: RefuseLowerEpoch;
    the_epoch_is_checked_inside_the_swap: EpochInsideSwap;
    equal_bodies_are_an_aba: NonceInBody;
    garbage_is_timed: TimeGarbage;
    an_election_swap_extends_nothing: OnlySessionSwapsExtend;
    an_earlier_beat_is_not_credited_later: CreditOwnNonceOnly;
    two_copies_of_a_process_do_not_both_lead_on: AdoptOwnNonceOnly;
    a_new_head_has_a_new_token: NewTokenForHead;
    the_token_rises_once: OneTokenPerHead;
}
