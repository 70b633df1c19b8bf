//! Maps the client library's errors to [`BackendError`]. No other module classifies them.

use tenure_core::spi::{BackendError, BackendErrorKind};
use zookeeper_client::Error;

/// Converts `error`, which occurred while doing `what`.
///
/// Requests in flight when a connection breaks fail with various errors, among them `Custom` (hazard Z9). Any error
/// that is not the server's own answer to the request leaves its outcome unknown.
pub(crate) fn backend_error(what: &str, error: &Error) -> BackendError {
    let text = match error {
        // The library returns this when its only server could not be used.
        Error::NoHosts => "no connection, or no valid answer".to_owned(),
        Error::UnexpectedErrorCode(EPHEMERAL_ON_LOCAL_SESSION) => {
            "the servers give local sessions, which cannot have ephemeral znodes (error -120); set \
             localSessionsUpgradingEnabled=true on all servers, or localSessionsEnabled=false"
                .to_owned()
        }
        error => error.to_string(),
    };
    BackendError::new(kind(error), format!("{what} on ZooKeeper: {text}"))
}

/// `EphemeralOnLocalSession`, which the client library does not know (hazard Z22).
pub(crate) const EPHEMERAL_ON_LOCAL_SESSION: i32 = -120;

fn kind(error: &Error) -> BackendErrorKind {
    match error {
        Error::SessionExpired => BackendErrorKind::SessionGone,
        Error::AuthFailed | Error::InvalidAcl => BackendErrorKind::Unauthorized,
        Error::NoAuth => BackendErrorKind::Forbidden,
        Error::BadArguments(_)
        | Error::Unimplemented
        | Error::NoChildrenForEphemerals
        | Error::MarshallingError
        | Error::UnexpectedErrorCode(EPHEMERAL_ON_LOCAL_SESSION) => BackendErrorKind::Invalid,
        _ => BackendErrorKind::Unavailable,
    }
}

/// A failure that leaves the outcome unknown.
pub(crate) fn unavailable(message: impl Into<String>) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, message)
}

/// The session has ended.
pub(crate) fn session_gone(message: impl Into<String>) -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazards Z9, Z22.
    #[test]
    fn what_the_server_did_not_say_is_unknown() {
        use BackendErrorKind::{Forbidden, Invalid, SessionGone, Unauthorized, Unavailable};
        for (error, expected) in [
            (Error::SessionExpired, SessionGone),
            (Error::NoAuth, Forbidden),
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
            (Error::UnexpectedErrorCode(-120), Invalid),
        ] {
            assert_eq!(backend_error("entering", &error).kind(), expected, "{error}");
        }
    }
}
