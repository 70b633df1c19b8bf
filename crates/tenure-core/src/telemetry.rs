//! What the engine counts and measures; nothing of it is left without the feature `metrics`.

#[cfg(feature = "metrics")]
mod told {
    use std::time::Duration;

    use metrics::{counter, gauge, histogram};

    use crate::{ElectionName, FencingToken, LossReason, engine::runtime::report::measure, metrics as names};

    /// A candidate campaigns: from now on there is a series that says who does not lead.
    pub(crate) fn stands(election: &ElectionName) {
        let election = election.to_string();
        measure(move || {
            gauge!(names::IS_LEADER, "election" => election.clone()).increment(0.0);
        });
    }

    pub(crate) fn leads(election: &ElectionName, token: FencingToken, waited: Duration) {
        let election = election.to_string();
        measure(move || {
            // Two electors of one process may stand in the same election.
            gauge!(names::IS_LEADER, "election" => election.clone()).increment(1.0);
            counter!(names::TRANSITIONS, "election" => election.clone(), "reason" => "elected").increment(1);
            #[allow(clippy::cast_precision_loss, reason = "as a gauge has it")]
            gauge!(names::FENCING_TOKEN, "election" => election.clone()).set(token.get() as f64);
            histogram!(names::CAMPAIGN_WAIT, "election" => election.clone()).record(waited);
        });
    }

    pub(crate) fn leads_no_more(election: &ElectionName, reason: LossReason) {
        let election = election.to_string();
        measure(move || {
            gauge!(names::IS_LEADER, "election" => election.clone()).decrement(1.0);
            counter!(names::TRANSITIONS, "election" => election.clone(), "reason" => reason.as_str())
                .increment(1);
        });
    }

    /// A heartbeat was answered or not, `left` before the deadline.
    pub(crate) fn heartbeat(outcome: &'static str, took: Duration, left: Duration) {
        measure(move || {
            histogram!(names::HEARTBEAT, "outcome" => outcome).record(took);
            gauge!(names::TIME_TO_DEADLINE).set(left.as_secs_f64());
        });
    }

    pub(crate) fn overrun(election: &ElectionName) {
        let election = election.to_string();
        measure(move || {
            counter!(names::OVERRUNS, "election" => election.clone()).increment(1);
        });
    }

    pub(crate) fn foreign_entries(election: &str, count: u64) {
        let election = election.to_owned();
        measure(move || {
            counter!(names::FOREIGN_ENTRIES, "election" => election).increment(count);
        });
    }

    pub(crate) fn store_failed() {
        measure(move || {
            counter!(names::STORE_FAILURES).increment(1);
        });
    }
}

#[cfg(not(feature = "metrics"))]
mod told {
    use std::time::Duration;

    use crate::{ElectionName, FencingToken, LossReason};

    pub(crate) fn stands(_: &ElectionName) {}
    pub(crate) fn leads(_: &ElectionName, _: FencingToken, _: Duration) {}
    pub(crate) fn leads_no_more(_: &ElectionName, _: LossReason) {}
    pub(crate) fn heartbeat(_: &'static str, _: Duration, _: Duration) {}
    pub(crate) fn overrun(_: &ElectionName) {}
    pub(crate) fn foreign_entries(_: &str, _: u64) {}
    pub(crate) fn store_failed() {}
}

pub(crate) use told::*;
