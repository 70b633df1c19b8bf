//! Rules of the engine's tasks, each disabled in a test; `cargo xtask races` runs these tests.

use tenure_core::failpoints::{SafetyRule, disable};

use crate::{
    keepalives::{leads_by_keepalives, leads_without_an_entry, works_on_after_its_deadline},
    resume::{leads_by_a_copied_file, leads_by_the_file_of_a_live_process},
    row_store::{
        heartbeats_while_leaving, keeps_the_row_of_a_dropped_wait, overlap_with_a_late_answer,
        overlap_with_a_late_last_answer,
    },
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

/// Hazard E1.
#[tokio::test(start_paused = true)]
async fn a_keepalive_that_extends_the_deadline_is_detected() {
    disable(Some(SafetyRule::KeepalivesExtendNothing));
    assert!(leads_by_keepalives().await, "the disabled rule was not detected");
}

/// Hazard G32: heartbeats that were answered before the entry existed extend its window.
#[tokio::test(start_paused = true)]
async fn a_window_that_opens_before_the_win_is_detected() {
    disable(Some(SafetyRule::OpenWindowOnWin));
    assert!(!overlap_with_a_late_answer().await.is_zero(), "the disabled rule was not detected");
}

/// Hazard G2.
#[tokio::test(start_paused = true)]
async fn a_window_that_is_counted_from_the_answer_is_detected() {
    disable(Some(SafetyRule::WindowFromWinningRequest));
    assert!(!overlap_with_a_late_last_answer().await.is_zero(), "the disabled rule was not detected");
}

/// Hazard G4.
#[tokio::test(start_paused = true)]
async fn a_window_that_opens_without_enforcement_is_detected() {
    disable(Some(SafetyRule::WakeOnOpening));
    assert!(works_on_after_its_deadline().await, "the disabled rule was not detected");
}

/// Hazard G12.
#[tokio::test(start_paused = true)]
async fn a_win_that_is_not_checked_after_the_proof_is_detected() {
    disable(Some(SafetyRule::CheckProvenEntry));
    assert!(leads_without_an_entry().await, "the disabled rule was not detected");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_while_leaving_are_detected() {
    disable(Some(SafetyRule::StopHeartbeatsBeforeLeaving));
    assert!(heartbeats_while_leaving().await > 0, "the disabled rule was not detected");
}

/// Hazard G10.
#[tokio::test(start_paused = true)]
async fn a_dropped_wait_that_is_not_withdrawn_is_detected() {
    disable(Some(SafetyRule::WithdrawWaits));
    assert!(keeps_the_row_of_a_dropped_wait().await, "the disabled rule was not detected");
}
