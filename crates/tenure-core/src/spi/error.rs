//! The error of a backend, classified by what the engine does about it.

use std::{error::Error as StdError, sync::Arc};

use thiserror::Error;

use crate::{error_chain::with_causes, printable::printable};

/// The kind of a [`BackendError`]. It decides what the engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// The store did not answer, or not usefully; the outcome is unknown. Retried.
    Unavailable,
    /// The session has ended in the store.
    SessionGone,
    /// The entry does not exist.
    EntryGone,
    /// The credentials were refused. Permanent.
    Unauthorized,
    /// The user is known, but may not do this. Permanent; becomes [`Error::Unauthorized`](crate::Error::Unauthorized). With
    /// ZooKeeper's `digest` scheme, a wrong password is reported as this too, because it identifies another user.
    Forbidden,
    /// The store refuses the request as such. Permanent.
    Invalid,
}

/// The largest text of an error, in bytes. Longer texts of a store are truncated.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A classified failure of a store.
///
/// Its `Display` text is complete: it contains the texts of all causes, each once. Therefore
/// [`source`](StdError::source) returns `None`; [`cause`](Self::cause) returns the underlying error. The text has
/// one line and a bounded length, whatever the store answered.
#[derive(Clone, Debug, Error)]
#[error("{message}")]
pub struct BackendError {
    kind: BackendErrorKind,
    message: String,
    cause: Option<Arc<dyn StdError + Send + Sync>>,
}

impl BackendError {
    /// A failure without an underlying error.
    pub fn new(kind: BackendErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: printable(&message.into(), MAX_MESSAGE_BYTES), cause: None }
    }

    /// A failure caused by `source`. The texts of `source` and of its own sources are appended to `message`, except a text with
    /// which it already ends. The whole text is shown in statuses, health endpoints and logs: none may contain a secret.
    pub fn with_source(
        kind: BackendErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let message = printable(&with_causes(message.into(), Some(&*source)), MAX_MESSAGE_BYTES);
        Self { kind, message, cause: Some(Arc::from(source)) }
    }

    /// Combines the failures of several hosts into one error. It is permanent only if all are: a host that is down may be the one that would
    /// accept.
    ///
    /// Permanent failures come first in the text, because they say what to change.
    pub fn of_hosts(mut failures: Vec<Self>) -> Self {
        failures.sort_by_key(|failure| !failure.is_permanent());
        match failures.last() {
            None => Self::new(BackendErrorKind::Unavailable, "there is no host"),
            Some(only) if failures.len() == 1 => only.clone(),
            Some(last) => {
                let kind = if last.is_permanent() { failures[0].kind } else { last.kind };
                let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
                Self::new(kind, texts.join("; "))
            }
        }
    }

    /// The kind of the failure.
    pub fn kind(&self) -> BackendErrorKind {
        self.kind
    }

    /// The underlying error, if there is one, to be downcast. Its text is part of this error's text.
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Whether a retry can help: the store did not answer.
    pub fn is_retryable(&self) -> bool {
        self.kind == BackendErrorKind::Unavailable
    }

    /// Whether a retry cannot help, with this session or another.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self.kind,
            BackendErrorKind::Unauthorized | BackendErrorKind::Forbidden | BackendErrorKind::Invalid
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_one_line_whatever_the_store_answered() {
        let answer = format!("no\r\nERROR forged\u{1b}[2J{}", "x".repeat(1 << 20));
        let kind = BackendErrorKind::Unavailable;
        let io = std::io::Error::other("cause");
        for error in
            [BackendError::new(kind, answer.as_str()), BackendError::with_source(kind, answer.as_str(), io)]
        {
            let text = error.to_string();
            assert!(text.starts_with("no\\r\\nERROR forged\\u{1b}[2J") && text.len() < 2000, "{text}");
            assert_eq!(BackendError::new(kind, text.as_str()).to_string(), text, "not escaped twice");
        }
    }

    #[test]
    fn a_failure_of_hosts_is_permanent_if_each_is() {
        use BackendErrorKind::{Invalid, Unauthorized, Unavailable};
        let of = |kinds: &[BackendErrorKind]| {
            let failures = kinds.iter().map(|kind| BackendError::new(*kind, format!("{kind:?}")));
            let error = BackendError::of_hosts(failures.collect());
            (error.kind(), error.to_string())
        };
        assert_eq!(of(&[]), (Unavailable, "there is no host".to_owned()));
        assert_eq!(of(&[Invalid]), (Invalid, "Invalid".to_owned()));
        assert_eq!(of(&[Unavailable, Invalid]), (Unavailable, "Invalid; Unavailable".to_owned()));
        assert_eq!(of(&[Unauthorized, Invalid]), (Unauthorized, "Unauthorized; Invalid".to_owned()));
    }

    #[test]
    fn an_error_contains_the_text_of_its_cause_once() {
        let kind = BackendErrorKind::Unavailable;
        let io = || std::io::Error::other("the disk is full");
        for message in ["cannot write", "cannot write: the disk is full"] {
            let error = BackendError::with_source(kind, message, io());
            assert_eq!(error.to_string(), "cannot write: the disk is full");
            assert!(error.source().is_none(), "the text already contains it");
            assert!(error.cause().is_some_and(|cause| cause.is::<std::io::Error>()));
            let outer = BackendError::with_source(BackendErrorKind::Invalid, error.to_string(), error);
            assert_eq!(outer.to_string(), "cannot write: the disk is full");
        }
    }
}
