//! The queue of reports: logs or measurements that a callback thread writes, one after the other.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::callbacks::{Callbacks, catch_panic};

/// The number of events that wait for the subscriber. Further ones are dropped, and only their number is reported.
const MAX_QUEUED_EVENTS: usize = 4096;

/// Writes one event, span or measurement; called on a callback thread.
type Report = Box<dyn FnOnce() + Send>;

/// Reports that are written in order. Clones share the queue.
#[derive(Clone)]
pub(super) struct ReportQueue(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    callbacks: Callbacks,
}

#[derive(Default)]
struct State {
    reports: VecDeque<Report>,
    /// The number of events among them that may be dropped.
    events: usize,
    /// Whether a thread is writing reports.
    busy: bool,
    /// The number of events that were dropped since the last one was written.
    dropped: u64,
}

impl ReportQueue {
    pub(super) fn new(callbacks: Callbacks) -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), callbacks }))
    }

    /// Adds a report that is never dropped.
    pub(super) fn send(&self, report: impl FnOnce() + Send + 'static) {
        self.push(Box::new(report), false);
    }

    /// Adds an event; drops it when too many wait. `report` has to call [`take_event`](Self::take_event).
    pub(super) fn send_event(&self, report: impl FnOnce() + Send + 'static) {
        self.push(Box::new(report), true);
    }

    fn push(&self, report: Report, droppable: bool) {
        let mut state = self.0.lock();
        if droppable {
            if state.events >= MAX_QUEUED_EVENTS {
                state.dropped += 1;
                return;
            }
            state.events += 1;
        }
        state.reports.push_back(report);
        if !std::mem::replace(&mut state.busy, true) {
            drop(state);
            let inner = Arc::clone(&self.0);
            self.0.callbacks.defer(move || inner.write_all());
        }
    }

    /// Counts one event less; the number of events that were dropped since the last call.
    pub(super) fn take_event(&self) -> u64 {
        let mut state = self.0.lock();
        state.events -= 1;
        std::mem::take(&mut state.dropped)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes reports until none is left.
    fn write_all(&self) {
        loop {
            let report = {
                let mut state = self.lock();
                let report = state.reports.pop_front();
                state.busy = report.is_some();
                report
            };
            let Some(report) = report else { return };
            catch_panic(report);
        }
    }
}
