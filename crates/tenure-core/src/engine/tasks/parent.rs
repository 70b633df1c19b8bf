//! A leadership that depends on another one: its parent. The deadlines and grace periods of a term follow from
//! both.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use super::term::Term;
use crate::{BootInstant, Leadership, LossReason};

impl Term {
    /// The leadership on which this one depends.
    pub(crate) fn parent(&self) -> Option<&Arc<Self>> {
        self.cold_state.get()?.parent.get()
    }

    /// Makes this term depend on the leadership `guard`: it ends when that one ends. Keeps `guard`, and resigns
    /// it only when the entry of this term is gone.
    pub(crate) fn set_parent(self: &Arc<Self>, guard: Leadership) {
        let parent = guard.term();
        let requested = self.grace_period_at_level(Duration::ZERO);
        let allowed = parent.grace_period_at_level(requested);
        if allowed < requested {
            warn!(election = %self.election(), parent = %parent.election(),
                requested = %humantime::format_duration(requested), allowed = %humantime::format_duration(allowed),
                "the parent's session allows a shorter grace period than requested");
        }
        if self.cold().parent.set(Arc::clone(&parent)).is_ok() {
            // A leadership has one guard, and so at most one child.
            let _ = parent.cold().child.set(Arc::downgrade(self));
            self.keep_parent_guard(Box::new(guard));
        } else if let Some(own_parent) = self.parent() {
            // It has a parent already: `guard` becomes the parent of the topmost one.
            own_parent.set_parent(guard);
        }
        // Both watchdogs check both terms, whatever the runtime does.
        for term in [self, &parent] {
            term.watch();
            term.session.shared.watchdog.wake();
        }
    }

    /// [`LossReason::ParentLost`] when the parent has ended, or has less time left than this term needs to stop.
    pub(super) fn check_parent(&self) -> Result<(), LossReason> {
        match self.parent() {
            Some(parent) if !parent.can_support(self.grace_period_at_level(Duration::ZERO)) => {
                Err(LossReason::ParentLost)
            }
            _ => Ok(()),
        }
    }

    /// Whether this term is valid, and has as much time left as a child with this grace period needs to stop.
    fn can_support(self: &Arc<Self>, child_grace_period: Duration) -> bool {
        self.enforce().is_ok() && self.has_time_to_stop_child(child_grace_period)
    }

    /// Whether that much time is left. Too little time for the child does not end this term.
    fn has_time_to_stop_child(&self, child_grace_period: Duration) -> bool {
        let grace_period = self.grace_period_at_level(child_grace_period);
        self.session.enforce_window(grace_period).is_ok()
            && self.parent().is_none_or(|parent| parent.has_time_to_stop_child(grace_period))
    }

    /// The grace period before this level's own deadline. The larger of its own grace period and the child's, capped
    /// by what the session allows.
    fn grace_period_at_level(&self, child_grace_period: Duration) -> Duration {
        let own = self.requested_grace_period().max(self.session.window.grace_period());
        if child_grace_period <= own {
            return own;
        }
        own.max(child_grace_period.min(self.session.largest_grace_period()))
    }

    /// Ends the child of this term, which has ended.
    pub(super) fn end_child(&self) {
        let child = self.cold_state.get().and_then(|cold| cold.child.get()?.upgrade());
        let Some(child) = child else { return };
        child.end(LossReason::ParentLost);
        // Work that was cancelled before may have less time now.
        child.session.shared.watchdog.wake();
    }

    /// The instant by which work has to have stopped, unless a heartbeat extends it: the earliest deadline of all
    /// levels.
    pub(crate) fn deadline(&self) -> BootInstant {
        let own = self.session.window.deadline();
        self.parent().map_or(own, |parent| own.min(parent.deadline()))
    }

    /// When the grace period before the deadline begins and work is cancelled, unless a heartbeat extends the
    /// deadline.
    pub(crate) fn cancel_at(&self, child_grace_period: Duration) -> BootInstant {
        let grace_period = self.grace_period_at_level(child_grace_period);
        let own = self.session.window.deadline() - grace_period;
        self.parent().map_or(own, |parent| own.min(parent.cancel_at(grace_period)))
    }

    /// The stop-by time of a child's work.
    pub(super) fn child_stop_by(&self) -> BootInstant {
        self.stop_by().min(self.deadline())
    }

    /// The grace period before the deadline, whichever level's deadline that is.
    pub(crate) fn grace_period(&self) -> Duration {
        self.effective_grace_period(Duration::ZERO)
    }

    fn effective_grace_period(&self, child_grace_period: Duration) -> Duration {
        let own = self.grace_period_at_level(child_grace_period);
        self.parent().map_or(own, |parent| own.min(parent.effective_grace_period(own)))
    }

    /// The largest grace period that work can request, and the TTL that bounds it.
    pub(crate) fn largest_grace_period(&self) -> (Duration, Duration) {
        let own = (self.session.largest_grace_period(), self.session.backend_session.granted_ttl());
        self.parent().map_or(own, |parent| own.min(parent.largest_grace_period()))
    }

    /// This term and its parents.
    pub(crate) fn with_parents(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |term| term.parent())
    }
}
