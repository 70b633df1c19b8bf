//! The threads of an engine, which several electors can share.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    enforcement::{abort_timer::AbortTimer, watchdog::Watchdog},
    runtime::{
        callbacks::Callbacks,
        engine_runtime::{EngineRuntime, EngineThread},
        report::Reporter,
    },
};
use crate::{BootClock, Error, spi::Backend, sync::timeout};

/// How long connections may take to close after their elector was dropped.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The threads that run electors: one for tasks and connections, one that enforces deadlines, and some for files.
///
/// An elector starts an engine of its own, unless [`Config::with_engine`](crate::Config::with_engine) gives it this
/// one. A program with many electors saves threads by sharing one among them. Clones are the same engine.
///
/// # Behavior
/// - Electors on one engine are independent: each has its own session and connections. Closing or dropping one, or a
///   panic of its backend, does not affect the others.
/// - They share a thread, however: a backend that blocks it delays the heartbeats of all of them. The backends of this
///   project do not block.
/// - The threads end once the engine, its clones and its electors are dropped, and everything that these led has been
///   released. The one that enforces deadlines stays while a handle of a leadership exists. Dropping the engine first ends
///   nothing. No drop blocks.
/// - Events of all its electors are logged to the `tracing` subscriber of the thread that called
///   [`start`](Self::start). If that had none, to the process's subscriber as soon as one is set.
/// - `fork` does not copy threads: an engine does not run in a child process.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::sync::Arc;
/// use tenure_core::{Config, Elector, Engine, StoreElector, memory::MemoryStore};
///
/// let engine = Engine::start()?;
/// let elector = |store: &MemoryStore| {
///     StoreElector::new(Arc::new(store.backend()), Config::new().with_engine(engine.clone()))
/// };
/// let (rome, oslo) = (elector(&MemoryStore::new())?, elector(&MemoryStore::new())?);
/// let (_first, second) = (rome.campaign("billing").await?, oslo.campaign("billing").await?);
/// rome.close().await;
/// assert!(second.is_leader());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Threads>);

struct Threads {
    thread: EngineThread,
    /// For tasks that belong to no elector.
    runtime: EngineRuntime,
    watchdog: Arc<Watchdog>,
    /// Runs while an elector aborts the process on overruns.
    abort_timer: Mutex<Weak<AbortTimer>>,
    callbacks: Callbacks,
    reporter: Reporter,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the threads of an engine.
    ///
    /// # Errors
    /// [`Error::Threads`] when the system refuses one of them.
    pub fn start() -> Result<Self, Error> {
        Self::start_threads().map_err(Error::Threads)
    }

    fn start_threads() -> io::Result<Self> {
        let callbacks = Callbacks::of_this_process()?;
        let reporter = Reporter::new(&callbacks);
        let watchdog = Arc::new(Watchdog::start(Arc::new(BootClock), reporter.clone())?);
        let thread = EngineThread::start(reporter.clone())?;
        let runtime = EngineRuntime::on(&thread, TaskTracker::new(), callbacks.clone());
        let abort_timer = Mutex::default();
        Ok(Self(Arc::new(Threads { thread, runtime, watchdog, abort_timer, callbacks, reporter })))
    }

    /// Runs the tasks of one more elector, which `tasks` counts. Keeps the thread running until `elector_dropped` is
    /// cancelled and these tasks have ended, and then closes the connections of `backend`.
    pub(super) fn attach(
        &self,
        backend: &Arc<dyn Backend>,
        elector_dropped: &CancellationToken,
        tasks: &TaskTracker,
    ) -> EngineRuntime {
        let runtime = EngineRuntime::on(&self.0.thread, tasks.clone(), self.callbacks());
        let keep_alive = self.0.thread.keep_alive();
        let (backend, elector_dropped, tasks) = (Arc::clone(backend), elector_dropped.clone(), tasks.clone());
        runtime.spawn_untracked(async move {
            // Also dropped when the backend panics.
            let _keep_alive = keep_alive;
            elector_dropped.cancelled().await;
            tasks.close();
            tasks.wait().await;
            let _ = timeout(DISCONNECT_TIMEOUT, backend.close()).await;
        });
        runtime
    }

    /// Runs tasks that belong to no elector, and do not keep the thread running.
    pub(crate) fn runtime(&self) -> &EngineRuntime {
        &self.0.runtime
    }

    /// The thread that aborts the process, started if it is not running.
    pub(super) fn abort_timer(&self) -> io::Result<Arc<AbortTimer>> {
        let mut running = self.0.abort_timer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(abort_timer) = running.upgrade() {
            return Ok(abort_timer);
        }
        let started = Arc::new(AbortTimer::start()?);
        *running = Arc::downgrade(&started);
        Ok(started)
    }

    pub(super) fn watchdog(&self) -> Arc<Watchdog> {
        Arc::clone(&self.0.watchdog)
    }

    pub(super) fn callbacks(&self) -> Callbacks {
        self.0.callbacks.clone()
    }

    pub(super) fn reporter(&self) -> Reporter {
        self.0.reporter.clone()
    }
}
