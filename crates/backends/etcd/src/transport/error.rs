//! What etcd's and gRPC's failures mean: the one place where statuses are classified.

use std::error::Error as _;

use tenure_core::spi::{BackendError, BackendErrorKind};

/// How one attempt on one member failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: BackendError,
    /// The member's connection has an expired token, or none: authenticate anew.
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

/// An answer that lacks what every etcd puts in.
pub(crate) fn malformed(what: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("etcd's answer has no {what}"))
}

/// `error` with what was being done put before it.
pub(crate) fn doing(what: &str, member: &str, error: &BackendError) -> BackendError {
    BackendError::new(error.kind(), format!("{what} on etcd {member}: {error}"))
}

/// Which gRPC codes etcd uses for what (`api/v3rpc/rpctypes/error.go`).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// How etcd refuses a login: the user or the password is wrong.
const WRONG_PASSWORD: &str = "invalid user ID or password";

/// The kind of a status, and whether its cause is a login that is out of date.
///
/// Texts go before codes: some paths inside etcd lose the code and keep the text.
fn classify(code: i32, message: &str) -> (BackendErrorKind, bool) {
    use BackendErrorKind::{Invalid, SessionGone, Unauthorized, Unavailable};
    let says = |text: &str| message.contains(text);
    if says("requested lease not found") {
        (SessionGone, false)
    } else if says("invalid auth token") || says("revision of auth store is old") {
        (Unavailable, true)
    } else if says("user name is empty") || says(WRONG_PASSWORD) {
        // Auth was switched on after we connected, or the password was changed; or we have no user at all, or a wrong
        // password. Which of them is for the caller, who knows its configuration and logs in anew.
        (Unauthorized, true)
    } else if says("permission denied") {
        (Unauthorized, false)
    } else if says("too large lease TTL") {
        (Invalid, false)
    } else {
        match code {
            code::PERMISSION_DENIED => (Unauthorized, false),
            code::UNAUTHENTICATED => (Unavailable, true),
            code::INVALID_ARGUMENT => (Invalid, false),
            _ => (Unavailable, false),
        }
    }
}

/// Whether a watch was cancelled for want of a valid login.
pub(crate) fn is_login_trouble(cancel_reason: &str) -> bool {
    cancel_reason.contains("auth token") || cancel_reason.contains("permission denied")
}

/// Whether connecting failed only because the store asks for no login.
pub(crate) fn asks_for_no_login(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(s) if s.message().contains("authentication is not enabled"))
}

/// Whether the store refused the user or the password.
pub(crate) fn is_wrong_password(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(s) if s.message().contains(WRONG_PASSWORD))
}

/// Whether a lease was not granted because it exists.
pub(crate) fn lease_exists(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(s) if s.message().contains("lease already exists"))
}

/// Whether a put was refused because the NOSPACE alarm is on.
pub(crate) fn is_out_of_space(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(s) if s.message().contains("database space exceeded"))
}

/// Whether an answer was larger than we take.
pub(crate) fn is_too_large(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(s) if s.message().contains("message length too large"))
}

/// An error's text with the texts of its causes: tonic's own says only "transport error".
fn describe(error: &etcd_client::Error) -> String {
    let (mut text, mut source) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    match refuses_our_certificate(&text) {
        true => format!("{text} (the member refused our certificate, or wants one: see cert and key)"),
        false => text,
    }
}

/// Whether an error's text has the alert by which a server turns a client away whose certificate it does not take.
///
/// It is not final all the same, as a refused password is: the server's authorities may be the next to change, and on the way to
/// the server anybody can send an alert, who would end candidacies for good.
fn refuses_our_certificate(text: &str) -> bool {
    let alerts = ["Certificate", "UnknownCA", "AccessDenied"];
    text.split("received fatal alert: ").skip(1).any(|alert| alerts.iter().any(|name| alert.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_mean_what_the_engine_must_do() {
        use BackendErrorKind::{Invalid, SessionGone, Unauthorized, Unavailable};
        for (code, message, kind, stale_login) in [
            (5, "etcdserver: requested lease not found", SessionGone, false),
            (2, "etcdserver: requested lease not found", SessionGone, false),
            (7, "etcdserver: permission denied", Unauthorized, false),
            (2, "etcdserver: permission denied", Unauthorized, false),
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
