//! Calls what a user wrote (wakers, hooks) on threads that nothing else depends on.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::mutants::{Rule, broken};

/// So many calls may block at once before the next one has to wait for them.
const MAX_THREADS: usize = 8;

thread_local! {
    static ENGINE_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks the current thread as one on which nothing that a user wrote may be called.
pub(crate) fn mark_engine_thread() {
    ENGINE_THREAD.set(true);
}

/// Whether the current thread is such a one.
pub(crate) fn is_engine_thread() -> bool {
    ENGINE_THREAD.get()
}

type Call = Box<dyn FnOnce() + Send>;

/// Threads that call wakers and hooks. Clones share them; they end with the last clone.
///
/// There is always a thread that waits for the next call, up to [`MAX_THREADS`]: a call that blocks delays no other. A
/// call that panics is over, and nothing else is. In a given runtime (simulated time, models of races) there are no
/// threads, and every call is made at once.
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
    over: bool,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").field("threads", &self.has_threads()).finish()
    }
}

impl Callbacks {
    /// Makes every call at once, on the caller's thread.
    pub(crate) fn inline() -> Self {
        Self(None)
    }

    /// Starts the first thread.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let pool = Arc::new(Pool { state: Mutex::default(), changed: Condvar::new() });
        pool.lock().threads = 1;
        Pool::add_thread(&pool)?;
        Ok(Self(Some(Arc::new(Handle(pool)))))
    }

    /// Makes `call` on one of these threads; at once where there are none.
    pub(crate) fn defer(&self, call: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Some(handle) if !broken(Rule::CallUsersElsewhere) => {
                handle.0.lock().calls.push_back(Box::new(call));
                handle.0.changed.notify_one();
            }
            _ => call(),
        }
    }

    /// Makes `call` at once, unless the current thread is the engine's.
    pub(crate) fn call(&self, call: impl FnOnce() + Send + 'static) {
        if is_engine_thread() { self.defer(call) } else { call() }
    }

    /// Whether calls are made by threads of their own.
    pub(crate) fn has_threads(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread, which `State::threads` counts already.
    fn add_thread(self: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(self);
        thread::Builder::new().name("tenure-callbacks".into()).spawn(move || pool.run()).map(drop)
    }

    /// Makes calls until the last handle is gone and none is left.
    fn run(self: Arc<Self>) {
        while let Some((call, last_idle)) = self.next() {
            // Best effort: without another thread, the next call waits for this one.
            if last_idle && self.add_thread().is_err() {
                self.lock().threads -= 1;
            }
            // Also what the call owns is dropped in here. The panic hook has reported the panic.
            let _ = catch_unwind(AssertUnwindSafe(call));
        }
    }

    /// The next call, and whether no other thread waits for the one after it; `None` when it is over.
    fn next(&self) -> Option<(Call, bool)> {
        let mut state = self.lock();
        loop {
            if let Some(call) = state.calls.pop_front() {
                let last_idle = state.idle == 0 && state.threads < MAX_THREADS;
                if last_idle {
                    state.threads += 1;
                }
                return Some((call, last_idle));
            }
            if state.over {
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

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Hazard G26: a call that blocks delays no other, and one that panics ends nothing.
    #[test]
    fn a_call_that_blocks_or_panics_delays_no_other() {
        let callbacks = Callbacks::start().unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        callbacks.defer(move || {
            let _ = blocked.recv();
        });
        callbacks.defer(|| panic!("a waker with a bug"));
        let (sender, made) = mpsc::channel();
        callbacks.defer(move || sender.send(thread::current().name().map(str::to_owned)).unwrap());
        assert_eq!(made.recv_timeout(PATIENCE).unwrap().as_deref(), Some("tenure-callbacks"));
        drop(release);
    }

    #[test]
    fn the_threads_end_with_the_last_handle() {
        let callbacks = Callbacks::start().unwrap();
        let pool = Arc::downgrade(&callbacks.0.as_ref().unwrap().0);
        let (sender, made) = mpsc::channel();
        callbacks.clone().defer(move || sender.send(()).unwrap());
        drop(callbacks);
        made.recv_timeout(PATIENCE).unwrap();
        let since = std::time::Instant::now();
        while pool.strong_count() > 0 {
            assert!(since.elapsed() < PATIENCE, "a thread goes on");
            thread::yield_now();
        }
    }
}
