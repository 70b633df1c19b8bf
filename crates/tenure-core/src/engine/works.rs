//! How much work is under way in one leadership, and whether any more can begin.

use std::cell::RefCell;

use crate::{
    failpoints::{SafetyRule, is_disabled},
    sync::{
        Flag,
        atomic::{AtomicUsize, Ordering, fence},
    },
};

const CLOSED: usize = 1;
const ONE: usize = 2;

/// The work under way in one leadership.
///
/// Not `tokio-util`'s `TaskTracker`: that counts with a relaxed increment, after which a thread may still read
/// that the leadership stands, though whoever waits has seen the count at zero.
#[derive(Debug)]
pub(crate) struct Works {
    /// Whether it is closed, and twice the number of works.
    state: AtomicUsize,
    /// Set when it is closed and nothing is under way.
    stopped: Flag,
}

/// Work under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Begun<'a>(&'a Works);

impl Works {
    pub(crate) fn new() -> Self {
        Self { state: AtomicUsize::new(0), stopped: Flag::new() }
    }

    /// Counts one work more. Whoever calls this looks *afterwards* whether the leadership stands: either that
    /// look sees its end, or [`is_empty`](Self::is_empty) after the end sees the work.
    pub(crate) fn begin(&self) -> Begun<'_> {
        let ordered = !is_disabled(SafetyRule::OrderWorkAndLoss);
        self.state.fetch_add(ONE, if ordered { Ordering::AcqRel } else { Ordering::Relaxed });
        if ordered {
            fence(Ordering::SeqCst);
        }
        Begun(self)
    }

    /// Counts one work less.
    pub(crate) fn end(&self) {
        if self.state.fetch_sub(ONE, Ordering::AcqRel) == ONE | CLOSED {
            self.stopped.set();
        }
    }

    /// The guard has gone.
    pub(crate) fn close(&self) {
        if self.state.fetch_or(CLOSED, Ordering::AcqRel) < ONE {
            self.stopped.set();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Acquire) < ONE
    }

    /// Whether it is closed and nothing is under way.
    pub(crate) fn have_stopped(&self) -> bool {
        self.stopped.is_set()
    }

    /// Waits until it is closed and nothing is under way.
    pub(crate) async fn wait(&self) {
        self.stopped.wait().await;
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The addresses of a leadership and of its elector's shared state.
pub(crate) type Whose = (usize, usize);

thread_local! {
    /// Whose work this thread is polling or dropping, the innermost last.
    static POLLED_HERE: RefCell<Vec<Whose>> = const { RefCell::new(Vec::new()) };
}

/// Work is being polled, or dropped, until this is dropped.
pub(crate) struct Polling<'a> {
    count: &'a AtomicUsize,
    /// How many places it takes in [`POLLED_HERE`].
    places: usize,
}

impl<'a> Polling<'a> {
    /// Counts the poll in `count`; `whose` are the leadership and those that it rests on.
    pub(crate) fn begin(count: &'a AtomicUsize, whose: impl Iterator<Item = Whose>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        let places = POLLED_HERE.try_with(|polled| {
            let mut polled = polled.borrow_mut();
            let before = polled.len();
            polled.extend(whose);
            polled.len() - before
        });
        Self { count, places: places.unwrap_or(0) }
    }

    /// Whether this thread is polling work of somebody for whom `is` holds. A checker of races runs all its threads on one,
    /// so that nobody can tell there.
    pub(crate) fn any(is: impl Fn(Whose) -> bool) -> bool {
        let any = |polled: &RefCell<Vec<Whose>>| polled.borrow().iter().any(|whose| is(*whose));
        !cfg!(all(test, any(tenure_loom, tenure_shuttle))) && POLLED_HERE.try_with(any).unwrap_or(false)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        // Polls are nested: the innermost ends first.
        let _ = POLLED_HERE.try_with(|polled| {
            let mut polled = polled.borrow_mut();
            let left = polled.len().saturating_sub(self.places);
            polled.truncate(left);
        });
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}
