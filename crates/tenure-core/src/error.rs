//! The errors of an elector, and whether a retry can help.

use std::time::Duration;

use thiserror::Error;

use crate::{
    ElectionName, InvalidCandidate, InvalidElection, InvalidUrl, LossReason, MAX_VALUE_BYTES,
    spi::{BackendError, BackendErrorKind},
};

/// Any error, boxed. The work given to `run_while_leader` returns it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failure of an [`Elector`](crate::Elector).
///
/// Its `Display` text is complete: it contains the texts of all causes, each once. Therefore
/// [`source`](std::error::Error::source) returns `None`, and printing an error with its sources repeats nothing. To examine a
/// cause, match the variant; see also [`BackendError::cause`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of the election is illegal.
    #[error(transparent)]
    InvalidElection(#[from] InvalidElection),

    /// The candidate's id is illegal.
    #[error(transparent)]
    InvalidCandidate(#[from] InvalidCandidate),

    /// The URL of the store is illegal.
    #[error(transparent)]
    InvalidUrl(#[from] InvalidUrl),

    /// A setting is illegal.
    #[error(transparent)]
    InvalidConfig(#[from] InvalidConfig),

    /// The candidate's value is too large.
    #[error(
        "a candidate's value of {bytes} bytes is too large: at most {MAX_VALUE_BYTES} bytes (64 KiB) are allowed"
    )]
    ValueTooLarge {
        /// The size that was given, in bytes.
        bytes: usize,
    },

    /// The store refuses the credentials, or the user has no permission.
    #[error("the store refuses access: {0}")]
    Unauthorized(BackendError),

    /// The store refuses the request as such.
    #[error("the store refuses the request: {0}")]
    Refused(BackendError),

    /// The store did not answer, or no longer has the session or entry. Electors retry outages; calls that do not retry
    /// return this error.
    #[error("the store cannot be reached: {0}")]
    Unavailable(BackendError),

    /// The leadership had been lost before.
    #[error(transparent)]
    Lost(#[from] Lost),

    /// The leadership is over, but within the shutdown timeout its work has not stopped, or the store has not confirmed that
    /// the entry is gone.
    #[error(
        "the resignation from {election} was not confirmed within {}: the work has not stopped, or the store does not answer; \
         the entry is removed once the work has stopped and the store answers, or it expires with its session",
        humantime::format_duration(*.waited)
    )]
    NotConfirmed {
        /// The election.
        election: ElectionName,
        /// The [shutdown timeout](crate::Config::with_shutdown_timeout).
        waited: Duration,
    },

    /// `resign` was awaited by the work that it waits for.
    #[error(
        "resign was awaited by the work that it waits for: the leadership is over; return from the work, and the entry is removed"
    )]
    InsideWork,

    /// The engine's threads cannot be started.
    #[error(
        "the elector cannot start its threads: {0}; see the limits on processes (ulimit -u) and open files (ulimit -n)"
    )]
    Threads(std::io::Error),

    /// A blocking call was made on an engine thread.
    #[error(
        "a blocking call was made on an engine thread, which would wait for itself: make the call on a thread of the \
         application"
    )]
    OnEngineThread,

    /// This process was forked from the one that made the elector, whose threads do not exist here.
    #[error(
        "this process was forked from one that has an elector, whose threads do not exist here: make the first elector after \
         the fork, or call exec"
    )]
    Forked,

    /// This kind of elector cannot do that: it is neither a [`StoreElector`](crate::StoreElector) nor built on one.
    #[error("cannot {0}: this elector does not support it")]
    Unsupported(&'static str),

    /// The elector was closed.
    #[error("the elector has been closed")]
    Closed,

    /// A task of the engine ended without a result: a backend panicked, or the runtime was shut down.
    #[error("a task of the election ended without a result: {0}")]
    TaskEnded(&'static str),
}

impl Error {
    /// Whether trying again can help: the same call after [`Unavailable`](Self::Unavailable), a new campaign after
    /// [`Lost`](Self::Lost).
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Lost(_))
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        match error.kind() {
            BackendErrorKind::Unauthorized | BackendErrorKind::Forbidden => Self::Unauthorized(error),
            BackendErrorKind::Invalid => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Leadership is over. [`LeadershipHandle::ensure`](crate::LeadershipHandle::ensure) and
/// [`LeadershipHandle::run`](crate::LeadershipHandle::run) return this error.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("leadership is over: {reason}")]
#[non_exhaustive]
pub struct Lost {
    /// The reason.
    pub reason: LossReason,
}

impl Lost {
    pub(crate) fn new(reason: LossReason) -> Self {
        Self { reason }
    }
}

/// An illegal setting, or an illegal combination of settings.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// The TTL is out of bounds.
    #[error("ttl {} is not allowed: it must be from {} to {}",
        humantime::format_duration(*.given), humantime::format_duration(*.min), humantime::format_duration(*.max))]
    Ttl {
        /// The TTL that was given.
        given: Duration,
        /// The smallest TTL allowed.
        min: Duration,
        /// The largest TTL allowed.
        max: Duration,
    },

    /// The drift bound is out of bounds.
    #[error("drift {given} is not allowed: it must be a fraction from 0 to 0.5, such as 0.1 for 10 %")]
    Drift {
        /// The drift bound that was given.
        given: f64,
    },

    /// The grace period leaves no time to lead.
    #[error("grace period {} is not allowed with ttl {}: it must be more than 0 and at most {}",
        humantime::format_duration(*.given), humantime::format_duration(*.ttl),
        humantime::format_duration(Duration::from_millis(u64::try_from(max.as_millis()).unwrap_or(u64::MAX))))]
    GracePeriod {
        /// The grace period that was given.
        given: Duration,
        /// The TTL that limits it, as configured or as granted by the store.
        ttl: Duration,
        /// The largest grace period allowed: a third of the TTL, or less where drift and heartbeats need more.
        max: Duration,
    },

    /// The [resume file](crate::Config::with_resume_file) cannot be used.
    #[error("the resume file {} cannot be used: {problem}", .path.display())]
    ResumeFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why it cannot be used.
        problem: String,
    },

    /// The candidate's value ends with the marker of a resign request.
    #[error("the candidate's value is not allowed: it must not end with the marker of a resign request")]
    Value,

    /// An elector with a clock of its own runs in the current runtime, and not on the threads of an engine.
    #[error("the engine is not allowed with a clock: an elector with a clock runs in the current runtime")]
    EngineWithClock,

    /// The name of a group contains a dot, so that its election could have the name of another one.
    #[error("group {given:?} is not allowed: a group's name must not contain a dot")]
    Group {
        /// The name that was given.
        given: String,
    },

    /// A duration is zero or too long, or two durations are in the wrong order.
    #[error("{setting} {} is not allowed: it must be {allowed}", humantime::format_duration(*.given))]
    Time {
        /// The name of the setting.
        setting: &'static str,
        /// The duration that was given.
        given: Duration,
        /// What is allowed.
        allowed: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::error_chain::chain;

    /// Whether `{error}` alone and the error with its sources are the same, complete text.
    #[test]
    fn an_error_printed_with_its_sources_repeats_nothing() {
        let io = || io::Error::other("connection refused");
        let backend = |kind| BackendError::with_source(kind, "cannot connect to 10.0.0.1:2379", io());
        let store = "cannot connect to 10.0.0.1:2379: connection refused";
        for (error, text) in [
            (
                Error::from(backend(BackendErrorKind::Unavailable)),
                format!("the store cannot be reached: {store}"),
            ),
            (
                Error::from(backend(BackendErrorKind::Unauthorized)),
                format!("the store refuses access: {store}"),
            ),
            (Error::from(backend(BackendErrorKind::Invalid)), format!("the store refuses the request: {store}")),
            (
                Error::Threads(io()),
                "the elector cannot start its threads: connection refused; see the limits on processes (ulimit -u) \
                 and open files (ulimit -n)"
                    .to_owned(),
            ),
            (
                Lost::new(LossReason::Deadline).into(),
                "leadership is over: no heartbeat was confirmed in time".to_owned(),
            ),
        ] {
            assert_eq!(error.to_string(), text);
            assert_eq!(chain(&error), text);
            assert_eq!(format!("{:#}", anyhow::Error::new(error)), text);
        }
    }
}
