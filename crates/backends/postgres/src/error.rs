//! What a failed request means.

use std::error::Error as _;

use tenure_core::spi::{
    BackendError,
    BackendErrorKind::{self, Forbidden, Invalid, Unauthorized, Unavailable},
};
use tokio_postgres::{Error, error::SqlState};

/// The error of a request, by its kind, and what to do about it.
pub(crate) fn classify(what: &str, error: &Error) -> BackendError {
    let Some(refusal) = error.as_db_error() else {
        return match error.source().map(ToString::to_string) {
            Some(cause) if cause == "password missing" => {
                let advice = "the server asks for a password, and none is given; set PGPASSWORD, or give password_file=/path";
                BackendError::new(Unauthorized, format!("{what}: {advice}"))
            }
            Some(cause) => BackendError::new(Unavailable, format!("{what}: {error}: {cause}")),
            None => BackendError::new(Unavailable, format!("{what}: {error}")),
        };
    };
    let code = refusal.code();
    let mut text = format!("{what}: {}", refusal.message());
    for more in [refusal.detail(), refusal.hint()].into_iter().flatten() {
        text = format!("{text} ({more})");
    }
    if let Some(advice) = advice(code) {
        text = format!("{text}; {advice}");
    }
    BackendError::new(kind(code), text)
}

fn kind(code: &SqlState) -> BackendErrorKind {
    match *code {
        SqlState::INSUFFICIENT_PRIVILEGE => Forbidden,
        SqlState::INVALID_CATALOG_NAME | SqlState::INVALID_SCHEMA_NAME | SqlState::FEATURE_NOT_SUPPORTED => {
            Invalid
        }
        _ => match code.code().get(..2) {
            // Of any kind of authentication: LDAP and PAM have other codes of this class than passwords of the server.
            Some("28") => Unauthorized,
            // They were there when the connection was made. A pooler may have gone over to another server.
            _ if *code == SqlState::UNDEFINED_TABLE => Unavailable,
            Some("22" | "42") => Invalid,
            _ => Unavailable,
        },
    }
}

fn advice(code: &SqlState) -> Option<&'static str> {
    Some(match *code {
        SqlState::INVALID_CATALOG_NAME => "create it, or name another database in the URL",
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "check the user and pg_hba.conf; it may ask for TLS: give sslrootcert=/path"
        }
        SqlState::INVALID_PASSWORD => "check the user and the password",
        SqlState::UNDEFINED_TABLE => {
            "somebody has dropped it, or the server is another one; restart the candidates, which creates it again"
        }
        SqlState::SYNTAX_ERROR | SqlState::UNDEFINED_FUNCTION => "PostgreSQL 12 or later is needed",
        SqlState::LOCK_NOT_AVAILABLE => {
            "a transaction holds the record, as a fenced one does; it is tried again"
        }
        SqlState::TOO_MANY_CONNECTIONS => "raise max_connections, or use PgBouncer",
        _ => return None,
    })
}

/// Whether a swap lost against another transaction: with an isolation level above read committed.
pub(crate) fn is_conflict(error: &Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

/// Whether another server may be the primary now.
pub(crate) fn is_of_a_standby(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(&SqlState::READ_ONLY_SQL_TRANSACTION | &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
    )
}
