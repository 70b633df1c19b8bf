//! The context of one elector: what its parts share.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tenure_mmap::ForkMark;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Engine,
    enforcement::{abort_timer::AbortTimer, watchdog::Watchdog},
    resume::Resume,
    rules::{expiry::UnclosedSessions, token_marks::TokenMarks},
    runtime::{callbacks::Callbacks, engine_runtime::EngineRuntime, report::Reporter, retry::with_timeout},
};
use crate::{
    BootClock, Clock, Config, Error, OnOverrun, random,
    spi::{Backend, BackendError, BackendSession, SessionRecord},
    status::StatusCell,
};

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
    /// The highest tokens seen. Those of the resume file, if there is one.
    token_marks: Arc<Mutex<TokenMarks>>,
    /// `Some` if a resume file is configured.
    pub(crate) resume: Option<Resume>,
    /// The upper half of the nonces of all entries of this elector.
    nonce: u64,
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
        let nonce = random::upper_half();
        let resume = open_resume_file(&*backend, &config, nonce)?;
        Self::on_threads(engine, backend, config, nonce, resume).map_err(Error::Threads)
    }

    fn on_threads(
        engine: &Engine,
        backend: Arc<dyn Backend>,
        config: Config,
        nonce: u64,
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
            ..Self::within_runtime(backend, config, clock, elector_dropped, tasks, nonce, resume)
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
        let nonce = random::upper_half();
        let resume = open_resume_file(&*backend, &config, nonce)?;
        let (elector_dropped, tasks) = (CancellationToken::new(), TaskTracker::new());
        Ok(Arc::new(Self::within_runtime(backend, config, clock, elector_dropped, tasks, nonce, resume)))
    }

    /// A nonce for a new request, which is never used again.
    pub(crate) fn request_nonce(&self) -> u128 {
        u128::from(self.nonce) << 64 | u128::from(random::upper_half())
    }

    /// Identifies a session of this elector for [`Elector::end_session`](crate::Elector::end_session); `None` if no other process
    /// can end sessions of this store.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn record(
        &self,
        session: &dyn BackendSession,
    ) -> Result<Option<SessionRecord>, BackendError> {
        if !self.backend.capabilities().ends_sessions {
            return Ok(None);
        }
        let limit = self.config.request_timeout;
        let cluster = with_timeout("identifying the store", limit, session.cluster()).await?;
        Ok(Some(SessionRecord::new(session.id(), cluster, self.nonce)))
    }

    pub(crate) fn token_marks(&self) -> MutexGuard<'_, TokenMarks> {
        self.token_marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn within_runtime(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
        elector_dropped: CancellationToken,
        tasks: TaskTracker,
        nonce: u64,
        resume: Option<Resume>,
    ) -> Self {
        let callbacks = Callbacks::inline();
        let runtime = EngineRuntime::current(tasks.clone(), callbacks.clone());
        let status = StatusCell::new(Arc::clone(&clock), backend.store_name());
        Self {
            backend,
            value: config.value.as_slice().into(),
            config,
            watchdog: Arc::new(Watchdog::simulated(Arc::clone(&clock), runtime.clone())),
            runtime,
            abort_timer: None,
            callbacks,
            reporter: Reporter::inline(),
            status,
            clock,
            sessions: UnclosedSessions::default(),
            token_marks: resume.as_ref().map(Resume::token_marks).cloned().unwrap_or_default(),
            resume,
            nonce,
            fork_mark: ForkMark::of_this_process(),
            closing: CancellationToken::new(),
            elector_dropped,
            tasks,
        }
    }
}

fn open_resume_file(backend: &dyn Backend, config: &Config, nonce: u64) -> Result<Option<Resume>, Error> {
    config.resume_file.as_deref().map(|path| Resume::open(backend, path, nonce)).transpose()
}
