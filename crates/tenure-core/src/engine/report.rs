//! Logs and metrics of the engine, written by a thread of their own: a subscriber that blocks or panics costs neither
//! heartbeats nor deadlines.

#[cfg(feature = "metrics")]
use std::cell::RefCell;
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::sync::oneshot;
use tracing::{Dispatch, dispatcher, warn};

use super::{
    callbacks,
    forward::{CapturedEvent, Forwarder, Target},
};

/// So many events wait for the subscriber; of more, only the number is reported.
const MAX_QUEUED: usize = 4096;

#[cfg(feature = "metrics")]
thread_local! {
    static REPORTER: RefCell<Option<Reporter>> = const { RefCell::new(None) };
}

/// What the reporter's thread is given.
pub(super) enum Report {
    Event(CapturedEvent),
    /// The span that the subscriber knows by this id is over.
    SpanClosed(tracing::span::Id),
    #[cfg(feature = "metrics")]
    Measurement(Box<dyn FnOnce() + Send>),
    /// Everything before this has been reported.
    Flush(oneshot::Sender<()>),
}

/// Hands events and measurements to the reporter's thread, without waiting. Clones share it.
///
/// In a given runtime (simulated time, models of races) there is no thread, and everything is reported at once.
#[derive(Clone)]
pub(crate) struct Reporter(Option<Arc<Inner>>);

struct Inner {
    queue: Queue,
    /// Captures what is logged where it is the default, for the thread.
    dispatch: Dispatch,
    target: Arc<Target>,
}

/// The way to the thread. It ends with the last clone.
#[derive(Clone)]
pub(super) struct Queue {
    sender: mpsc::Sender<Report>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    queued: AtomicUsize,
    dropped: AtomicU64,
}

impl Queue {
    /// Hands an event over; drops it when too many wait.
    pub(super) fn send_event(&self, event: CapturedEvent) {
        if self.counts.queued.load(Ordering::Relaxed) >= MAX_QUEUED {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counts.queued.fetch_add(1, Ordering::Relaxed);
        self.send(Report::Event(event));
    }

    /// Hands over what is never dropped.
    pub(super) fn send(&self, report: Report) {
        // Without a thread nobody is left to be told.
        let _ = self.sender.send(report);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("thread", &self.0.is_some()).finish()
    }
}

impl Reporter {
    /// Reports everything at once, on the caller's thread.
    pub(crate) fn inline() -> Self {
        Self(None)
    }

    /// Starts the thread. It reports to the subscriber of the thread that calls this.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, reports) = mpsc::channel();
        let queue = Queue { sender, counts: Arc::default() };
        let target = Arc::new(Target::default());
        target.learn();
        let dispatch = Dispatch::new(Forwarder::new(queue.clone(), Arc::clone(&target)));
        let (counts, reported_to) = (Arc::clone(&queue.counts), Arc::clone(&target));
        thread::Builder::new()
            .name("tenure-report".into())
            .spawn(move || report(&reports, &counts, &reported_to))?;
        Ok(Self(Some(Arc::new(Inner { queue, dispatch, target }))))
    }

    /// Takes the current thread's subscriber for the engine's as well, unless the engine has one.
    pub(crate) fn learn_subscriber(&self) {
        if let Some(inner) = &self.0
            && inner.target.learn()
        {
            // Every place that has logged before was told that nobody listens.
            tracing::callsite::rebuild_interest_cache();
        }
    }

    /// Makes the current thread one of the engine's: nothing that a user wrote is called on it, and what it logs and
    /// measures is reported by the reporter's thread.
    pub(crate) fn enter_engine_thread(&self) -> Option<dispatcher::DefaultGuard> {
        callbacks::mark_engine_thread();
        #[cfg(feature = "metrics")]
        REPORTER.with_borrow_mut(|reporter| *reporter = Some(self.clone()));
        self.0.as_ref().map(|inner| dispatcher::set_default(&inner.dispatch))
    }

    /// Has what `log` logs reported by the thread, in order with what the engine logs.
    pub(crate) fn scope<T>(&self, log: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(inner) => dispatcher::with_default(&inner.dispatch, log),
            None => log(),
        }
    }

    /// Waits until everything before this has been reported; not at all where there is no thread.
    pub(crate) async fn flush(&self) {
        let Some(inner) = &self.0 else { return };
        let (sender, flushed) = oneshot::channel();
        inner.queue.send(Report::Flush(sender));
        let _ = flushed.await;
    }
}

/// Makes a measurement: by the reporter on an engine's thread, otherwise at once. A recorder that panics harms nobody.
#[cfg(feature = "metrics")]
pub(crate) fn measure(measurement: impl FnOnce() + Send + 'static) {
    let reporter = REPORTER.with_borrow(|reporter| reporter.as_ref().and_then(|reporter| reporter.0.clone()));
    match reporter {
        Some(inner) => inner.queue.send(Report::Measurement(Box::new(measurement))),
        None => drop(catch_unwind(AssertUnwindSafe(measurement))),
    }
}

/// The thread.
fn report(reports: &mpsc::Receiver<Report>, counts: &Counts, target: &Target) {
    while let Ok(report) = reports.recv() {
        // The panic hook has reported the panic of a subscriber or recorder.
        let _ = catch_unwind(AssertUnwindSafe(|| match report {
            Report::Event(event) => {
                counts.queued.fetch_sub(1, Ordering::Relaxed);
                target.report(&event);
            }
            Report::SpanClosed(id) => target.close(id),
            #[cfg(feature = "metrics")]
            Report::Measurement(measurement) => measurement(),
            Report::Flush(sender) => drop(sender.send(())),
        }));
        let dropped = counts.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = catch_unwind(AssertUnwindSafe(|| {
                target.scope(|| {
                    warn!(dropped, "events were not logged, because the log did not take them in time")
                });
            }));
        }
    }
}
