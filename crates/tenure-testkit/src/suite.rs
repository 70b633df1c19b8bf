//! The conformance suite: tests that every backend has to pass on a real store.
//!
//! A case is a function that accesses the store through a [`Harness`]. The capabilities of the backend and of the harness
//! select the cases, never the name of the store. [`conformance!`](crate::conformance) creates one test per case.
//! [`run`] runs one case, and then checks that nothing remains: no entry and no session in the store, no task and no
//! thread in the process.

mod candidacy;
mod context;
mod interference;
mod outage;
mod succession;
mod watching;

use std::{future::Future, pin::Pin};

use tenure_core::spi::{Capabilities, SessionScope};

pub use context::{CaseContext, until, within};

use crate::harness::{Harness, HarnessCapabilities};

/// One case of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name, which says what the case shows.
    pub name: &'static str,
    /// Whether the case applies to a backend and a harness with these capabilities.
    pub applies: fn(Capabilities, HarnessCapabilities) -> bool,
    body: for<'a> fn(&'a CaseContext<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

macro_rules! cases {
    ($($module:ident :: $name:ident if $applies:expr;)*) => {
        /// All cases.
        pub const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            applies: $applies,
            body: |context| Box::pin($module::$name(context)),
        },)*];
    };
}

cases! {
    candidacy::a_candidate_leads_and_hands_over if |_, _| true;
    candidacy::tokens_rise_from_term_to_term if |_, _| true;
    candidacy::trying_does_not_wait if |_, _| true;
    candidacy::a_waiting_campaign_that_is_dropped_leaves_nothing if |_, _| true;
    candidacy::a_campaign_dropped_at_any_moment_leaves_nothing if |_, _| true;
    candidacy::a_dropped_guard_hands_over if |_, _| true;
    candidacy::a_failing_leader_hands_over if |_, _| true;
    candidacy::work_has_stopped_before_the_next_leader_begins if |_, _| true;
    candidacy::a_shutdown_leaves_nothing if |_, _| true;
    candidacy::closing_ends_everything if |_, _| true;
    candidacy::a_guard_outlives_its_elector if |_, _| true;
    succession::leadership_follows_the_order_of_arrival if |c, _| c.ordered;
    succession::a_departure_in_the_middle_promotes_nobody if |c, _| c.ordered;
    succession::very_many_are_resigned_as_soon_as_won if |_, _| true;
    succession::a_leader_that_is_asked_to_resign_hands_over if |_, _| true;
    succession::many_candidates_never_lead_together if |_, _| true;
    succession::many_elections_share_one_session if |c, _| c.session_scope == SessionScope::Elector;
    succession::elections_with_like_names_are_apart if |_, _| true;
    watching::candidates_are_seen_with_their_values if |_, _| true;
    watching::a_value_can_be_changed if |_, _| true;
    watching::a_waiting_candidates_value_can_be_changed if |c, _| c.ordered;
    watching::a_value_has_a_largest_size if |_, _| true;
    watching::observers_hear_of_leaders_and_vacancies if |_, _| true;
    watching::elections_are_listed_while_they_have_candidates if |_, _| true;
    watching::foreign_entries_are_ignored_and_left_alone if |_, h| h.foreign_entries;
    interference::a_leader_whose_entry_was_deleted_leads_no_more if |_, h| h.entry_deletion;
    interference::a_waiter_whose_entry_was_deleted_enters_again if |c, h| c.shows_waiting && h.entry_deletion;
    interference::a_leader_whose_session_was_ended_leads_no_more if |_, h| h.session_expiry;
    interference::a_waiter_whose_session_was_ended_wins_no_phantom if |c, h| c.shows_waiting && h.session_expiry;
    interference::the_session_of_a_dead_process_can_be_ended if |c, _| c.ends_sessions;
    outage::a_leader_cut_off_stops_before_the_next_one_leads if |c, h| c.expiring && h.connection_faults;
    outage::a_leader_on_a_dead_line_stops_before_the_next_one_leads if |c, h| c.expiring && h.connection_faults;
    outage::a_short_outage_is_ridden_out if |c, h| c.expiring && h.connection_faults;
    outage::a_resignation_during_an_outage_is_carried_out if |c, h| c.expiring && h.connection_faults;
    outage::an_entry_left_by_a_shutdown_is_gone_in_time if |c, h| c.expiring && h.connection_faults;
    outage::connections_lost_while_entering_leave_nothing if |_, h| h.connection_faults;
    outage::a_campaign_waits_for_its_store if |_, h| h.connection_faults;
    outage::an_observer_survives_an_outage if |_, h| h.connection_faults;
    outage::after_an_outage_exactly_one_leads if |c, h| c.expiring && h.connection_faults;
}

