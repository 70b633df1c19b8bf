//! The synchronization primitives of the engine. A race checker (`cargo xtask races`) replaces them by its own.
//!
//! | Built with | Mutexes, atomics, threads | Tasks and timers |
//! |---|---|---|
//! | no `--cfg` | std | tokio |
//! | `--cfg tenure_loom`, tests of this crate | loom | tokio; the loom models contain none |
//! | `--cfg tenure_shuttle`, tests of this crate | shuttle | shuttle |
//!
//! The primitives of tokio and `tokio-util` (cancellation tokens, channels, semaphores) cannot be replaced. A race checker
//! treats each call of them as one atomic step.

#[cfg(not(all(test, any(tenure_loom, tenure_shuttle))))]
mod primitives {
    pub(crate) use std::{
        sync::{Mutex, MutexGuard, atomic},
        thread,
    };
}

#[cfg(all(test, tenure_loom))]
mod primitives {
    pub(crate) use loom::{
        sync::{Condvar, Mutex, MutexGuard, atomic},
        thread,
    };
}

#[cfg(all(test, tenure_shuttle))]
mod primitives {
    pub(crate) use shuttle::{
        sync::{Condvar, Mutex, MutexGuard, atomic},
        thread,
    };
}

pub(crate) use primitives::*;
#[cfg(not(any(target_os = "linux", all(test, any(tenure_loom, tenure_shuttle)))))]
pub(crate) use std::sync::Condvar;

/// Timers of tokio. For tasks see [`EngineRuntime`](crate::engine::runtime::engine_runtime::EngineRuntime).
#[cfg(not(all(test, tenure_shuttle)))]
mod timers {
    pub(crate) use tokio::time::{sleep, timeout};
}

/// Timers under shuttle, which has no notion of time: a sleep ends whenever the schedule says so, and a timeout never
/// elapses.
#[cfg(all(test, tenure_shuttle))]
mod timers {
    use std::{convert::Infallible, future::Future, time::Duration};

    pub(crate) async fn sleep(_: Duration) {
        shuttle::future::yield_now().await;
    }

    pub(crate) async fn timeout<F: Future>(_: Duration, future: F) -> Result<F::Output, Infallible> {
        Ok(future.await)
    }
}

pub(crate) use timers::*;

/// A cell whose value is set once and never changes.
#[cfg(not(all(test, any(tenure_loom, tenure_shuttle))))]
#[derive(Debug)]
pub(crate) struct SetOnce<T>(std::sync::OnceLock<T>);

#[cfg(not(all(test, any(tenure_loom, tenure_shuttle))))]
impl<T: Copy> SetOnce<T> {
    pub(crate) fn new() -> Self {
        Self(std::sync::OnceLock::new())
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.0.get().copied()
    }

    /// The value of the cell, after setting it to `value` if it had none.
    pub(crate) fn get_or_set(&self, value: T) -> T {
        *self.0.get_or_init(|| value)
    }

    /// Sets the cell to `value`. Returns `false` if it already had a value.
    pub(crate) fn set(&self, value: T) -> bool {
        self.0.set(value).is_ok()
    }
}

/// The same cell for race checkers. As with std's, a read synchronizes with the write of the value and with nothing else.
#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
#[derive(Debug)]
pub(crate) struct SetOnce<T> {
    is_set: atomic::AtomicBool,
    value: Mutex<Option<T>>,
}

#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
impl<T: Copy> SetOnce<T> {
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

/// A flag that is set once and can be awaited. It is like a cancellation token without children, and needs only two words of
/// memory until a task waits.
///
/// A race checker cannot instrument tokio's `Notify` and treats each call as one atomic step, so this type always uses the
/// atomics of std.
#[derive(Debug)]
pub(crate) struct Flag {
    is_set: std::sync::atomic::AtomicBool,
    notify: once_cell::race::OnceBox<tokio::sync::Notify>,
}

impl Flag {
    pub(crate) fn new() -> Self {
        Self { is_set: std::sync::atomic::AtomicBool::new(false), notify: once_cell::race::OnceBox::new() }
    }

    pub(crate) fn set(&self) {
        self.is_set.store(true, std::sync::atomic::Ordering::SeqCst);
        // Either this call sees the waiter, or the waiter sees that the flag is set.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if let Some(notify) = self.notify.get() {
            notify.notify_waiters();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Waits until the flag is set.
    pub(crate) async fn wait(&self) {
        if self.is_set() {
            return;
        }
        let mut notified = std::pin::pin!(self.notify.get_or_init(Box::default).notified());
        // From here on no notification is missed.
        notified.as_mut().enable();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if !self.is_set() {
            notified.await;
        }
    }
}
