//! Counts the work that is in flight under a term, and the polls of it.

use std::cell::RefCell;

use crate::{
    failpoints::{SafetyRule, is_disabled},
    sync::{
        Flag,
        atomic::{AtomicUsize, Ordering, fence},
    },
};

const CLOSED: usize = 1;
const ONE_CALL: usize = 2;

/// Counts the calls of [`Term::run`](super::term::Term::run) in flight under a term.
///
/// Not `tokio-util`'s `TaskTracker`: its increment is relaxed. A thread could then still read that the term is
/// valid after another thread has read the count as zero.
#[derive(Debug)]
pub(crate) struct InFlightWork {
    /// [`CLOSED`] or zero, plus [`ONE_CALL`] for each call in flight.
    state: AtomicUsize,
    /// Set when it is closed and no work is in flight.
    stopped: Flag,
}

/// Counts one work until it is dropped.
#[derive(Debug)]
pub(crate) struct WorkGuard<'a>(&'a InFlightWork);

impl InFlightWork {
    pub(crate) fn new() -> Self {
        Self { state: AtomicUsize::new(0), stopped: Flag::new() }
    }

    /// Counts one more work. The caller has to check *afterwards* that the term is valid: either that check
    /// sees the end of the term, or [`is_empty`](Self::is_empty) after the end sees the work.
    pub(crate) fn begin(&self) -> WorkGuard<'_> {
        let ordered = !is_disabled(SafetyRule::OrderWorkAndLoss);
        self.state.fetch_add(ONE_CALL, if ordered { Ordering::AcqRel } else { Ordering::Relaxed });
        if ordered {
            fence(Ordering::SeqCst);
        }
        WorkGuard(self)
    }

    /// Counts one work less.
    pub(crate) fn end(&self) {
        if self.state.fetch_sub(ONE_CALL, Ordering::AcqRel) == ONE_CALL | CLOSED {
            self.stopped.set();
        }
    }

    /// Records that the guard was dropped.
    pub(crate) fn close(&self) {
        if self.state.fetch_or(CLOSED, Ordering::AcqRel) < ONE_CALL {
            self.stopped.set();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Acquire) < ONE_CALL
    }

    /// Whether it is closed and no work is in flight.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_set()
    }

    /// Waits until it is closed and no work is in flight.
    pub(crate) async fn wait_stopped(&self) {
        self.stopped.wait().await;
    }
}

impl Drop for WorkGuard<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// To which term and which elector work belongs: the addresses of the term and of the elector's shared state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkOwner {
    pub(crate) term: usize,
    pub(crate) elector: usize,
}

thread_local! {
    /// The owners of the work that this thread is polling or dropping, the innermost last.
    static POLLED_OWNERS: RefCell<Vec<WorkOwner>> = const { RefCell::new(Vec::new()) };
}

/// Marks work as being polled or dropped, until this is dropped.
pub(crate) struct PollGuard<'a> {
    active_polls: &'a AtomicUsize,
    /// The number of owners that it has added to [`POLLED_OWNERS`].
    owner_count: usize,
}

impl<'a> PollGuard<'a> {
    /// Counts the poll in `active_polls`; `owners` are the term and its parents.
    pub(crate) fn begin(active_polls: &'a AtomicUsize, owners: impl Iterator<Item = WorkOwner>) -> Self {
        active_polls.fetch_add(1, Ordering::SeqCst);
        let owner_count = POLLED_OWNERS.try_with(|polled| {
            let mut polled = polled.borrow_mut();
            let before = polled.len();
            polled.extend(owners);
            polled.len() - before
        });
        Self { active_polls, owner_count: owner_count.unwrap_or(0) }
    }

    /// Whether this thread is polling work of an owner for whom `predicate` holds. Always false under loom and
    /// shuttle, which run all their threads on one.
    pub(crate) fn any(predicate: impl Fn(WorkOwner) -> bool) -> bool {
        let any = |polled: &RefCell<Vec<WorkOwner>>| polled.borrow().iter().any(|owner| predicate(*owner));
        !cfg!(all(test, any(tenure_loom, tenure_shuttle))) && POLLED_OWNERS.try_with(any).unwrap_or(false)
    }
}

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        // Polls are nested: the innermost ends first.
        let _ = POLLED_OWNERS.try_with(|polled| {
            let mut polled = polled.borrow_mut();
            let remaining = polled.len().saturating_sub(self.owner_count);
            polled.truncate(remaining);
        });
        self.active_polls.fetch_sub(1, Ordering::SeqCst);
    }
}
