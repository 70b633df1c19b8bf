//! Records the metrics of the engine. Without the feature `metrics` all functions are empty.

#[cfg(feature = "metrics")]
mod recorder {
    use std::time::Duration;

    use metrics::{counter, gauge, histogram};

    use crate::{ElectionName, FencingToken, LossReason, engine::runtime::report::measure, metrics as names};

    /// A candidate campaigns. From now on there is a series for this election, even if no candidate leads.
    pub(crate) fn campaign_started(election: &ElectionName) {
        let election = election.to_string();
        measure(move || {
            gauge!(names::IS_LEADER, "election" => election.clone()).increment(0.0);
        });
    }

    pub(crate) fn leadership_won(election: &ElectionName, token: FencingToken, waited: Duration) {
        let election = election.to_string();
        measure(move || {
            // Two electors of one process may campaign in the same election.
            gauge!(names::IS_LEADER, "election" => election.clone()).increment(1.0);
            counter!(names::TRANSITIONS, "election" => election.clone(), "reason" => "elected").increment(1);
            #[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
            gauge!(names::FENCING_TOKEN, "election" => election.clone()).set(token.get() as f64);
            histogram!(names::CAMPAIGN_WAIT, "election" => election.clone()).record(waited);
        });
    }

    pub(crate) fn leadership_lost(election: &ElectionName, reason: LossReason) {
        let election = election.to_string();
        measure(move || {
            gauge!(names::IS_LEADER, "election" => election.clone()).decrement(1.0);
            counter!(names::TRANSITIONS, "election" => election.clone(), "reason" => reason.as_str())
                .increment(1);
        });
    }

    /// The outcome of a heartbeat became known, with `left` until the deadline.
    /// `left` is `None` while no candidate of the session leads.
    pub(crate) fn heartbeat_finished(outcome: &'static str, took: Duration, left: Option<Duration>) {
        measure(move || {
            histogram!(names::HEARTBEAT, "outcome" => outcome).record(took);
            if let Some(left) = left {
                gauge!(names::TIME_TO_DEADLINE).set(left.as_secs_f64());
            }
        });
    }

    /// The store has granted `ttl` to a session.
    pub(crate) fn session_opened(ttl: Duration) {
        measure(move || gauge!(names::TTL).set(ttl.as_secs_f64()));
    }

    pub(crate) fn work_overran(election: &ElectionName) {
        let election = election.to_string();
        measure(move || {
            counter!(names::OVERRUNS, "election" => election.clone()).increment(1);
        });
    }

    pub(crate) fn token_regressed(election: &ElectionName) {
        let election = election.to_string();
        measure(move || {
            counter!(names::TOKEN_REGRESSIONS, "election" => election.clone()).increment(1);
        });
    }

    pub(crate) fn foreign_entries(election: &str, count: u64) {
        let election = election.to_owned();
        measure(move || {
            counter!(names::FOREIGN_ENTRIES, "election" => election).increment(count);
        });
    }

    pub(crate) fn request_failed() {
        measure(move || {
            counter!(names::STORE_FAILURES).increment(1);
        });
    }
}

#[cfg(not(feature = "metrics"))]
mod recorder {
    use std::time::Duration;

    use crate::{ElectionName, FencingToken, LossReason};

    pub(crate) fn campaign_started(_: &ElectionName) {}
    pub(crate) fn leadership_won(_: &ElectionName, _: FencingToken, _: Duration) {}
    pub(crate) fn leadership_lost(_: &ElectionName, _: LossReason) {}
    pub(crate) fn heartbeat_finished(_: &'static str, _: Duration, _: Option<Duration>) {}
    pub(crate) fn session_opened(_: Duration) {}
    pub(crate) fn work_overran(_: &ElectionName) {}
    pub(crate) fn token_regressed(_: &ElectionName) {}
    pub(crate) fn foreign_entries(_: &str, _: u64) {}
    pub(crate) fn request_failed() {}
}

pub(crate) use recorder::*;
