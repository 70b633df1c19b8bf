//! What is counted and measured, through the [`metrics`](https://docs.rs/metrics) facade: the names, which stay.
//!
//! Install any recorder before the first campaign, such as `metrics-exporter-prometheus`. Without one nothing is kept.
//!
//! | name | kind | labels | what |
//! |---|---|---|---|
//! | [`IS_LEADER`] | gauge | `election` | how many electors of this process lead: 0 or 1; there from the first campaign on |
//! | [`TRANSITIONS`] | counter | `election`, `reason` | leaderships won (`elected`), and lost, by [`LossReason::as_str`](crate::LossReason::as_str) |
//! | [`FENCING_TOKEN`] | gauge | `election` | the token of this process's latest term |
//! | [`CAMPAIGN_WAIT`] | histogram, s | `election` | from the call of `campaign` to leadership |
//! | [`TIME_TO_DEADLINE`] | gauge, s | | what was left until the deadline when a heartbeat's outcome was last known, before it was counted |
//! | [`HEARTBEAT`] | histogram, s | `outcome` | from a heartbeat to its outcome: `confirmed`, `answered` (not confirmed yet), `failed` |
//! | [`OVERRUNS`] | counter | `election` | work that had not stopped by its deadline |
//! | [`FOREIGN_ENTRIES`] | counter | `election` | entries met that no candidate can have made |
//! | [`STORE_FAILURES`] | counter | | requests that the store did not answer, or refused |
//!
//! All processes' gauges together show two leaders, or none: see `docs/guide/operating.md` for the rules and a dashboard.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// How many electors of this process lead the election: 0 or 1.
pub const IS_LEADER: &str = "tenure_is_leader";
/// Leaderships won and lost, by reason.
pub const TRANSITIONS: &str = "tenure_transitions_total";
/// The token of this process's latest term.
pub const FENCING_TOKEN: &str = "tenure_fencing_token";
/// From the call of `campaign` to leadership, in seconds.
pub const CAMPAIGN_WAIT: &str = "tenure_campaign_wait_seconds";
/// What was left until the deadline when a heartbeat's outcome was last known, in seconds.
pub const TIME_TO_DEADLINE: &str = "tenure_time_to_deadline_seconds";
/// From a heartbeat to its outcome, in seconds.
pub const HEARTBEAT: &str = "tenure_heartbeat_seconds";
/// Work that had not stopped by its deadline.
pub const OVERRUNS: &str = "tenure_overruns_total";
/// Entries met in an election that no candidate can have made.
pub const FOREIGN_ENTRIES: &str = "tenure_foreign_entries_total";
/// Requests that the store did not answer, or refused.
pub const STORE_FAILURES: &str = "tenure_store_failures_total";

/// Tells the recorder what each of them is. To be called once, after the recorder has been installed.
pub fn describe() {
    describe_gauge!(IS_LEADER, Unit::Count, "How many electors of this process lead the election");
    describe_counter!(TRANSITIONS, Unit::Count, "Leaderships won and lost, by reason");
    describe_gauge!(FENCING_TOKEN, Unit::Count, "The token of this process's latest term");
    describe_histogram!(CAMPAIGN_WAIT, Unit::Seconds, "From the call of campaign to leadership");
    describe_gauge!(
        TIME_TO_DEADLINE,
        Unit::Seconds,
        "What was left until the deadline at the last heartbeat"
    );
    describe_histogram!(HEARTBEAT, Unit::Seconds, "From a heartbeat to its outcome");
    describe_counter!(OVERRUNS, Unit::Count, "Work that had not stopped by its deadline");
    describe_counter!(FOREIGN_ENTRIES, Unit::Count, "Entries met that no candidate can have made");
    describe_counter!(STORE_FAILURES, Unit::Count, "Requests that the store did not answer, or refused");
}
