//! Exit codes: the program's own, and a few of ours.

use std::{fmt, process::ExitCode};

use tenure::Error;

/// Nobody leads, for `tenure leader`.
pub(crate) const VACANT: u8 = 1;
/// Bad usage, as clap has it: nothing was asked of a store.
const USAGE: u8 = 2;
/// The store refuses (EX_UNAVAILABLE).
pub(crate) const REFUSED: u8 = 69;
/// A fault of tenure's or its machine's (EX_SOFTWARE).
const FAULT: u8 = 70;
/// Not elected (EX_TEMPFAIL).
pub(crate) const NOT_ELECTED: u8 = 75;
/// Leadership was lost.
pub(crate) const LOST: u8 = 76;
/// As shells have it: the program was found and cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// As shells have it: there is no such program.
pub(crate) const NOT_FOUND: u8 = 127;

/// As shells have it: a signal ended it.
pub(crate) fn by_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The exit code for what came of a command; an error is told.
pub(crate) fn code(outcome: anyhow::Result<u8>) -> ExitCode {
    let error = match outcome {
        Ok(code) => return code.into(),
        Err(error) => error,
    };
    crate::say(&format!("{error:#}"));
    if error.is::<Usage>() {
        return USAGE.into();
    }
    match error.downcast_ref::<Error>() {
        Some(Error::InvalidUrl(_) | Error::InvalidConfig(_) | Error::InvalidElection(_)) => USAGE.into(),
        Some(Error::InvalidCandidate(_) | Error::ValueTooLarge { .. }) => USAGE.into(),
        Some(_) => REFUSED.into(),
        None => FAULT.into(),
    }
}

/// Bad usage, in words.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
