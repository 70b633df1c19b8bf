//! Rules of the engine's tasks, each disabled in a test; `cargo xtask races` runs these tests.

use tenure_core::failpoints::{SafetyRule, disable};

use crate::{
    resume::{leads_by_a_copied_file, leads_by_the_file_of_a_live_process},
    shutdown::leaves_an_orphaned_session,
};

#[test]
fn a_guard_that_is_made_after_its_task_is_detected() {
    disable(Some(SafetyRule::GuardBeforeSpawn));
    assert!(leaves_an_orphaned_session(), "the disabled rule was not detected");
}

/// Hazard G39: with the rule, the second process gets no elector; without it, two lead.
#[test]
fn a_resume_file_that_is_used_without_its_lock_is_detected() {
    assert_eq!(leads_by_the_file_of_a_live_process(), None);
    disable(Some(SafetyRule::LockResumeFile));
    assert!(leads_by_the_file_of_a_live_process().is_some(), "the disabled rule was not detected");
}

/// Hazard G39: with the rule, a copy of the file is ignored; without it, two lead.
#[test]
fn a_resume_file_from_elsewhere_is_detected() {
    disable(Some(SafetyRule::ResumeInPlace));
    assert!(leads_by_a_copied_file().is_some(), "the disabled rule was not detected");
}
