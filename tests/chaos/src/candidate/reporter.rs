//! Writes a candidate's messages to its standard output.

use std::io::Write as _;

use tenure_testkit::history::{Event, EventKind};

use crate::message::Message;

pub(super) fn report_event(election: &str, token: u64, at: u64, what: EventKind) {
    report(&Message::Event(Event { at, election: election.to_owned(), token, kind: what }));
}

/// Writes a message in one system call: the candidate may be killed at any moment.
pub(super) fn report(message: &Message) {
    let Ok(mut text) = serde_json::to_string(message) else { return };
    text.push('\n');
    // A closed pipe means that the parent has exited, which the thread at the standard input handles.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
