//! What can go wrong, in words, and whether trying again can help.

use std::time::Duration;

use thiserror::Error;

use crate::{
    ElectionName, InvalidCandidate, InvalidElection, InvalidUrl, LossReason, MAX_VALUE_BYTES,
    spi::BackendError,
};

/// Any error, boxed: what the work given to `run_while_leader` may return.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failure of an [`Elector`](crate::Elector).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The election's name is not legal.
    #[error(transparent)]
    InvalidElection(#[from] InvalidElection),

    /// The candidate's id is not legal.
    #[error(transparent)]
    InvalidCandidate(#[from] InvalidCandidate),

    /// The store's URL cannot be used.
    #[error(transparent)]
    InvalidUrl(#[from] InvalidUrl),

    /// A setting cannot work.
    #[error(transparent)]
    InvalidConfig(#[from] InvalidConfig),

    /// The candidate's value is too large.
    #[error(
        "a candidate's value of {bytes} bytes is too large: at most {MAX_VALUE_BYTES} bytes (64 KiB) are allowed"
    )]
    ValueTooLarge {
        /// The size that was given.
        bytes: usize,
    },

    /// The store refuses our credentials or permissions.
    #[error("the store refuses access: {0}")]
    Unauthorized(#[source] BackendError),

    /// The store refuses the request as such.
    #[error("the store refuses the request: {0}")]
    Refused(#[source] BackendError),

    /// The store could not be asked.
    #[error("the store cannot be reached: {0}")]
    Unavailable(#[source] BackendError),

    /// The leadership had been lost before.
    #[error(transparent)]
    Lost(#[from] Lost),

    /// The leadership is over, but within the shutdown timeout its work has not stopped, or the store has not confirmed that
    /// the entry is gone.
    #[error(
        "the resignation from {election} was not confirmed within {}: the work has not stopped, or the store does not answer; \
         the entry goes once they do, or with its session", humantime::format_duration(*.waited)
    )]
    NotConfirmed {
        /// Which election.
        election: ElectionName,
        /// The [shutdown timeout](crate::Config::with_shutdown_timeout).
        waited: Duration,
    },

    /// A resignation was awaited by the work that it waits for.
    #[error(
        "resign was awaited by the work that it waits for: the leadership is over; return from the work, and the entry goes"
    )]
    InsideWork,

    /// The engine's threads cannot be started.
    #[error(
        "the elector cannot start its threads; see the limits on processes (ulimit -u) and open files (ulimit -n)"
    )]
    Threads(#[source] std::io::Error),

    /// The elector has been closed.
    #[error("the elector has been closed")]
    Closed,

    /// A task of the engine ended before its work was done: a panic in a backend, or the runtime shut down.
    #[error("the election's task ended before its time: {0}")]
    TaskEnded(&'static str),
}

impl Error {
    /// Whether the same call may succeed later, with nothing changed but the store's state.
    ///
    /// [`Lost`](Self::Lost) counts: campaign again.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Lost(_))
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        match error.kind() {
            crate::spi::BackendErrorKind::Unauthorized => Self::Unauthorized(error),
            crate::spi::BackendErrorKind::Invalid => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Leadership is over: what [`Leadership::ensure`](crate::LeadershipHandle::ensure) and
/// [`Leadership::run`](crate::LeadershipHandle::run) return then.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("leadership is over: {reason}")]
#[non_exhaustive]
pub struct Lost {
    /// Why.
    pub reason: LossReason,
}

impl Lost {
    pub(crate) fn new(reason: LossReason) -> Self {
        Self { reason }
    }
}

/// A setting, or a combination of settings, that cannot work.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// The TTL is out of bounds.
    #[error("ttl {} is not allowed: it must be from {} to {}",
        humantime::format_duration(*.given), humantime::format_duration(*.min), humantime::format_duration(*.max))]
    Ttl {
        /// What was given.
        given: Duration,
        /// The least TTL allowed.
        min: Duration,
        /// The largest TTL allowed.
        max: Duration,
    },

    /// The drift bound is out of bounds.
    #[error("drift {given} is not allowed: it must be a fraction from 0 to 0.5, such as 0.1 for 10 %")]
    Drift {
        /// What was given.
        given: f64,
    },

    /// The grace period leaves no time to lead.
    #[error("grace period {} is not allowed with ttl {}: it must be more than 0 and at most {}",
        humantime::format_duration(*.given), humantime::format_duration(*.ttl),
        humantime::format_duration(Duration::from_millis(u64::try_from(most.as_millis()).unwrap_or(u64::MAX))))]
    GracePeriod {
        /// What was given.
        given: Duration,
        /// The TTL it has to fit, as asked for or as the store granted it.
        ttl: Duration,
        /// The largest budget allowed: a third of the TTL, or less where drift and heartbeats need more.
        most: Duration,
    },

    /// The candidate's value ends with what marks an entry whose candidate is asked to resign.
    #[error("a candidate's value may not end with the mark of a wish that the candidate may resign")]
    Value,

    /// A group's name that would make its election's name another's.
    #[error("group {given:?} is not allowed: a group's name has no dot")]
    Group {
        /// What was given.
        given: String,
    },

    /// A time that must not be zero, or two whose order is wrong.
    #[error("{setting} {} is not allowed: it must be {allowed}", humantime::format_duration(*.given))]
    Time {
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        given: Duration,
        /// What is allowed.
        allowed: &'static str,
    },
}
