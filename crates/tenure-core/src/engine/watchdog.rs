//! The thread that enforces deadlines on time, also when the engine and every worker of the application are blocked.
//!
//! Nothing that a user wrote runs on it: wakers and hooks are handed to [`Callbacks`](super::callbacks::Callbacks), events and
//! measurements to the [`Reporter`], and the clock is the kernel's.

use std::{
    fmt,
    sync::{Arc, PoisonError, Weak},
};

use tokio::sync::Notify;

pub(crate) use alarm::Alarm;

use super::{report::Reporter, runtime::EngineRuntime};
use crate::{
    BootInstant, Clock,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        thread,
    },
};

/// Something with deadlines to watch.
pub(crate) trait Watched: Send + Sync {
    /// Does what is due, and says when to look again; `None` when there is nothing left to watch.
    fn check(&self) -> Option<BootInstant>;
}

/// Looks after the deadlines of an elector's sessions: a thread of its own, or a task in simulated time.
pub(crate) struct Watchdog {
    state: Arc<State>,
    /// Where it is a task: the runtime of that.
    simulated: Option<EngineRuntime>,
}

struct State {
    clock: Arc<dyn Clock>,
    watched: Mutex<Vec<Weak<dyn Watched>>>,
    /// Whether the task has been started.
    started: AtomicBool,
    quit: AtomicBool,
    alarm: alarm::Alarm,
    notify: Notify,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("thread", &self.simulated.is_none()).finish_non_exhaustive()
    }
}

impl Watchdog {
    /// Starts the thread. `clock` must not be a user's.
    ///
    /// # Errors
    /// When the system refuses a thread or a timer.
    pub(crate) fn start(clock: Arc<dyn Clock>, reporter: Reporter) -> std::io::Result<Self> {
        let state = State::new(clock);
        state.alarm.prepare()?;
        let watching = Arc::clone(&state);
        thread::Builder::new().name("tenure-watchdog".into()).spawn(move || {
            reporter.enter_engine_thread();
            while !watching.quit.load(Ordering::Acquire) {
                let next = watching.check();
                watching.alarm.wait(&*watching.clock, next);
            }
        })?;
        Ok(Self { state, simulated: None })
    }

    /// A task of `runtime`, started with the first session.
    pub(crate) fn simulated(clock: Arc<dyn Clock>, runtime: EngineRuntime) -> Self {
        Self { state: State::new(clock), simulated: Some(runtime) }
    }

    /// Watches `watched` until it is dropped or has nothing left to watch.
    pub(crate) fn watch(&self, watched: Weak<dyn Watched>) {
        self.state.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        if let Some(runtime) = &self.simulated
            && !self.state.started.swap(true, Ordering::AcqRel)
        {
            let state = Arc::clone(&self.state);
            runtime.spawn_untracked(async move {
                while !state.quit.load(Ordering::Acquire) {
                    let next = state.check();
                    tokio::select! {
                        () = state.clock.sleep_until(next), if next < BootInstant::NEVER => {}
                        () = state.notify.notified() => {}
                    }
                }
            });
        }
        self.wake();
    }

    /// Looks again now: a deadline has come nearer.
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
            alarm: alarm::Alarm::new(),
            notify: Notify::new(),
        })
    }

    /// Does what is due, and returns when to look again.
    fn check(&self) -> BootInstant {
        let watched: Vec<_> = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|weak| weak.strong_count() > 0);
            watched.clone()
        };
        let mut next = BootInstant::NEVER;
        for weak in watched {
            if let Some(moment) = weak.upgrade().and_then(|watched| watched.check()) {
                next = next.min(moment);
            }
        }
        next
    }
}

/// An alarm clock that goes on while the machine is suspended, and can be woken early.
#[cfg(all(target_os = "linux", not(all(test, any(tenure_loom, tenure_shuttle)))))]
mod alarm {
    use std::{os::fd::OwnedFd, sync::OnceLock};

    use rustix::{
        event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
        time::{
            Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
            timerfd_settime,
        },
    };

    use crate::{BootInstant, Clock};

    #[derive(Debug)]
    pub(crate) struct Alarm {
        files: OnceLock<(OwnedFd, OwnedFd)>,
    }

    impl Alarm {
        pub(crate) fn new() -> Self {
            Self { files: OnceLock::new() }
        }

        pub(crate) fn prepare(&self) -> std::io::Result<()> {
            if self.files.get().is_none() {
                let timer =
                    timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
                let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let _ = self.files.set((timer, wake));
            }
            Ok(())
        }

        pub(crate) fn wake(&self) {
            if let Some((_, wake)) = self.files.get() {
                // A full counter is an alarm that has not been seen yet.
                let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
            }
        }

        pub(crate) fn wait(&self, clock: &dyn Clock, until: BootInstant) {
            let Some((timer, wake)) = self.files.get() else { return };
            let left = until.since(clock.now()).max(std::time::Duration::from_nanos(1));
            let (seconds, nanos) = if until == BootInstant::NEVER {
                (0, 0)
            } else {
                (left.as_secs() as i64, left.subsec_nanos())
            };
            let spec = Itimerspec {
                it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
                it_value: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
            };
            // Setting a valid timer cannot fail; if it did, the loop would merely look too often.
            if timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec).is_err() {
                std::thread::yield_now();
                return;
            }
            let mut fds = [PollFd::new(timer, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
            let _ = poll(&mut fds, None);
            let mut count = [0u8; 8];
            let _ = rustix::io::read(wake, &mut count);
        }
    }
}

/// An alarm clock for systems without `timerfd`, and for a checker of races.
#[cfg(any(not(target_os = "linux"), all(test, any(tenure_loom, tenure_shuttle))))]
mod alarm {
    use std::{sync::PoisonError, time::Duration};

    use crate::{
        BootInstant, Clock,
        failpoints::{SafetyRule, is_disabled},
        sync::{Condvar, Mutex},
    };

    #[derive(Debug)]
    pub(crate) struct Alarm {
        woken: Mutex<bool>,
        condvar: Condvar,
    }

    impl Alarm {
        pub(crate) fn new() -> Self {
            Self { woken: Mutex::new(false), condvar: Condvar::new() }
        }

        pub(crate) fn prepare(&self) -> std::io::Result<()> {
            Ok(())
        }

        pub(crate) fn wake(&self) {
            *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.condvar.notify_one();
        }

        pub(crate) fn wait(&self, clock: &dyn Clock, until: BootInstant) {
            // In slices, because this wait may stand still while the machine is suspended.
            let left = until.since(clock.now()).min(Duration::from_millis(100));
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            if is_disabled(SafetyRule::KeepWakeups) {
                *woken = false;
            }
            if !*woken {
                // Woken without a reason, the watchdog looks once too often.
                (woken, _) = self.condvar.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner);
            }
            *woken = false;
        }
    }
}
