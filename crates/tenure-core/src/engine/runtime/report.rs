//! Logs and metrics of the engine, written in order on callback threads: a subscriber or recorder that blocks
//! or panics costs neither heartbeats nor deadlines.

use std::{cell::RefCell, fmt, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::{Dispatch, Level, dispatcher, level_filters::LevelFilter};

use super::{
    callbacks::{self, Callbacks},
    forward::{EventSink, ForwardingSubscriber, UserSubscriber},
    report_queue::ReportQueue,
};

/// How long a resignation or shutdown waits until its last events are logged.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Hands over events and measurements without waiting. Clones share the queues.
///
/// In a given runtime (simulated time, concurrency tests) everything is reported synchronously.
#[derive(Clone)]
pub(crate) struct Reporter(Option<Arc<Inner>>);

struct Inner {
    logs: ReportQueue,
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nothing is measured"))]
    measurements: ReportQueue,
    /// The subscriber of the engine's threads, which copies events into `logs`.
    dispatch: Dispatch,
    subscriber: Arc<UserSubscriber>,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("inline", &self.0.is_none()).finish()
    }
}

impl Reporter {
    /// Reports everything synchronously, on the caller's thread.
    pub(crate) fn inline() -> Self {
        Self(None)
    }

    /// Reports on the threads of `callbacks`, to the subscriber of the current thread.
    pub(crate) fn new(callbacks: &Callbacks) -> Self {
        let subscriber = Arc::new(UserSubscriber::of_this_thread());
        let logs = ReportQueue::new(callbacks.clone());
        let events = EventSink::new(logs.clone(), &subscriber);
        Self(Some(Arc::new(Inner {
            dispatch: Dispatch::new(ForwardingSubscriber::new(events, Arc::clone(&subscriber))),
            measurements: ReportQueue::new(callbacks.clone()),
            logs,
            subscriber,
        })))
    }

    /// Makes the current thread an engine thread, for good: no application code is called on it, and its events and
    /// measurements are reported on callback threads.
    pub(crate) fn enter_engine_thread(&self) {
        callbacks::mark_engine_thread();
        let _ = REPORTER.try_with(|reporter| *reporter.borrow_mut() = Some(self.clone()));
        if let Some(inner) = &self.0 {
            // It stays this thread's default until the thread ends.
            std::mem::forget(dispatcher::set_default(&inner.dispatch));
        }
    }

    /// Calls `log`, which logs an event of `level`, on a callback thread, in order with the engine's events.
    pub(crate) fn log(&self, level: Level, log: impl FnOnce() + Send + 'static) {
        match &self.0 {
            // Known without calling a subscriber.
            Some(_) if level > LevelFilter::current() => {}
            Some(inner) => {
                let subscriber = Arc::clone(&inner.subscriber);
                inner.logs.send(move || subscriber.scope(log));
            }
            None => log(),
        }
    }

    /// Calls `measure`, whose measurements are then recorded on a callback thread, in order with the engine's.
    pub(crate) fn measured(&self, measure: impl FnOnce()) {
        let replace = |with| REPORTER.try_with(|reporter| reporter.replace(with)).ok().flatten();
        let before = replace(Some(self.clone()));
        measure();
        replace(before);
    }

    /// Waits until every earlier event has been logged.
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
    /// Reports this thread's measurements; on a thread without a reporter they are recorded synchronously.
    static REPORTER: RefCell<Option<Reporter>> = const { RefCell::new(None) };
}

/// Records a measurement, through the thread's reporter if it has one. A panic of the recorder is caught.
#[cfg(feature = "metrics")]
pub(crate) fn measure(measurement: impl FnOnce() + Send + 'static) {
    let reporter = REPORTER.try_with(|reporter| reporter.borrow().clone()).ok().flatten();
    match reporter.and_then(|reporter| reporter.0) {
        Some(inner) => inner.measurements.send(measurement),
        None => drop(callbacks::catch_panic(measurement)),
    }
}
