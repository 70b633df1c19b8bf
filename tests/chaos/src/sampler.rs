//! A thread that asks every leadership, a thousand times a second, whether it stands, also after it has ended.

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

const PACE: Duration = Duration::from_millis(1);
/// How long a leadership that has ended is asked on: it must never say yes again.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// The one clock of the history.
pub(crate) fn now() -> u64 {
    BootClock.now().as_nanos()
}

/// A leadership that is watched.
#[derive(Debug)]
pub(crate) struct Term {
    handle: LeadershipHandle,
    last_yes: AtomicU64,
    deadline: AtomicU64,
    first_no: AtomicU64,
}

impl Term {
    /// When a check said yes for the last time.
    pub(crate) fn last_yes(&self) -> u64 {
        self.last_yes.load(Relaxed)
    }

    /// When a check said no for the first time, or now if none has.
    pub(crate) fn over_since(&self) -> u64 {
        match self.first_no.load(Relaxed) {
            0 => now(),
            first => first,
        }
    }

    fn event(&self, at: u64, kind: EventKind) -> Event {
        let token = self.handle.fencing_token().get();
        Event { at, election: self.handle.election().to_string(), token, kind }
    }

    /// Asks once; whether to ask again.
    fn sample(&self, tell: impl Fn(Event)) -> bool {
        let at = now();
        if self.handle.is_leader() {
            self.last_yes.store(at, Relaxed);
            let ended = self.first_no.load(Relaxed) > 0;
            let deadline = self.handle.deadline().as_nanos();
            if deadline > self.deadline.swap(deadline, Relaxed) {
                tell(self.event(at, EventKind::Renewed { deadline }));
            }
            if ended || at > deadline {
                tell(self.event(at, EventKind::Valid));
            }
            return true;
        }
        let first = match self.first_no.compare_exchange(0, at, Relaxed, Relaxed) {
            Ok(_) => at,
            Err(first) => first,
        };
        Duration::from_nanos(at - first) < AFTERWARDS
    }
}

/// The thread's list of leaderships.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampler(Arc<Mutex<Vec<Arc<Term>>>>);

impl Sampler {
    /// Starts the thread, which tells what it sees. It ends with the process.
    pub(crate) fn start(tell: impl Fn(Event) + Send + 'static) -> Self {
        let sampler = Self::default();
        let terms = Arc::clone(&sampler.0);
        thread::spawn(move || {
            loop {
                thread::sleep(PACE);
                let mut terms = terms.lock().unwrap_or_else(PoisonError::into_inner);
                terms.retain(|term| term.sample(&tell));
            }
        });
        sampler
    }

    /// Watches a leadership that was just given; `None`, and nothing to watch, when it is over already.
    pub(crate) fn watch(&self, handle: LeadershipHandle) -> Option<(Arc<Term>, Event)> {
        let at = now();
        if !handle.is_leader() {
            return None;
        }
        let deadline = handle.deadline().as_nanos();
        let term = Arc::new(Term {
            handle,
            last_yes: AtomicU64::new(at),
            deadline: AtomicU64::new(deadline),
            first_no: AtomicU64::new(0),
        });
        let leads = term.event(at, EventKind::Leads { deadline });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&term));
        Some((term, leads))
    }
}
