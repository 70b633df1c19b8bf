//! What ZooKeeper's failures mean: the one place where they are classified.

use tenure_core::spi::{BackendError, BackendErrorKind};
use zookeeper_client::Error;

/// `error`, met while doing `what`.
///
/// Requests under way when a connection breaks fail in several ways, `Custom` among them (hazard
/// Z9): whatever is not a server's word on the request leaves its outcome unknown.
pub(crate) fn failed(what: &str, error: &Error) -> BackendError {
    let text = match error {
        // The library's word for one server that it tried in vain.
        Error::NoHosts => "no connection, or no answer that makes sense".to_owned(),
        error => error.to_string(),
    };
    BackendError::new(kind(error), format!("{what} on ZooKeeper: {text}"))
}

fn kind(error: &Error) -> BackendErrorKind {
    match error {
        Error::SessionExpired => BackendErrorKind::SessionGone,
        Error::NoAuth | Error::AuthFailed | Error::InvalidAcl => BackendErrorKind::Unauthorized,
        Error::BadArguments(_)
        | Error::Unimplemented
        | Error::NoChildrenForEphemerals
        | Error::MarshallingError => BackendErrorKind::Invalid,
        _ => BackendErrorKind::Unavailable,
    }
}

/// A failure that says nothing about what the store did.
pub(crate) fn unknown(message: impl Into<String>) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, message)
}

/// The session has ended.
pub(crate) fn gone(message: impl Into<String>) -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazard Z9.
    #[test]
    fn what_the_server_did_not_say_is_unknown() {
        use BackendErrorKind::{Invalid, SessionGone, Unauthorized, Unavailable};
        for (error, expected) in [
            (Error::SessionExpired, SessionGone),
            (Error::NoAuth, Unauthorized),
            (Error::AuthFailed, Unauthorized),
            (Error::Unimplemented, Invalid),
            (Error::ConnectionLoss, Unavailable),
            (Error::SessionMoved, Unavailable),
            (Error::ClientClosed, Unavailable),
            (Error::Timeout, Unavailable),
            (Error::Throttled, Unavailable),
            (Error::QuotaExceeded, Unavailable),
            (Error::UnexpectedError("BUG: create expect response, but got none".into()), Unavailable),
            (Error::UnexpectedErrorCode(-1), Unavailable),
        ] {
            assert_eq!(failed("entering", &error).kind(), expected, "{error}");
        }
    }
}
