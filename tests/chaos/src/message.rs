//! What a candidate's process reports, one JSON object per line on its standard output. Lines that are in the pipe survive
//! the process.

use serde::{Deserialize, Serialize};
use tenure_testkit::history::Event;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// An event of the history.
    Event(Event),
    /// A write to the register that checks fencing tokens. It takes effect when it is read.
    Write { election: String, token: u64 },
    /// The candidate was elected, but the term was over before its first check.
    ElectedTooLate { election: String, token: u64 },
    /// A campaign ended with an error that is not retryable.
    CampaignFailed(String),
}
