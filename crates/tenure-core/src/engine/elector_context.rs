//! The context of one elector: what its parts share.

use std::{io, sync::Arc};

use tenure_mmap::ForkMark;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Engine,
    enforcement::{abort_timer::AbortTimer, watchdog::Watchdog},
    resume::Resume,
    rules::expiry::UnclosedSessions,
    runtime::{callbacks::Callbacks, engine_runtime::EngineRuntime, report::Reporter},
};
use crate::{BootClock, Clock, Config, Error, OnOverrun, random, spi::Backend, status::StatusCell};

/// The state that all tasks and threads of one elector use.
#[derive(Debug)]
pub(crate) struct ElectorContext {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) config: Config,
    /// The configured value, in the form that all candidates share.
    pub(crate) value: Arc<[u8]>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: EngineRuntime,
    /// Shared by all electors of the engine.
    pub(crate) watchdog: Arc<Watchdog>,
    /// `Some` if overruns abort the process and the engine has threads of its own.
    pub(crate) abort_timer: Option<Arc<AbortTimer>>,
    pub(crate) callbacks: Callbacks,
    pub(crate) reporter: Reporter,
    pub(crate) status: StatusCell,
    pub(crate) sessions: UnclosedSessions,
    /// `Some` if a resume file is configured.
    pub(crate) resume: Option<Resume>,
    /// Belongs to the process that made the elector, and not to its forked children.
    pub(crate) fork_mark: ForkMark,
    /// Cancelled by `close`: everything ends.
    pub(crate) closing: CancellationToken,
    /// Cancelled when the elector is dropped: the session ends once no entry needs it.
    pub(crate) elector_dropped: CancellationToken,
    /// Counts all of the engine's tasks.
    pub(crate) tasks: TaskTracker,
}

impl ElectorContext {
    /// Runs the elector on the threads of `engine`.
    ///
    /// # Errors
    /// When the system refuses the thread that [`OnOverrun::Abort`] needs, or the resume file cannot be used.
    pub(super) fn on(engine: &Engine, backend: Arc<dyn Backend>, config: Config) -> Result<Arc<Self>, Error> {
        let resume = open_resume_file(&*backend, &config)?;
        Self::on_threads(engine, backend, config, resume).map_err(Error::Threads)
    }

    fn on_threads(
        engine: &Engine,
        backend: Arc<dyn Backend>,
        config: Config,
        resume: Option<Resume>,
    ) -> io::Result<Arc<Self>> {
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let (elector_dropped, tasks) = (CancellationToken::new(), TaskTracker::new());
        let aborts = matches!(config.on_overrun, OnOverrun::Abort);
        let abort_timer = aborts.then(|| engine.abort_timer()).transpose()?;
        let runtime = engine.attach(&backend, &elector_dropped, &tasks);
        Ok(Arc::new(Self {
            runtime,
            watchdog: engine.watchdog(),
            abort_timer,
            callbacks: engine.callbacks(),
            reporter: engine.reporter(),
            ..Self::within_runtime(backend, config, clock, elector_dropped, tasks, resume)
        }))
    }

    /// Runs the engine as tasks of the current runtime, for simulated time: starts no thread, and calls
    /// application code synchronously.
    ///
    /// # Errors
    /// When the resume file cannot be used.
    pub(super) fn simulated(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, Error> {
        let resume = open_resume_file(&*backend, &config)?;
        let (elector_dropped, tasks) = (CancellationToken::new(), TaskTracker::new());
        Ok(Arc::new(Self::within_runtime(backend, config, clock, elector_dropped, tasks, resume)))
    }

    /// A nonce for a new request, which is never used again.
    pub(crate) fn request_nonce(&self) -> u128 {
        self.resume.as_ref().map_or_else(random::number, Resume::request_nonce)
    }

    fn within_runtime(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
        elector_dropped: CancellationToken,
        tasks: TaskTracker,
        resume: Option<Resume>,
    ) -> Self {
        let callbacks = Callbacks::inline();
        let runtime = EngineRuntime::current(tasks.clone(), callbacks.clone());
        Self {
            backend,
            value: config.value.as_slice().into(),
            config,
            watchdog: Arc::new(Watchdog::simulated(Arc::clone(&clock), runtime.clone())),
            runtime,
            abort_timer: None,
            callbacks,
            reporter: Reporter::inline(),
            clock,
            status: StatusCell::default(),
            sessions: UnclosedSessions::default(),
            resume,
            fork_mark: ForkMark::of_this_process(),
            closing: CancellationToken::new(),
            elector_dropped,
            tasks,
        }
    }
}

fn open_resume_file(backend: &dyn Backend, config: &Config) -> Result<Option<Resume>, Error> {
    config.resume_file.as_deref().map(|path| Resume::open(backend, path)).transpose()
}
