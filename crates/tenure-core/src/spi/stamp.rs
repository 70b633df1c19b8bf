//! When requests are sent.

use crate::{BootInstant, Clock};

/// An instant of the engine's clock, read before a request is handed to the store's client.
///
/// A store counts a TTL from no earlier than the sending of the request that starts it. So a deadline may be counted from a
/// stamp that was read before the *first* attempt of the request: the store may have executed any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub(crate) at: BootInstant,
    /// Time of day minus `at`, in nanoseconds: shows a pause in which all clocks of the machine stood still.
    pub(crate) wall_offset: i64,
}

impl Stamp {
    /// Reads `clock`, which has to be [`SessionOptions::clock`](super::SessionOptions::clock).
    pub fn now(clock: &dyn Clock) -> Self {
        let at = clock.now();
        Self { at, wall_offset: wall_offset(clock, at) }
    }

    /// The instant.
    pub fn at(self) -> BootInstant {
        self.at
    }
}

/// Time of day minus the monotonic clock, which reads `now`, in nanoseconds.
pub(crate) fn wall_offset(clock: &dyn Clock, now: BootInstant) -> i64 {
    let wall = i64::try_from(clock.wall().as_nanos()).unwrap_or(i64::MAX);
    wall.wrapping_sub_unsigned(now.as_nanos())
}
