//! Rules of the engine's tasks, each disabled in a test; `cargo xtask races` runs these tests.

use tenure_core::failpoints::{SafetyRule, disable};

use crate::shutdown::leaves_an_orphaned_session;

#[test]
fn a_guard_that_is_made_after_its_task_is_detected() {
    disable(Some(SafetyRule::GuardBeforeSpawn));
    assert!(leaves_an_orphaned_session(), "the disabled rule was not detected");
}
