//! Threads that call application code (wakers, hooks, log subscribers). Nothing else depends on them.

use std::{
    any::Any,
    cell::Cell,
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
};

use crate::failpoints::{SafetyRule, is_disabled};

/// This many calls may block at once before the next one waits for them.
const MAX_THREADS: usize = 256;

thread_local! {
    static ENGINE_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks the current thread as an engine thread, on which no application code may be called.
pub(crate) fn mark_engine_thread() {
    let _ = ENGINE_THREAD.try_with(|engine| engine.set(true));
}

/// Whether the current thread is an engine thread.
pub(crate) fn is_engine_thread() -> bool {
    ENGINE_THREAD.try_with(Cell::get).unwrap_or(false)
}

/// Calls `call`; `None` when it panics. The panic hook has reported the panic by then.
pub(crate) fn catch_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // Dropping the payload may panic as well.
            std::mem::forget::<Box<dyn Any + Send>>(payload);
            None
        }
    }
}

type Call = Box<dyn FnOnce() + Send>;

/// Threads that call wakers, hooks and subscribers. All electors of a process share them; they end with the
/// last elector.
///
/// There is always a thread that waits for the next call, up to [`MAX_THREADS`]: a call that blocks delays no
/// other. A call that panics affects nothing else. In a given runtime (simulated time, concurrency tests) there
/// are no threads, and every call is made synchronously.
#[derive(Clone)]
pub(crate) struct Callbacks(Option<Arc<Handle>>);

struct Handle(Arc<Pool>);

struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: VecDeque<Call>,
    threads: usize,
    idle: usize,
    shut_down: bool,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").field("threads", &self.has_threads()).finish()
    }
}

impl Callbacks {
    /// Makes every call synchronously, on the caller's thread.
    pub(crate) fn inline() -> Self {
        Self(None)
    }

    /// The threads of this process. Starts the first one if there is none.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        static SHARED: Mutex<Weak<Handle>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = shared.upgrade() {
            return Ok(Self(Some(handle)));
        }
        let started = Self::start()?;
        *shared = started.0.as_ref().map(Arc::downgrade).unwrap_or_default();
        Ok(started)
    }

    fn start() -> io::Result<Self> {
        let pool = Arc::new(Pool { state: Mutex::default(), changed: Condvar::new() });
        pool.lock().threads = 1;
        Pool::add_thread(&pool)?;
        Ok(Self(Some(Arc::new(Handle(pool)))))
    }

    /// Makes `call` on one of these threads; synchronously if there are none.
    pub(crate) fn defer(&self, call: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Some(handle) if !is_disabled(SafetyRule::NoUserCodeOnEngine) => {
                handle.0.lock().calls.push_back(Box::new(call));
                handle.0.changed.notify_one();
            }
            _ => call(),
        }
    }

    /// Whether calls are made on other threads.
    pub(crate) fn has_threads(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().shut_down = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread, which `State::threads` already counts.
    fn add_thread(self: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(self);
        thread::Builder::new().name("tenure-callbacks".into()).spawn(move || pool.run()).map(drop)
    }

    /// Makes calls until the pool is shut down and no call is left, or until enough other threads wait for calls.
    fn run(self: Arc<Self>) {
        while let Some((call, last_idle)) = self.next() {
            // Best effort: without another thread, the next call waits for this one.
            if last_idle && self.add_thread().is_err() {
                self.lock().threads -= 1;
            }
            catch_panic(call);
        }
    }

    /// The next call, and whether no other thread waits for the one after it; `None` when this thread is no
    /// longer needed.
    fn next(&self) -> Option<(Call, bool)> {
        let mut state = self.lock();
        loop {
            if let Some(call) = state.calls.pop_front() {
                let last_idle = state.idle == 0 && state.threads < MAX_THREADS;
                state.threads += usize::from(last_idle);
                return Some((call, last_idle));
            }
            // Two wait: one for the next call, one for the call after it.
            if state.shut_down || state.idle >= 2 {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(all(test, not(any(tenure_loom, tenure_shuttle))))]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    /// Hazard G26: calls that block delay no other, and one that panics ends nothing.
    #[test]
    fn a_call_that_blocks_or_panics_delays_no_other() {
        let callbacks = Callbacks::start().unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..MAX_THREADS - 2 {
            let blocked = Arc::clone(&blocked);
            callbacks.defer(move || {
                let _ = blocked.lock().unwrap().recv();
            });
        }
        callbacks.defer(|| panic!("a waker with a bug"));
        let (sender, made) = mpsc::channel();
        callbacks.defer(move || sender.send(thread::current().name().map(str::to_owned)).unwrap());
        assert_eq!(made.recv_timeout(TEST_TIMEOUT).unwrap().as_deref(), Some("tenure-callbacks"));
        drop(release);
    }

    #[test]
    fn the_threads_end_with_the_last_handle() {
        let callbacks = Callbacks::start().unwrap();
        let pool = Arc::downgrade(&callbacks.0.as_ref().unwrap().0);
        let (sender, made) = mpsc::channel();
        callbacks.clone().defer(move || sender.send(()).unwrap());
        drop(callbacks);
        made.recv_timeout(TEST_TIMEOUT).unwrap();
        let start = std::time::Instant::now();
        while pool.strong_count() > 0 {
            assert!(start.elapsed() < TEST_TIMEOUT, "a callback thread has not ended");
            thread::yield_now();
        }
    }
}
