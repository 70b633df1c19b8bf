//! What the engine's threads share, under one name each, so that a checker of races can put its
//! own in their place: `cargo xtask races`.
//!
//! | built with | mutexes, atomics, threads | tasks and waits |
//! |---|---|---|
//! | nothing | std's | tokio's |
//! | `--cfg tenure_loom`, this crate's tests | loom's | tokio's; there are none in its models |
//! | `--cfg tenure_shuttle`, this crate's tests | shuttle's | shuttle's |
//!
//! `tokio-util`'s and tokio's own primitives (cancellation tokens, channels, semaphores) cannot be
//! replaced from outside: each call of theirs counts as one step that nothing comes between.

#[cfg(not(all(test, any(tenure_loom, tenure_shuttle))))]
mod chosen {
    pub(crate) use std::{
        sync::{Mutex, MutexGuard, atomic},
        thread,
    };
}

#[cfg(all(test, tenure_loom))]
mod chosen {
    pub(crate) use loom::{
        sync::{Condvar, Mutex, MutexGuard, atomic},
        thread,
    };
}

#[cfg(all(test, tenure_shuttle))]
mod chosen {
    pub(crate) use shuttle::{
        sync::{Condvar, Mutex, MutexGuard, atomic},
        thread,
    };
}

pub(crate) use chosen::*;
#[cfg(not(any(target_os = "linux", all(test, any(tenure_loom, tenure_shuttle)))))]
pub(crate) use std::sync::Condvar;

/// Waits as tokio has them. Tasks: [`EngineRuntime`](crate::engine::runtime::engine_runtime::EngineRuntime).
#[cfg(not(all(test, tenure_shuttle)))]
mod tasks {
    pub(crate) use tokio::time::{sleep, timeout};
}

/// Tasks as shuttle schedules them. It knows no time: a wait is over whenever the schedule says so, and
/// no request takes too long.
#[cfg(all(test, tenure_shuttle))]
mod tasks {
    use std::{convert::Infallible, future::Future, time::Duration};

    pub(crate) async fn sleep(_: Duration) {
        shuttle::future::yield_now().await;
    }

    pub(crate) async fn timeout<F: Future>(_: Duration, future: F) -> Result<F::Output, Infallible> {
        Ok(future.await)
    }
}

pub(crate) use tasks::*;

/// A value that is set once and never changes.
#[cfg(not(all(test, any(tenure_loom, tenure_shuttle))))]
#[derive(Debug)]
pub(crate) struct Latch<T>(std::sync::OnceLock<T>);

#[cfg(not(all(test, any(tenure_loom, tenure_shuttle))))]
impl<T: Copy> Latch<T> {
    pub(crate) fn new() -> Self {
        Self(std::sync::OnceLock::new())
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.0.get().copied()
    }

    /// The value; `value` if there was none.
    pub(crate) fn get_or_set(&self, value: T) -> T {
        *self.0.get_or_init(|| value)
    }

    /// Whether `value` is what was set, as there was none.
    pub(crate) fn set(&self, value: T) -> bool {
        self.0.set(value).is_ok()
    }
}

/// The same with the checker's own parts: as std's, reading it synchronises with the setting of it
/// and with nothing else.
#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
#[derive(Debug)]
pub(crate) struct Latch<T> {
    is_set: atomic::AtomicBool,
    value: Mutex<Option<T>>,
}

#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
impl<T: Copy> Latch<T> {
    pub(crate) fn new() -> Self {
        Self { is_set: atomic::AtomicBool::new(false), value: Mutex::new(None) }
    }

    pub(crate) fn get(&self) -> Option<T> {
        if !self.is_set.load(atomic::Ordering::Acquire) {
            return None;
        }
        *self.value.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn get_or_set(&self, value: T) -> T {
        self.set(value);
        self.get().unwrap_or(value)
    }

    pub(crate) fn set(&self, value: T) -> bool {
        let mut held = self.value.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if held.is_some() {
            return false;
        }
        *held = Some(value);
        self.is_set.store(true, atomic::Ordering::Release);
        true
    }
}

/// Something that happens once, and is waited for: as a cancellation token, without its children, and with no more than a word
/// of memory until somebody waits.
///
/// Like that, it counts as one step to a checker of races, which cannot see into tokio's `Notify`: so its atomics are std's
/// in any case.
#[derive(Debug)]
pub(crate) struct Flag {
    happened: std::sync::atomic::AtomicBool,
    told: once_cell::race::OnceBox<tokio::sync::Notify>,
}

impl Flag {
    pub(crate) fn new() -> Self {
        Self { happened: std::sync::atomic::AtomicBool::new(false), told: once_cell::race::OnceBox::new() }
    }

    pub(crate) fn set(&self) {
        self.happened.store(true, std::sync::atomic::Ordering::SeqCst);
        // Either this sees who waits, or who waits sees that it has happened.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if let Some(told) = self.told.get() {
            told.notify_waiters();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.happened.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Returns once it has happened.
    pub(crate) async fn wait(&self) {
        if self.is_set() {
            return;
        }
        let mut told = std::pin::pin!(self.told.get_or_init(Box::default).notified());
        // From here on nothing is missed.
        told.as_mut().enable();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if !self.is_set() {
            told.await;
        }
    }
}
