//! A thread that checks every leadership a thousand times a second, and goes on after the leadership has ended.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tenure::{BootClock, Clock as _, LeadershipHandle};
use tenure_testkit::history::{Event, EventKind};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(1);
/// How long an ended leadership is still checked: it must never become valid again.
const SAMPLE_AFTER_END: Duration = Duration::from_secs(5);

/// The current time of the clock that all events of the history use, in nanoseconds.
pub(crate) fn now() -> u64 {
    BootClock.now().as_nanos()
}

/// A leadership that is being sampled. Times are in nanoseconds of [`now`].
#[derive(Debug)]
pub(crate) struct SampledTerm {
    handle: LeadershipHandle,
    last_valid: AtomicU64,
    deadline: AtomicU64,
    /// Zero while no check has failed.
    first_invalid: AtomicU64,
}

impl SampledTerm {
    /// When a check last found the leadership valid.
    pub(crate) fn last_valid(&self) -> u64 {
        self.last_valid.load(Relaxed)
    }

    /// When a check first found the leadership invalid, or now if none has.
    pub(crate) fn first_invalid_or_now(&self) -> u64 {
        match self.first_invalid.load(Relaxed) {
            0 => now(),
            first => first,
        }
    }

    fn event(&self, at: u64, kind: EventKind) -> Event {
        let token = self.handle.fencing_token().get();
        Event { at, election: self.handle.election().to_string(), token, kind }
    }

    /// Checks the leadership once. Returns whether to check it again.
    fn sample(&self, emit: impl Fn(Event)) -> bool {
        let at = now();
        if self.handle.is_leader() {
            self.last_valid.store(at, Relaxed);
            let ended = self.first_invalid.load(Relaxed) > 0;
            let deadline = self.handle.deadline().as_nanos();
            if deadline > self.deadline.swap(deadline, Relaxed) {
                emit(self.event(at, EventKind::Renewed { deadline }));
            }
            if ended || at > deadline {
                emit(self.event(at, EventKind::Valid));
            }
            return true;
        }
        let first = match self.first_invalid.compare_exchange(0, at, Relaxed, Relaxed) {
            Ok(_) => at,
            Err(first) => first,
        };
        Duration::from_nanos(at - first) < SAMPLE_AFTER_END
    }
}

/// A handle to the sampling thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampler(Arc<Mutex<Vec<Arc<SampledTerm>>>>);

impl Sampler {
    /// Starts the thread, which passes events to `emit`. It ends with the process.
    pub(crate) fn start(emit: impl Fn(Event) + Send + 'static) -> Self {
        let sampler = Self::default();
        let terms = Arc::clone(&sampler.0);
        thread::spawn(move || {
            loop {
                thread::sleep(SAMPLE_INTERVAL);
                let mut terms = terms.lock().unwrap_or_else(PoisonError::into_inner);
                terms.retain(|term| term.sample(&emit));
            }
        });
        sampler
    }

    /// Starts to sample a new leadership. Returns `None` if the leadership is over already.
    pub(crate) fn watch(&self, handle: LeadershipHandle) -> Option<(Arc<SampledTerm>, Event)> {
        let at = now();
        if !handle.is_leader() {
            return None;
        }
        let deadline = handle.deadline().as_nanos();
        let term = Arc::new(SampledTerm {
            handle,
            last_valid: AtomicU64::new(at),
            deadline: AtomicU64::new(deadline),
            first_invalid: AtomicU64::new(0),
        });
        let leads = term.event(at, EventKind::Leads { deadline });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&term));
        Some((term, leads))
    }
}
