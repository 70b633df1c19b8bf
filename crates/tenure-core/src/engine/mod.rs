//! The engine: every safety rule, once, for every store.
//!
//! | file | what |
//! |---|---|
//! | `window` | how long leadership may be assumed |
//! | `session` | what all elections of an elector share, and how it ends |
//! | `opener` | how an elector gets its session |
//! | `keeper` | heartbeats, their confirmation, and closing |
//! | `campaign` | a campaign, under one session after the other |
//! | `entry` | one candidate's entry, from entering to leading or leaving |
//! | `observe` | watching an election |
//! | `leading` | all who lead under one session, until they have been given back |
//! | `entry_watcher` | watches on their entries, where a backend watches each by itself |
//! | `graves` | requests that were withdrawn without an answer |
//! | `term` | one leadership |
//! | `work` | the work done under it |
//! | `works` | how much work that is, and whether more can begin |
//! | `runtime` | the thread, or the given runtime, on which all of these run |
//! | `watchdog` | the thread that enforces deadlines, whatever the engine and the application do |
//! | `abort` | the thread that ends the process when work goes on past its deadline, if that is asked for |
//! | `callbacks` | the threads that call wakers, hooks and subscribers of the application |
//! | `relay` | how the engine wakes a caller on any executor |
//! | `report`, `forward` | logs and metrics, which are written there too |
//! | `diagnose` | what an operator is told of the store, the machine and the settings |
//! | `elector` | the [`Elector`](crate::Elector) over all of it |

mod abort;
mod callbacks;
mod campaign;
mod diagnose;
mod elector;
mod entry;
mod entry_watcher;
mod forward;
mod graves;
mod keeper;
mod leading;
mod observe;
mod opener;
mod relay;
pub(crate) mod report;
pub(crate) mod retry;
mod runtime;
mod session;
pub(crate) mod term;
mod watchdog;
mod window;
mod work;
mod works;

#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
mod races;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, PoisonError, Weak},
};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use elector::StoreElector;

use self::{
    abort::AbortTimer, callbacks::Callbacks, report::Reporter, runtime::EngineRuntime, term::Term,
    watchdog::Watchdog,
};
use crate::{
    BootClock, Clock, Config, ElectionName, OnOverrun, spi::Backend, status::StatusCell, sync::Mutex,
};

/// What the parts of one elector share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) config: Config,
    /// The configured value, as all candidates share it.
    value: Arc<[u8]>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: EngineRuntime,
    pub(crate) watchdog: Watchdog,
    /// There if overruns abort the process, and threads are the engine's own.
    abort: Option<AbortTimer>,
    pub(crate) callbacks: Callbacks,
    pub(crate) reporter: Reporter,
    pub(crate) status: StatusCell,
    /// Cancelled by `close`: everything ends.
    pub(crate) closing: CancellationToken,
    /// Cancelled when the elector is dropped: the session ends once nothing stands on it.
    pub(crate) abandoned: CancellationToken,
    /// All of the engine's tasks.
    pub(crate) tasks: TaskTracker,
    elections: Mutex<HashMap<ElectionName, Own>>,
}

/// This elector's own part in an election.
#[derive(Debug, Default)]
struct Own {
    /// The one place for a candidate that it has there.
    slot: Weak<Semaphore>,
    /// Its latest term.
    term: Weak<Term>,
}

impl Own {
    fn is_over(&self) -> bool {
        self.slot.strong_count() == 0 && self.term.strong_count() == 0
    }
}

impl Shared {
    /// Starts the engine on threads of its own.
    ///
    /// # Errors
    /// When the system refuses one of them.
    fn start(backend: Arc<dyn Backend>, config: Config) -> io::Result<Arc<Self>> {
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let (abandoned, tasks) = (CancellationToken::new(), TaskTracker::new());
        let callbacks = Callbacks::of_this_process()?;
        let reporter = Reporter::new(&callbacks);
        let watchdog = Watchdog::start(Arc::clone(&clock), reporter.clone())?;
        let aborts = matches!(config.on_overrun, OnOverrun::Abort);
        let abort = aborts.then(AbortTimer::start).transpose()?;
        let runtime =
            EngineRuntime::start(abandoned.clone(), tasks.clone(), callbacks.clone(), reporter.clone())?;
        Ok(Arc::new(Self {
            runtime,
            watchdog,
            abort,
            callbacks,
            reporter,
            ..Self::within_runtime(backend, config, clock, abandoned, tasks)
        }))
    }

    /// The engine as tasks of the current runtime, for simulated time: no thread is started, and whatever a user wrote is
    /// called at once.
    fn simulated(backend: Arc<dyn Backend>, config: Config, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self::within_runtime(backend, config, clock, CancellationToken::new(), TaskTracker::new()))
    }

    fn within_runtime(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
        abandoned: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let callbacks = Callbacks::inline();
        let runtime = EngineRuntime::current(tasks.clone(), callbacks.clone());
        Self {
            backend,
            value: config.value.as_slice().into(),
            config,
            watchdog: Watchdog::simulated(Arc::clone(&clock), runtime.clone()),
            runtime,
            abort: None,
            callbacks,
            reporter: Reporter::inline(),
            clock,
            status: StatusCell::default(),
            closing: CancellationToken::new(),
            abandoned,
            tasks,
            elections: Mutex::default(),
        }
    }

    /// The one place for a candidate that this elector has in `election`.
    fn slot(&self, election: &ElectionName) -> Arc<Semaphore> {
        self.own(election, |own| {
            own.slot.upgrade().unwrap_or_else(|| {
                let slot = Arc::new(Semaphore::new(1));
                own.slot = Arc::downgrade(&slot);
                slot
            })
        })
    }

    /// Remembers `term` as the one in its election.
    fn leads(&self, term: &Arc<Term>) {
        self.own(term.election(), |own| own.term = Arc::downgrade(term));
    }

    /// The latest term in `election`; it may be over.
    fn term(&self, election: &ElectionName) -> Option<Arc<Term>> {
        let elections = self.elections.lock().unwrap_or_else(PoisonError::into_inner);
        elections.get(election)?.term.upgrade()
    }

    fn own<T>(&self, election: &ElectionName, change: impl FnOnce(&mut Own) -> T) -> T {
        let mut elections = self.elections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = elections.get_mut(election) {
            return change(own);
        }
        // Not each time: with thousands of them that is most of the work.
        if elections.len() == elections.capacity() {
            elections.retain(|_, own| !own.is_over());
        }
        change(elections.entry(election.clone()).or_default())
    }
}
