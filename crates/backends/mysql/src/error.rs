//! What a failed request means.

use mysql_async::{DriverError, Error, IoError};
use tenure_core::spi::{
    BackendError,
    BackendErrorKind::{self, Forbidden, Invalid, Unauthorized, Unavailable},
};

/// The error of a request, by its kind, and what to do about it.
pub(crate) fn classify(what: &str, error: &Error) -> BackendError {
    let refusal = match error {
        Error::Server(refusal) => refusal,
        Error::Io(IoError::Io(cause)) => return unavailable(format!("{what}: {cause}")),
        Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            return unavailable(format!(
                "{what}: the server does not offer TLS; configure it there, or remove ca"
            ));
        }
        Error::Driver(
            cause @ (DriverError::UnknownAuthPlugin { .. }
            | DriverError::MysqlOldPasswordDisabled
            | DriverError::CleartextPluginDisabled),
        ) => {
            let advice = "let the user log in by mysql_native_password or caching_sha2_password";
            return BackendError::new(Unauthorized, format!("{what}: {cause}; {advice}"));
        }
        Error::Driver(cause) => return unavailable(format!("{what}: {cause}")),
        other => return unavailable(format!("{what}: {other}")),
    };
    let (kind, advice) = meaning(refusal.code);
    let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
    BackendError::new(kind, format!("{what}: {} (error {}){advice}", refusal.message, refusal.code))
}

pub(crate) fn unavailable(text: impl Into<String>) -> BackendError {
    BackendError::new(Unavailable, text.into())
}

/// The kind of an error with this number, and what to do about it.
fn meaning(code: u16) -> (BackendErrorKind, Option<&'static str>) {
    match code {
        1045 | 1698 => (
            Unauthorized,
            Some(
                "check the user, the password, from which hosts the user may log in, and whether it has to use TLS",
            ),
        ),
        1130 => (Unauthorized, Some("create the user for this host")),
        1820 | 1862 => (Unauthorized, Some("the password has expired: set a new one")),
        3118 | 4151 => (Unauthorized, Some("the account is locked: unlock it")),
        3159 => (Unauthorized, Some("the server asks for TLS: give ca=/path/to/authorities.pem")),
        1044 | 1142 | 1143 | 1227 | 1370 => (Forbidden, None),
        1049 => (Invalid, Some("create it, or name another database in the URL")),
        1153 => (Invalid, Some("set max_allowed_packet to at least 1M")),
        1054 | 1064 | 1193 | 1305 => (
            Invalid,
            Some("MariaDB 10.3 or MySQL 5.7 or later is needed, and tables as in the documentation"),
        ),
        1264 | 1366 | 1406 => (Invalid, None),
        1146 => (
            Unavailable,
            Some(
                "somebody has dropped it, or the server is another one; restart all candidates, which creates it again; if it is tenure_records, drop \
                 tenure_epoch, too, before that",
            ),
        ),
        1040 | 1203 | 1226 => (Unavailable, Some("raise max_connections, or the limit of the user")),
        1129 => (Unavailable, Some("run FLUSH HOSTS, and see what else connects from this host")),
        1205 => (Unavailable, Some("a transaction holds the record; it is tried again")),
        _ => (Unavailable, None),
    }
}

/// Whether a swap lost against another transaction and was rolled back: by InnoDB, or by Galera's certification.
pub(crate) fn is_conflict(code: u16) -> bool {
    const DEADLOCK: u16 = 1213;
    const CHANGED_SINCE_LAST_READ: u16 = 1020;
    const DUPLICATE_KEY: u16 = 1062;
    matches!(code, DEADLOCK | CHANGED_SINCE_LAST_READ | DUPLICATE_KEY)
}

/// Whether the server has become read-only, or has lost its group: another one may be the primary.
pub(crate) fn is_of_a_replica(error: &Error) -> bool {
    matches!(error, Error::Server(refusal) if matches!(refusal.code, 1047 | 1290 | 1792 | 1836))
}

/// Whether the connection has ended, by the server's word or without it.
pub(crate) fn is_of_connection(error: &Error) -> bool {
    match error {
        Error::Server(refusal) => matches!(refusal.code, 1053 | 1158..=1161 | 1927 | 4031),
        _ => true,
    }
}

pub(crate) const NO_SUCH_TABLE: u16 = 1146;
