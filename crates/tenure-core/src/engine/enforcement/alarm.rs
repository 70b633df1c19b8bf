//! A timer that counts the time during which the machine is suspended, and can be woken early.

pub(super) use imp::Alarm;

#[cfg(all(target_os = "linux", not(all(test, any(tenure_loom, tenure_shuttle)))))]
mod imp {
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

        /// Creates the timer.
        ///
        /// # Errors
        /// When the system refuses it.
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
                // A full counter is a wake-up that has not been consumed yet.
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
            // Setting a valid timer cannot fail. If it did, the caller would only check too often.
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

/// For systems without `timerfd`, and for the concurrency tests.
#[cfg(any(not(target_os = "linux"), all(test, any(tenure_loom, tenure_shuttle))))]
mod imp {
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

        /// Creates the timer.
        ///
        /// # Errors
        /// When the system refuses it.
        pub(crate) fn prepare(&self) -> std::io::Result<()> {
            Ok(())
        }

        pub(crate) fn wake(&self) {
            *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.condvar.notify_one();
        }

        pub(crate) fn wait(&self, clock: &dyn Clock, until: BootInstant) {
            // In slices, because this wait may not count the time during which the machine is suspended.
            let left = until.since(clock.now()).min(Duration::from_millis(100));
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            if is_disabled(SafetyRule::KeepWakeups) {
                *woken = false;
            }
            if !*woken {
                // After a spurious wake-up the caller checks once too often.
                (woken, _) = self.condvar.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner);
            }
            *woken = false;
        }
    }
}
