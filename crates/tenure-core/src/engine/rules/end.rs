//! How a session or a term ends: why, and by when its work has to stop.

use std::time::Duration;

use super::window::Window;
use crate::{BootInstant, LossReason};

/// Work is dropped this long before its stop-by time, so that its `Drop` has run by then.
pub(crate) const DROP_MARGIN: Duration = Duration::from_millis(50);

/// The end of a session or a term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) reason: LossReason,
    /// The stop-by time: the instant by which work has to have stopped.
    pub(crate) stop_by: BootInstant,
}

impl End {
    /// The end, at `now`, of a term whose session has `window`.
    ///
    /// Work may go on until the deadline. If it [must stop at once](Window::must_stop_at_once), it has 50 ms ([`DROP_MARGIN`]).
    pub(crate) fn at(now: BootInstant, reason: LossReason, window: &Window) -> Self {
        let stop_by = if window.must_stop_at_once(reason) {
            now + DROP_MARGIN
        } else {
            window.deadline().min(now + window.length())
        };
        Self { reason, stop_by }
    }
}

/// The time between dropping work and its stop-by time, for terms with this grace period.
pub(crate) fn drop_margin(grace_period: Duration) -> Duration {
    DROP_MARGIN.min(grace_period / 4)
}
