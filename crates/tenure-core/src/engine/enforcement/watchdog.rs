//! The thread that enforces deadlines on time, also when the engine and every worker of the application are
//! blocked.
//!
//! No application code runs on it: wakers and hooks are handed to
//! [`Callbacks`](crate::engine::runtime::callbacks::Callbacks), events and measurements to the [`Reporter`],
//! and the clock is the kernel's.

use std::{
    fmt,
    sync::{Arc, PoisonError, Weak},
};

use tokio::sync::Notify;

use super::alarm::Alarm;
use crate::{
    BootInstant, Clock,
    engine::runtime::{engine_runtime::EngineRuntime, report::Reporter},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        thread,
    },
};

/// Something whose deadlines the watchdog enforces.
pub(crate) trait Watched: Send + Sync {
    /// Enforces the deadlines that have passed. Returns when to check again; `None` when no deadline is left.
    fn enforce(&self) -> Option<BootInstant>;
}

/// Enforces the deadlines of an elector's sessions: on a thread of its own, or as a task in simulated time.
pub(crate) struct Watchdog {
    state: Arc<State>,
    /// The runtime of the task, in simulated time.
    simulated: Option<EngineRuntime>,
}

struct State {
    clock: Arc<dyn Clock>,
    watched: Mutex<Vec<Weak<dyn Watched>>>,
    /// Whether the task has been started.
    started: AtomicBool,
    quit: AtomicBool,
    alarm: Alarm,
    notify: Notify,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("thread", &self.simulated.is_none()).finish_non_exhaustive()
    }
}

impl Watchdog {
    /// Starts the thread. `clock` must not be application code.
    ///
    /// # Errors
    /// When the system refuses a thread or a timer.
    pub(crate) fn start(clock: Arc<dyn Clock>, reporter: Reporter) -> std::io::Result<Self> {
        let state = State::new(clock);
        state.alarm.prepare()?;
        let thread_state = Arc::clone(&state);
        thread::Builder::new().name("tenure-watchdog".into()).spawn(move || {
            reporter.enter_engine_thread();
            while !thread_state.quit.load(Ordering::Acquire) {
                let next = thread_state.enforce();
                thread_state.alarm.wait(&*thread_state.clock, next);
            }
        })?;
        Ok(Self { state, simulated: None })
    }

    /// A watchdog that runs as a task of `runtime`, started with the first session.
    pub(crate) fn simulated(clock: Arc<dyn Clock>, runtime: EngineRuntime) -> Self {
        Self { state: State::new(clock), simulated: Some(runtime) }
    }

    /// Enforces the deadlines of `watched` until it is dropped.
    pub(crate) fn watch(&self, watched: Weak<dyn Watched>) {
        self.state.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        if let Some(runtime) = &self.simulated
            && !self.state.started.swap(true, Ordering::AcqRel)
        {
            let state = Arc::clone(&self.state);
            runtime.spawn_untracked(async move {
                while !state.quit.load(Ordering::Acquire) {
                    let next = state.enforce();
                    tokio::select! {
                        () = state.clock.sleep_until(next), if next < BootInstant::NEVER => {}
                        () = state.notify.notified() => {}
                    }
                }
            });
        }
        self.wake();
    }

    /// Checks all deadlines again now: one of them has come nearer.
    pub(crate) fn wake(&self) {
        match self.simulated {
            None => self.state.alarm.wake(),
            Some(_) => self.state.notify.notify_one(),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.state.quit.store(true, Ordering::Release);
        self.wake();
    }
}

impl State {
    fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            watched: Mutex::default(),
            started: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            alarm: Alarm::new(),
            notify: Notify::new(),
        })
    }

    /// Enforces the deadlines that have passed, and returns when to check again.
    fn enforce(&self) -> BootInstant {
        let watched: Vec<_> = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|weak| weak.strong_count() > 0);
            watched.clone()
        };
        let mut next = BootInstant::NEVER;
        for weak in watched {
            if let Some(deadline) = weak.upgrade().and_then(|watched| watched.enforce()) {
                next = next.min(deadline);
            }
        }
        next
    }
}
