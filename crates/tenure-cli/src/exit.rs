//! Exit codes: the program's own, and a few of tenure's.

use std::{fmt, io, process::ExitCode};

use tenure::Error;

use crate::{limits, messages, waiting::NoAnswer};

/// There is no leader, for `tenure leader` and `tenure resign`.
pub(crate) const NO_LEADER: u8 = 1;
/// Bad usage, as in clap. The store was not contacted.
pub(crate) const BAD_USAGE: u8 = 2;
/// The store refuses, or does not answer in time (`EX_UNAVAILABLE`).
pub(crate) const STORE_UNAVAILABLE: u8 = 69;
/// An internal error, or one of the machine (`EX_SOFTWARE`).
const INTERNAL_ERROR: u8 = 70;
/// Not elected (`EX_TEMPFAIL`).
pub(crate) const NOT_ELECTED: u8 = 75;
/// Leadership was lost.
pub(crate) const LEADERSHIP_LOST: u8 = 76;
/// The program was found and cannot be run, as in shells.
pub(crate) const CANNOT_RUN: u8 = 126;
/// There is no such program, as in shells.
pub(crate) const NOT_FOUND: u8 = 127;

/// The exit code of a program that a signal ended, as in shells: 128 plus the signal's number.
pub(crate) fn from_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The exit code for a command's outcome. Prints the error, if it is one.
pub(crate) fn exit_code(outcome: anyhow::Result<u8>) -> ExitCode {
    let error = match outcome {
        Ok(code) => return code.into(),
        Err(error) => error,
    };
    let mut text = error_text(&error);
    let hint = error.chain().find_map(|cause| limits::hint(cause.downcast_ref::<io::Error>()?));
    if let Some(hint) = hint.filter(|_| !text.contains("ulimit")) {
        text = format!("{text}; {hint}");
    }
    messages::print_last(&text);
    if error.is::<UsageError>() {
        return BAD_USAGE.into();
    }
    match error.downcast_ref::<Error>() {
        Some(Error::InvalidUrl(_) | Error::InvalidConfig(_) | Error::InvalidElection(_)) => BAD_USAGE.into(),
        Some(Error::InvalidCandidate(_) | Error::ValueTooLarge { .. }) => BAD_USAGE.into(),
        Some(Error::Threads(_) | Error::TaskEnded(_) | Error::OnEngineThread) => INTERNAL_ERROR.into(),
        Some(Error::Forked | Error::Unsupported(_) | Error::Closed) => INTERNAL_ERROR.into(),
        Some(_) => STORE_UNAVAILABLE.into(),
        None if error.is::<NoAnswer>() => STORE_UNAVAILABLE.into(),
        None => INTERNAL_ERROR.into(),
    }
}

/// An error and its causes, on one line.
pub(crate) fn error_text(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        // The backend's text says who refuses, which need not be the store.
        Some(Error::Refused(refused)) => format!("{refused:#}"),
        _ => format!("{error:#}"),
    }
}

/// Bad usage that clap cannot detect.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
