//! Sequences of calls and faults, generated and shrunk by proptest, compared with a model of who may lead.
//!
//! `chaos` generates faults for candidates that run by themselves. Here each call is generated too, so that a failure is shrunk
//! to the calls it needs. The default is 256 sequences; set `PROPTEST_CASES=10000` for a long run.

mod model;
mod world;

use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use self::{
    model::{Model, Step},
    world::World,
};

struct Sequences;

impl StateMachineTest for Sequences {
    type SystemUnderTest = World;
    type Reference = Model;

    fn init_test(model: &Model) -> World {
        World::new(model)
    }

    fn apply(mut world: World, model: &Model, step: Step) -> World {
        world.apply(model, step);
        world
    }

    fn teardown(world: World, model: <Model as ReferenceStateMachine>::State) {
        world.finish(model);
    }
}

prop_state_machine! {
    #![proptest_config(Config { max_shrink_iters: 4096, ..Config::default() })]

    /// Promises S1, S2, L1, L2; hazards G5, G7, G9, G10, G14, G19, G21.
    #[test]
    fn the_model_predicts_who_may_lead(sequential 1..40 => Sequences);
}

/// Each of these rules, when disabled, fails within a few thousand sequences.
#[cfg(tenure_mutants)]
#[test]
fn a_disabled_rule_is_detected() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::{
        strategy::{Strategy, ValueTree},
        test_runner::TestRunner,
    };
    use tenure_core::failpoints::{SafetyRule, disable};

    for rule in [
        SafetyRule::CheckClock,
        SafetyRule::DropWorkAtDeadline,
        SafetyRule::StopWorkBeforeLeaving,
        SafetyRule::StopWorkBeforeClosing,
        SafetyRule::WatchOwnEntry,
        SafetyRule::WithdrawUncertainEntries,
        SafetyRule::UniqueTokens,
    ] {
        let mut runner = TestRunner::deterministic();
        let sequences = Model::sequential_strategy(1..40);
        let failed = (1..=5_000).find(|_| {
            let (model, steps, _) = sequences.new_tree(&mut runner).unwrap().current();
            disable(Some(rule));
            let sequence = || Sequences::test_sequential(Config::default(), model, steps, None);
            let outcome = catch_unwind(AssertUnwindSafe(sequence));
            disable(None);
            outcome.is_err()
        });
        let failed = failed.unwrap_or_else(|| panic!("no sequence failed with {rule:?} disabled"));
        println!("{rule:?}: sequence {failed} fails");
    }
}
