//! Logs and metrics of the engine, written in order on threads that nothing else depends on: a subscriber or recorder that
//! blocks or panics costs neither heartbeats nor deadlines.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::{Dispatch, Level, dispatcher, level_filters::LevelFilter, warn};

use super::{
    callbacks::{self, Callbacks, contained},
    forward::{CapturedEvent, Forwarder, Target},
};

/// So many events wait for the subscriber; of more, only the number is reported.
const MAX_QUEUED: usize = 4096;

/// How long a resignation or shutdown waits until its last events are logged.
pub(crate) const FLUSH: Duration = Duration::from_millis(200);

/// Something to report, which is made by a thread for callbacks.
type Report = Box<dyn FnOnce() + Send>;

/// Reports that are made one after the other. Clones are the same queue.
#[derive(Clone)]
pub(super) struct Queue(Arc<Lane>);

struct Lane {
    state: Mutex<State>,
    callbacks: Callbacks,
}

#[derive(Default)]
struct State {
    reports: VecDeque<Report>,
    /// How many events among them may be dropped.
    events: usize,
    /// Whether a thread is making reports.
    busy: bool,
    /// How many events were dropped since the last was reported.
    dropped: u64,
}

impl Queue {
    fn new(callbacks: Callbacks) -> Self {
        Self(Arc::new(Lane { state: Mutex::default(), callbacks }))
    }

    /// Hands over what is never dropped.
    pub(super) fn send(&self, report: impl FnOnce() + Send + 'static) {
        self.push(Box::new(report), false);
    }

    fn push(&self, report: Report, droppable: bool) {
        let mut state = self.0.lock();
        if droppable {
            if state.events >= MAX_QUEUED {
                state.dropped += 1;
                return;
            }
            state.events += 1;
        }
        state.reports.push_back(report);
        if !std::mem::replace(&mut state.busy, true) {
            drop(state);
            let lane = Arc::clone(&self.0);
            self.0.callbacks.defer(move || lane.make());
        }
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes reports until none is left.
    fn make(&self) {
        loop {
            let report = {
                let mut state = self.lock();
                let report = state.reports.pop_front();
                state.busy = report.is_some();
                report
            };
            let Some(report) = report else { return };
            contained(report);
        }
    }
}

/// Hands events and measurements over, without waiting. Clones share it.
///
/// In a given runtime (simulated time, models of races) everything is reported at once.
#[derive(Clone)]
pub(crate) struct Reporter(Option<Arc<Inner>>);

struct Inner {
    logs: Queue,
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nothing is measured"))]
    measurements: Queue,
    /// Captures what is logged where it is the default, for the queue.
    dispatch: Dispatch,
    target: Arc<Target>,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("inline", &self.0.is_none()).finish()
    }
}

impl Reporter {
    /// Reports everything at once, on the caller's thread.
    pub(crate) fn inline() -> Self {
        Self(None)
    }

    /// Reports by the threads of `callbacks`, to the subscriber of the thread that calls this.
    pub(crate) fn new(callbacks: &Callbacks) -> Self {
        let target = Arc::new(Target::of_this_thread());
        let logs = Queue::new(callbacks.clone());
        let events = Events { queue: logs.clone(), target: Arc::downgrade(&target) };
        Self(Some(Arc::new(Inner {
            dispatch: Dispatch::new(Forwarder::new(events, Arc::clone(&target))),
            measurements: Queue::new(callbacks.clone()),
            logs,
            target,
        })))
    }

    /// Makes the current thread one of the engine's, for good: nothing that a user wrote is called on it, and what it logs and
    /// measures is reported elsewhere.
    pub(crate) fn enter_engine_thread(&self) {
        callbacks::mark_engine_thread();
        let _ = REPORTER.try_with(|reporter| *reporter.borrow_mut() = Some(self.clone()));
        if let Some(inner) = &self.0 {
            // It stays the thread's until that ends.
            std::mem::forget(dispatcher::set_default(&inner.dispatch));
        }
    }

    /// Has `log`, which logs an event of `level`, called elsewhere, in order with what the engine logs.
    pub(crate) fn log(&self, level: Level, log: impl FnOnce() + Send + 'static) {
        match &self.0 {
            // Known without asking a subscriber.
            Some(_) if level > LevelFilter::current() => {}
            Some(inner) => {
                let target = Arc::clone(&inner.target);
                inner.logs.send(move || target.scope(log));
            }
            None => log(),
        }
    }

    /// Has the measurements that `measure` makes made elsewhere, in order with the engine's.
    pub(crate) fn measured(&self, measure: impl FnOnce()) {
        let replace = |with| REPORTER.try_with(|reporter| reporter.replace(with)).ok().flatten();
        let before = replace(Some(self.clone()));
        measure();
        replace(before);
    }

    /// Waits until everything before this has been logged.
    pub(crate) async fn flush(&self) {
        let Some(inner) = &self.0 else { return };
        let (sender, flushed) = oneshot::channel();
        inner.logs.send(move || {
            let _ = sender.send(());
        });
        let _ = flushed.await;
    }
}

thread_local! {
    /// Where this thread's measurements go; on a thread without one they are made at once.
    static REPORTER: RefCell<Option<Reporter>> = const { RefCell::new(None) };
}

/// Makes a measurement, by the thread's reporter if there is one. A recorder that panics harms nobody.
#[cfg(feature = "metrics")]
pub(crate) fn measure(measurement: impl FnOnce() + Send + 'static) {
    let reporter = REPORTER.try_with(|reporter| reporter.borrow().clone()).ok().flatten();
    match reporter.and_then(|reporter| reporter.0) {
        Some(inner) => inner.measurements.send(measurement),
        None => drop(contained(measurement)),
    }
}

/// Where captured events go.
#[derive(Clone)]
pub(super) struct Events {
    queue: Queue,
    target: Weak<Target>,
}

impl Events {
    /// Hands an event over; drops it when too many wait.
    pub(super) fn send(&self, event: CapturedEvent) {
        let events = self.clone();
        self.queue.push(Box::new(move || events.report(&event)), true);
    }

    /// The span that the subscriber knows by this id is over.
    pub(super) fn close(&self, id: tracing::span::Id) {
        let target = self.target.clone();
        self.queue.send(move || {
            if let Some(target) = target.upgrade() {
                target.close(id);
            }
        });
    }

    fn report(&self, event: &CapturedEvent) {
        let dropped = {
            let mut state = self.queue.0.lock();
            state.events -= 1;
            std::mem::take(&mut state.dropped)
        };
        let Some(target) = self.target.upgrade() else { return };
        if dropped > 0 {
            let log = || warn!(dropped, "events were not logged, because the log did not take them in time");
            contained(|| target.scope(log));
        }
        target.report(event);
    }
}
