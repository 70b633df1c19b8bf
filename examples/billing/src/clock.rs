//! The wall clock in the unit of the databases.

use std::time::SystemTime;

/// Milliseconds since 1970, UTC.
///
/// Only says what falls due and when things happened. Who may write is decided by the fencing
/// token, never by a wall clock.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}
