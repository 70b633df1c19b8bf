//! The names of the metrics, recorded through the [`metrics`](https://docs.rs/metrics) facade. The names are stable.
//!
//! Install a recorder, such as `metrics-exporter-prometheus`, before the first campaign. Without one nothing is recorded.
//!
//! | Name | Kind | Labels | Meaning |
//! |---|---|---|---|
//! | [`IS_LEADER`] | gauge | `election` | how many electors of this process lead: 0 or 1; exists from the first campaign on |
//! | [`TRANSITIONS`] | counter | `election`, `reason` | leaderships won (`elected`) and lost ([`LossReason::as_str`](crate::LossReason::as_str)) |
//! | [`FENCING_TOKEN`] | gauge | `election` | the fencing token of this process's latest term |
//! | [`CAMPAIGN_WAIT`] | histogram, s | `election` | time from the call of `campaign` to leadership |
//! | [`TIME_TO_DEADLINE`] | gauge, s | | time left until the deadline when the outcome of the last heartbeat became known, before it was applied |
//! | [`TTL`] | gauge, s | | the TTL that the store granted to the session that this process opened last; absent when a session lives as long as its process (local store) |
//! | [`HEARTBEAT`] | histogram, s | `outcome` | time from a heartbeat to its outcome: `confirmed`, `answered` (not confirmed yet, or a keepalive), `failed` |
//! | [`OVERRUNS`] | counter | `election` | work that had not stopped by its deadline |
//! | [`TOKEN_REGRESSIONS`] | counter | `election` | fencing tokens lower than one that this elector had seen before: the store was wiped, restored or exchanged |
//! | [`FOREIGN_ENTRIES`] | counter | `election` | foreign entries found, which no candidate can have written |
//! | [`STORE_FAILURES`] | counter | | requests that the store did not answer, or refused |
//!
//! The gauges of all processes together reveal two leaders, or none: see `docs/guide/operating.md` for alerts and a dashboard.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// How many electors of this process lead the election: 0 or 1.
pub const IS_LEADER: &str = "tenure_is_leader";
/// Leaderships won and lost, by reason.
pub const TRANSITIONS: &str = "tenure_transitions_total";
/// The fencing token of this process's latest term.
pub const FENCING_TOKEN: &str = "tenure_fencing_token";
/// Time from the call of `campaign` to leadership, in seconds.
pub const CAMPAIGN_WAIT: &str = "tenure_campaign_wait_seconds";
/// Time left until the deadline when the outcome of the last heartbeat became known, in seconds.
pub const TIME_TO_DEADLINE: &str = "tenure_time_to_deadline_seconds";
/// The TTL that the store granted to the session that this process opened last, in seconds.
pub const TTL: &str = "tenure_ttl_seconds";
/// Time from a heartbeat to its outcome, in seconds.
pub const HEARTBEAT: &str = "tenure_heartbeat_seconds";
/// Work that had not stopped by its deadline.
pub const OVERRUNS: &str = "tenure_overruns_total";
/// Fencing tokens lower than one that this elector had seen before.
pub const TOKEN_REGRESSIONS: &str = "tenure_token_regressions_total";
/// Foreign entries found in an election, which no candidate can have written.
pub const FOREIGN_ENTRIES: &str = "tenure_foreign_entries_total";
/// Requests that the store did not answer, or refused.
pub const STORE_FAILURES: &str = "tenure_store_failures_total";

/// Describes all metrics to the recorder. Call it once, after the recorder was installed.
pub fn describe() {
    describe_gauge!(IS_LEADER, Unit::Count, "How many electors of this process lead the election");
    describe_counter!(TRANSITIONS, Unit::Count, "Leaderships won and lost, by reason");
    describe_gauge!(FENCING_TOKEN, Unit::Count, "The fencing token of this process's latest term");
    describe_histogram!(CAMPAIGN_WAIT, Unit::Seconds, "Time from the call of campaign to leadership");
    describe_gauge!(TIME_TO_DEADLINE, Unit::Seconds, "Time left until the deadline at the last heartbeat");
    describe_gauge!(TTL, Unit::Seconds, "The granted TTL of the session that was opened last");
    describe_histogram!(HEARTBEAT, Unit::Seconds, "Time from a heartbeat to its outcome");
    describe_counter!(OVERRUNS, Unit::Count, "Work that had not stopped by its deadline");
    describe_counter!(TOKEN_REGRESSIONS, Unit::Count, "Fencing tokens lower than one seen before");
    describe_counter!(
        FOREIGN_ENTRIES,
        Unit::Count,
        "Foreign entries found, which no candidate can have written"
    );
    describe_counter!(STORE_FAILURES, Unit::Count, "Requests that the store did not answer, or refused");
}