/// Runs one case on a store, and checks that nothing remains after it. Skips a case that does not apply.
///
/// # Panics
/// If the case fails, does not exist, or leaves something in the store or in the process.
pub async fn run(name: &str, harness: &dyn Harness) {
    let Some(case) = CASES.iter().find(|case| case.name == name) else {
        panic!("the suite has no case {name:?}");
    };
    let tasks_before = context::live_tasks();
    let capabilities = harness.client().await.backend.capabilities();
    if !(case.applies)(capabilities, harness.capabilities()) {
        println!("skipped {name}: it does not apply to {capabilities:?}, {:?}", harness.capabilities());
        return;
    }
    let context = CaseContext::new(harness);
    (case.body)(&context).await;
    context.finish(tasks_before).await;
}

/// Creates one test per case of the suite.
///
/// The argument is an async expression that creates a harness. It is evaluated once per test.
#[macro_export]
macro_rules! conformance {
    ($harness:expr) => {
        $crate::conformance! { @tests $harness;
            a_candidate_leads_and_hands_over tokens_rise_from_term_to_term trying_does_not_wait
            a_waiting_campaign_that_is_dropped_leaves_nothing a_campaign_dropped_at_any_moment_leaves_nothing
            a_dropped_guard_hands_over a_failing_leader_hands_over
            work_has_stopped_before_the_next_leader_begins a_shutdown_leaves_nothing closing_ends_everything
            a_guard_outlives_its_elector leadership_follows_the_order_of_arrival
            a_departure_in_the_middle_promotes_nobody very_many_are_resigned_as_soon_as_won a_leader_that_is_asked_to_resign_hands_over
            many_candidates_never_lead_together
            many_elections_share_one_session elections_with_like_names_are_apart
            candidates_are_seen_with_their_values a_value_can_be_changed a_waiting_candidates_value_can_be_changed a_value_has_a_largest_size
            observers_hear_of_leaders_and_vacancies elections_are_listed_while_they_have_candidates foreign_entries_are_ignored_and_left_alone
            a_leader_whose_entry_was_deleted_leads_no_more a_waiter_whose_entry_was_deleted_enters_again
            a_leader_whose_session_was_ended_leads_no_more a_waiter_whose_session_was_ended_wins_no_phantom
            the_session_of_a_dead_process_can_be_ended
            a_leader_cut_off_stops_before_the_next_one_leads a_leader_on_a_dead_line_stops_before_the_next_one_leads
            a_short_outage_is_ridden_out a_resignation_during_an_outage_is_carried_out
            an_entry_left_by_a_shutdown_is_gone_in_time connections_lost_while_entering_leave_nothing a_campaign_waits_for_its_store
            an_observer_survives_an_outage after_an_outage_exactly_one_leads
        }

        /// Every case of the suite has a test.
        #[test]
        fn the_suite_is_complete() {
            let mut names: Vec<&str> = $crate::suite::CASES.iter().map(|case| case.name).collect();
            names.sort_unstable();
            let mut tests = TESTS.to_vec();
            tests.sort_unstable();
            assert_eq!(names, tests);
        }
    };
    (@tests $harness:expr; $($name:ident)*) => {
        const TESTS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::suite::run(stringify!($name), &($harness).await).await;
            }
        )*
    };
}
