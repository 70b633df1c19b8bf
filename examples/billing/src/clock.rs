//! The wall clock.

use std::time::SystemTime;

/// Milliseconds since 1970, in UTC.
///
/// It decides what is due, and is recorded. The fencing token, and never the wall clock, decides who may write.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}
