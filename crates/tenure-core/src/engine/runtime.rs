//! Where the engine's tasks run: on a thread of its own, or inside a runtime that is given (simulated time).

use std::{future::Future, io, sync::mpsc, thread, time::Duration};

use tokio::{runtime::Handle, sync::oneshot, task::AbortHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    callbacks::Callbacks,
    relay::{Relayed, learn_tokio_wakers},
    report::Reporter,
};
use crate::Error;

/// Threads for name resolution and files. One of them starts with the engine; tokio queues what the others cannot
/// take, also when the system refuses another thread.
const BLOCKING_THREADS: usize = 16;
/// Blocking threads are kept, so that none has to be started later, when the system may refuse it.
const KEEP_BLOCKING_THREADS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Spawns the engine's tasks. Clones spawn on the same runtime.
#[derive(Clone, Debug)]
pub(crate) struct EngineRuntime {
    /// `None` in the models of races, whose checker has tasks of its own.
    #[cfg_attr(all(test, tenure_shuttle), expect(dead_code, reason = "the checker has tasks of its own"))]
    handle: Option<Handle>,
    /// Every engine task; the engine's thread ends once the elector is dropped and none is left.
    tasks: TaskTracker,
    callbacks: Callbacks,
}

impl EngineRuntime {
    /// Starts the engine's thread with a current-thread runtime, which lives on the thread's stack.
    ///
    /// The thread ends once `abandoned` is cancelled and all tasks that `tasks` counts have ended. Nobody joins it.
    ///
    /// # Errors
    /// When the system refuses a thread or an event queue.
    pub(crate) fn start(
        abandoned: CancellationToken,
        tasks: TaskTracker,
        callbacks: Callbacks,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let (started, outcome) = mpsc::sync_channel(1);
        let tracker = tasks.clone();
        thread::Builder::new().name("tenure-engine".into()).spawn(move || {
            let _engine = reporter.enter_engine_thread();
            let runtime = match build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            drop(runtime.spawn(learn_tokio_wakers()));
            let _ = started.send(Ok(runtime.handle().clone()));
            drop(started);
            runtime.block_on(async {
                abandoned.cancelled().await;
                tracker.close();
                tracker.wait().await;
            });
            // A name resolution that hangs must not keep this thread.
            runtime.shutdown_background();
        })?;
        let handle = outcome.recv().map_err(|_| io::Error::other("the engine's thread has panicked"))??;
        Ok(Self { handle: Some(handle), tasks, callbacks })
    }

    /// Runs the engine's tasks in the runtime that calls this; without one, only the models of races work.
    pub(crate) fn current(tasks: TaskTracker, callbacks: Callbacks) -> Self {
        Self { handle: Handle::try_current().ok(), tasks, callbacks }
    }

    /// Starts a task. Whatever has to happen when the task is dropped before its first poll belongs into a value that
    /// `task` owns, not into its body: the runtime may be shutting down.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_task(self.tasks.track_future(task));
    }

    /// Starts a task that `tracker` counts as well.
    pub(crate) fn spawn_tracked(
        &self,
        tracker: &TaskTracker,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(tracker.track_future(task));
    }

    /// Starts a task that keeps nothing alive.
    pub(crate) fn spawn_untracked(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_task(task);
    }

    #[cfg(not(all(test, tenure_shuttle)))]
    fn start_task(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        Some(self.handle.as_ref()?.spawn(task).abort_handle())
    }

    #[cfg(all(test, tenure_shuttle))]
    fn start_task(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        drop(shuttle::future::spawn(task));
        None
    }

    /// Runs `call` on the engine, for a user on any executor.
    ///
    /// # Errors
    /// [`Error::TaskEnded`] when the engine's runtime has been shut down, or `call` has panicked.
    ///
    /// # Cancellation safety
    /// Dropping the future drops `call`.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        let task = self.start_task(self.tasks.track_future(async move {
            let _ = sender.send(call.await);
        }));
        let _aborts = AbortOnDrop(task);
        let answer = self.relayed(answer).await;
        answer.map_err(|_| Error::TaskEnded("its runtime was shut down, or a backend has panicked"))
    }

    /// A future or stream that a user polls: the user's wakers are not called on the engine's thread.
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

fn build() -> io::Result<tokio::runtime::Runtime> {
    // tokio panics when it cannot start its first blocking thread: refused here, it is an error.
    let probe = thread::Builder::new().name("tenure-probe".into()).spawn(|| ())?;
    let _ = probe.join();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_BLOCKING_THREADS)
        .thread_name("tenure-blocking")
        .build()?;
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}
