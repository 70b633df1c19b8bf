//! Rules of the engine's tasks, each broken on purpose; `cargo xtask races` runs these.

use tenure_core::failpoints::{SafetyRule, disable};

use crate::shutdown::leaves_a_session_that_nobody_keeps;

#[test]
fn a_guard_that_is_made_after_its_task_is_noticed() {
    disable(Some(SafetyRule::GuardBeforeSpawn));
    assert!(leaves_a_session_that_nobody_keeps(), "nobody noticed");
}
