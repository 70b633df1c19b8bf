//! What a candidate tells the rig, a line each on its standard output. What is in the pipe stays there when
//! the candidate is killed.

use serde::{Deserialize, Serialize};
use tenure_testkit::history::Event;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// Something for the history.
    Saw(Event),
    /// A write to the register that is fenced by tokens; it takes effect when the rig reads it.
    Write { election: String, token: u64 },
    /// It was elected, and by the time that it could look, the term was over.
    Missed { election: String, token: u64 },
    /// A campaign has ended with an error that is said to be for good.
    Refused(String),
}
