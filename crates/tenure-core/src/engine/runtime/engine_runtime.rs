//! The runtime of the engine's tasks: a thread of its own, or a given runtime (simulated time).

use std::{
    convert::Infallible,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::sync_channel,
    thread,
    time::Duration,
};

use tenure_mmap::ForkMark;
use tokio::{
    runtime::{Handle, Runtime},
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use tokio_util::task::TaskTracker;

use super::{
    callbacks::Callbacks,
    relayed::{Relayed, remember_tokio_waker},
    report::Reporter,
};
use crate::Error;

/// The number of threads for name resolution and files. One of them starts with the engine. tokio queues
/// further work, also when the system refuses another thread.
const MAX_BLOCKING_THREADS: usize = 16;
/// Blocking threads are kept, so that none has to be started later, when the system may refuse it.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The engine's thread with a current-thread runtime, which lives on the thread's stack.
///
/// The thread ends once this and all of its [`KeepAlive`]s are dropped. It is never joined.
#[derive(Debug)]
pub(crate) struct EngineThread {
    handle: Handle,
    keep_alive: KeepAlive,
}

/// Keeps an engine's thread running until it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct KeepAlive(
    #[expect(dead_code, reason = "its drop is what counts")] mpsc::Sender<Infallible>,
);

impl EngineThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses a thread or an event queue.
    pub(crate) fn start(reporter: Reporter) -> io::Result<Self> {
        let (keep_alive, mut users) = mpsc::channel(1);
        let (sender, receiver) = sync_channel::<Runtime>(1);
        let blocking_reporter = reporter.clone();
        thread::Builder::new().name("tenure-engine".into()).spawn(move || {
            reporter.enter_engine_thread();
            let Ok(runtime) = receiver.recv() else { return };
            runtime.block_on(users.recv());
            // A name resolution that hangs must not keep this thread alive.
            runtime.shutdown_background();
        })?;
        // Built on this thread, so that the constructor need not wait for the new one.
        let runtime = build(blocking_reporter)?;
        let handle = runtime.handle().clone();
        if let Err(unsent) = sender.send(runtime) {
            unsent.0.shutdown_background();
            return Err(io::Error::other("the engine's thread has panicked"));
        }
        Ok(Self { handle, keep_alive: KeepAlive(keep_alive) })
    }

    /// Keeps the thread running until it is dropped.
    pub(crate) fn keep_alive(&self) -> KeepAlive {
        self.keep_alive.clone()
    }
}

/// Spawns the engine's tasks. Clones spawn on the same runtime.
#[derive(Clone, Debug)]
pub(crate) struct EngineRuntime {
    /// `None` in the concurrency tests, whose checker schedules tasks of its own.
    #[cfg_attr(all(test, tenure_shuttle), expect(dead_code, reason = "shuttle schedules tasks of its own"))]
    handle: Option<Handle>,
    /// Counts the tasks of one elector, which keep the engine's thread running.
    tasks: TaskTracker,
    callbacks: Callbacks,
    fork_mark: ForkMark,
}

impl EngineRuntime {
    /// Runs the tasks of one elector on `thread`. `tasks` counts them.
    pub(crate) fn on(thread: &EngineThread, tasks: TaskTracker, callbacks: Callbacks) -> Self {
        let handle = Some(thread.handle.clone());
        Self { handle, tasks, callbacks, fork_mark: ForkMark::of_this_process() }
    }

    /// Runs the engine's tasks in the current runtime. Without one, only the concurrency tests work.
    pub(crate) fn current(tasks: TaskTracker, callbacks: Callbacks) -> Self {
        Self { handle: Handle::try_current().ok(), tasks, callbacks, fork_mark: ForkMark::of_this_process() }
    }

    /// Starts a task. Clean-up that is needed also when the task is dropped before its first poll belongs in
    /// the `Drop` of a value that `task` owns, not in its body: the runtime may be shutting down.
    ///
    /// In a forked child, where no thread would run it, the task is dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_task(self.tasks.track_future(task));
    }

    /// Starts a task that does not keep the engine's thread alive.
    pub(crate) fn spawn_untracked(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_task(task);
    }

    #[cfg(not(all(test, tenure_shuttle)))]
    fn start_task(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        if self.fork_mark.is_forked() {
            return None;
        }
        Some(self.handle.as_ref()?.spawn(task).abort_handle())
    }

    #[cfg(all(test, tenure_shuttle))]
    fn start_task(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        drop(shuttle::future::spawn(task));
        None
    }

    /// Runs `call` on the engine, for a caller on any executor.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child; [`Error::TaskEnded`] when the engine's runtime has been shut down, or `call` has
    /// panicked.
    ///
    /// # Cancellation safety
    /// Dropping the future drops `call`.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        if self.fork_mark.is_forked() {
            return Err(Error::Forked);
        }
        let (sender, answer) = oneshot::channel();
        let task = self.start_task(self.tasks.track_future(async move {
            let _ = sender.send(call.await);
        }));
        let _aborts = AbortOnDrop(task);
        let answer = self.relayed(answer).await;
        answer.map_err(|_| Error::TaskEnded("its runtime was shut down, or a backend has panicked"))
    }

    /// Wraps a future or stream that the application polls: its wakers are not called on the engine's thread.
    pub(crate) fn relayed<T>(&self, inner: T) -> Relayed<T> {
        Relayed::new(self.callbacks.clone(), inner)
    }
}

struct AbortOnDrop(Option<AbortHandle>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn build(reporter: Reporter) -> io::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_name("tenure-blocking")
        .on_thread_start(move || reporter.enter_engine_thread())
        .build()?;
    drop(runtime.spawn(remember_tokio_waker()));
    // tokio panics, with a message, when the system refuses its first blocking thread. Here that is an error, and mostly
    // without the message, since another thread is tried first; later it cannot happen.
    if let Err(refused) = std::thread::Builder::new().spawn(|| ()).map(|probe| drop(probe.join())) {
        runtime.shutdown_background();
        return Err(refused);
    }
    match catch_unwind(AssertUnwindSafe(|| drop(runtime.spawn_blocking(|| ())))) {
        Ok(()) => Ok(runtime),
        Err(_) => {
            runtime.shutdown_background();
            Err(io::Error::other("a thread for name resolution cannot be started"))
        }
    }
}
