//! The thread that fires deadlines on time even when every worker of the runtime is blocked.

use std::{
    fmt,
    sync::{Arc, PoisonError, Weak},
};

use tokio::sync::Notify;

use crate::{
    Clock, Moment,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        spawn, thread,
    },
};

/// Something with deadlines to watch.
pub(crate) trait Watched: Send + Sync {
    /// Does what is due, and says when to look again; `None` when there is nothing left to watch.
    fn check(&self) -> Option<Moment>;
}

/// Looks after the deadlines of an elector's sessions: a thread of its own, or a task under a simulated clock.
pub(crate) struct Watchdog {
    state: Arc<State>,
}

struct State {
    clock: Arc<dyn Clock>,
    watched: Mutex<Vec<Weak<dyn Watched>>>,
    started: AtomicBool,
    quit: AtomicBool,
    alarm: alarm::Alarm,
    notify: Notify,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("started", &self.state.started).finish_non_exhaustive()
    }
}

impl Watchdog {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Arc::new(State {
                clock,
                watched: Mutex::default(),
                started: AtomicBool::new(false),
                quit: AtomicBool::new(false),
                alarm: alarm::Alarm::new(),
                notify: Notify::new(),
            }),
        }
    }

    /// Watches `watched` until it is dropped or has nothing left to watch.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn watch(&self, watched: Weak<dyn Watched>) -> std::io::Result<()> {
        self.state.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        if !self.state.started.swap(true, Ordering::AcqRel) {
            self.start().inspect_err(|_| self.state.started.store(false, Ordering::Release))?;
        }
        self.wake();
        Ok(())
    }

    /// Looks again now: a deadline has come nearer.
    pub(crate) fn wake(&self) {
        if self.state.clock.wants_watchdog_thread() {
            self.state.alarm.wake();
        } else {
            self.state.notify.notify_one();
        }
    }

    fn start(&self) -> std::io::Result<()> {
        let state = Arc::clone(&self.state);
        if state.clock.wants_watchdog_thread() {
            state.alarm.prepare()?;
            thread::Builder::new().name("tenure-watchdog".into()).spawn(move || {
                while !state.quit.load(Ordering::Acquire) {
                    let next = state.check();
                    state.alarm.wait(&*state.clock, next);
                }
            })?;
        } else {
            spawn(async move {
                while !state.quit.load(Ordering::Acquire) {
                    let next = state.check();
                    tokio::select! {
                        () = state.clock.sleep_until(next), if next < Moment::NEVER => {}
                        () = state.notify.notified() => {}
                    }
                }
            });
        }
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.state.quit.store(true, Ordering::Release);
        self.wake();
    }
}

impl State {
    /// Does what is due, and returns when to look again.
    fn check(&self) -> Moment {
        let watched: Vec<_> = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|weak| weak.strong_count() > 0);
            watched.clone()
        };
        let mut next = Moment::NEVER;
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

    use crate::{Clock, Moment};

    pub(super) struct Alarm {
        files: OnceLock<(OwnedFd, OwnedFd)>,
    }

    impl Alarm {
        pub(super) fn new() -> Self {
            Self { files: OnceLock::new() }
        }

        pub(super) fn prepare(&self) -> std::io::Result<()> {
            if self.files.get().is_none() {
                let timer =
                    timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
                let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let _ = self.files.set((timer, wake));
            }
            Ok(())
        }

        pub(super) fn wake(&self) {
            if let Some((_, wake)) = self.files.get() {
                // A full counter is an alarm that has not been seen yet.
                let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
            }
        }

        pub(super) fn wait(&self, clock: &dyn Clock, until: Moment) {
            let Some((timer, wake)) = self.files.get() else { return };
            let left = until.since(clock.now()).max(std::time::Duration::from_nanos(1));
            let (seconds, nanos) =
                if until == Moment::NEVER { (0, 0) } else { (left.as_secs() as i64, left.subsec_nanos()) };
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
        Clock, Moment,
        mutants::{Rule, broken},
        sync::{Condvar, Mutex},
    };

    pub(super) struct Alarm {
        woken: Mutex<bool>,
        condvar: Condvar,
    }

    impl Alarm {
        pub(super) fn new() -> Self {
            Self { woken: Mutex::new(false), condvar: Condvar::new() }
        }

        pub(super) fn prepare(&self) -> std::io::Result<()> {
            Ok(())
        }

        pub(super) fn wake(&self) {
            *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.condvar.notify_one();
        }

        pub(super) fn wait(&self, clock: &dyn Clock, until: Moment) {
            // In slices, because this wait may stand still while the machine is suspended.
            let left = until.since(clock.now()).min(Duration::from_millis(100));
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            if broken(Rule::RememberTheWake) {
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
