//! Classifies etcd and gRPC errors.

use std::error::Error as _;

use tenure_core::spi::{BackendError, BackendErrorKind};

/// How one attempt on one member failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: BackendError,
    /// The connection has an expired auth token, or none: authenticate again.
    pub(crate) stale_login: bool,
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self { error, stale_login: false }
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        let text = describe(&error);
        let (kind, stale_login) = match &error {
            etcd_client::Error::GRpcStatus(status) => classify(status.code() as i32, status.message()),
            etcd_client::Error::LeaseKeepAliveError(text) if text == "lease not found" => {
                (BackendErrorKind::SessionGone, false)
            }
            _ => (BackendErrorKind::Unavailable, false),
        };
        Self { error: BackendError::new(kind, text), stale_login }
    }
}

/// The error of a response without `what`, which every etcd sends.
pub(crate) fn malformed(what: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("malformed response of etcd: no {what}"))
}

/// `error`, prefixed with the operation and the member that failed.
pub(crate) fn with_context(what: &str, member: &str, error: &BackendError) -> BackendError {
    BackendError::new(error.kind(), format!("{what} on etcd {member}: {error}"))
}

/// The gRPC codes that etcd uses (`api/v3rpc/rpctypes/error.go`).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

// Texts of errors that are handled by themselves.

/// The user or the password is wrong.
pub(crate) const WRONG_PASSWORD: &str = "invalid user ID or password";
/// Connecting failed only because authentication is disabled on the server.
pub(crate) const AUTH_DISABLED: &str = "authentication is not enabled";
/// A lease was not granted because its id is in use.
pub(crate) const EXISTING_LEASE: &str = "lease already exists";
/// A put was rejected because the NOSPACE alarm is active.
pub(crate) const OUT_OF_SPACE: &str = "database space exceeded";
/// A response exceeded [`MAX_RESPONSE_BYTES`](crate::transport::request::MAX_RESPONSE_BYTES).
pub(crate) const TOO_LARGE: &str = "message length too large";

/// The kind of a status, and whether an outdated login caused it.
///
/// Texts are checked before codes: some paths inside etcd lose the code and keep the text.
fn classify(code: i32, message: &str) -> (BackendErrorKind, bool) {
    use BackendErrorKind::{Forbidden, Invalid, SessionGone, Unauthorized, Unavailable};
    let contains = |text: &str| message.contains(text);
    if contains("requested lease not found") {
        (SessionGone, false)
    } else if contains("invalid auth token") || contains("revision of auth store is old") {
        (Unavailable, true)
    } else if contains("user name is empty") || contains(WRONG_PASSWORD) {
        // Auth was enabled after this client connected, or the password changed; or no user is configured, or a wrong
        // password. The caller knows its configuration and decides which; it authenticates again.
        (Unauthorized, true)
    } else if contains("permission denied") {
        (Forbidden, false)
    } else if contains("too large lease TTL") {
        (Invalid, false)
    } else {
        match code {
            code::PERMISSION_DENIED => (Forbidden, false),
            code::UNAUTHENTICATED => (Unavailable, true),
            code::INVALID_ARGUMENT => (Invalid, false),
            _ => (Unavailable, false),
        }
    }
}

/// Whether a watch was cancelled because its login is invalid or lacks a permission.
pub(crate) fn is_login_error(cancel_reason: &str) -> bool {
    cancel_reason.contains("auth token") || cancel_reason.contains("permission denied")
}

/// Whether a request failed with a status whose message contains `text`.
pub(crate) fn status_contains(error: &etcd_client::Error, text: &str) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message().contains(text))
}

/// An error's text with the texts of its causes: tonic's own text is only "transport error".
fn describe(error: &etcd_client::Error) -> String {
    let (mut text, mut source) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    match is_client_certificate_rejected(&text) {
        true => format!(
            "{text} (the member refused our certificate, or requires one: check the settings cert and key)"
        ),
        false => text,
    }
}

/// Whether an error's text contains a TLS alert with which a server rejects a client's certificate.
///
/// Unlike a rejected password, this is not a permanent error: the server's certificate authorities may be rotated
/// next, and anybody on the network path could send such an alert and would then end candidacies permanently.
fn is_client_certificate_rejected(text: &str) -> bool {
    let alerts = ["Certificate", "UnknownCA", "AccessDenied"];
    text.split("received fatal alert: ").skip(1).any(|alert| alerts.iter().any(|name| alert.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified_by_text_and_code() {
        use BackendErrorKind::{Forbidden, Invalid, SessionGone, Unauthorized, Unavailable};
        for (code, message, kind, stale_login) in [
            (5, "etcdserver: requested lease not found", SessionGone, false),
            (2, "etcdserver: requested lease not found", SessionGone, false),
            (7, "etcdserver: permission denied", Forbidden, false),
            (2, "etcdserver: permission denied", Forbidden, false),
            (3, "etcdserver: authentication failed, invalid user ID or password", Unauthorized, true),
            (3, "etcdserver: user name is empty", Unauthorized, true),
            (16, "etcdserver: invalid auth token", Unavailable, true),
            (2, "etcdserver: invalid auth token", Unavailable, true),
            (3, "etcdserver: revision of auth store is old", Unavailable, true),
            (3, "etcdserver: request is too large", Invalid, false),
            (3, "etcdserver: too many operations in txn request", Invalid, false),
            (11, "etcdserver: too large lease TTL", Invalid, false),
            (11, "etcdserver: mvcc: required revision has been compacted", Unavailable, false),
            (8, "etcdserver: mvcc: database space exceeded", Unavailable, false),
            (8, "etcdserver: too many requests", Unavailable, false),
            (14, "etcdserver: no leader", Unavailable, false),
            (14, "etcdserver: leader changed", Unavailable, false),
            (14, "etcdserver: request timed out", Unavailable, false),
            (4, "deadline exceeded", Unavailable, false),
            (1, "operation was cancelled", Unavailable, false),
            (12, "unknown service etcdserverpb.KV", Unavailable, false),
            (2, "anything", Unavailable, false),
        ] {
            assert_eq!(classify(code, message), (kind, stale_login), "{code} {message}");
        }
    }

    /// E12: the client turns a TTL of zero into an error of its own.
    #[test]
    fn a_lease_that_is_not_found_ends_the_session() {
        let gone = etcd_client::Error::LeaseKeepAliveError("lease not found".into());
        assert_eq!(Failure::from(gone).error.kind(), BackendErrorKind::SessionGone);
        let lost = etcd_client::Error::LeaseKeepAliveError("channel closed".into());
        assert_eq!(Failure::from(lost).error.kind(), BackendErrorKind::Unavailable);
    }
}
