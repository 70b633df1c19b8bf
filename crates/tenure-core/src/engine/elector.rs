//! The elector over any store.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream};
use tenure_mmap::ForkMark;
use tokio::sync::oneshot;
use tracing::{Level, debug, warn};

use super::{
    Engine, campaigning, check, diagnose,
    elector_context::ElectorContext,
    resume,
    runtime::{
        report::FLUSH_TIMEOUT,
        retry::{Retry, with_timeout},
    },
    tasks::{
        campaigns::Campaigns, elections::Elections, elector_task, in_flight_work::PollGuard, observe, tokens,
    },
};
use crate::{
    Backoff, CampaignOptions, Candidate, CandidateId, Clock, Config, Diagnosis, ElectionName, Elector, Error,
    InvalidConfig, Leaders, Leadership, LeadershipHandle, Shutdown, Status,
    spi::{Backend, BackendError, BackendErrorKind, SessionRecord},
    sync::timeout,
};

/// The number of request timeouts that listing the elections may take.
const LISTING_REQUESTS: u32 = 10;

/// The [`Elector`] over any [`Backend`].
///
/// The engine runs on threads of its own, which start with the elector unless [`Config::with_engine`] gives it an
/// [`Engine`]. A blocked, idle or dropped runtime of the application, or a log subscriber that blocks or panics,
/// neither costs a leadership nor delays its end. The threads end once the elector is dropped and all its leaderships
/// have been given back. A backend serves one elector: its connections live on that elector's threads.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::sync::Arc;
/// use tenure_core::{Config, Elector, StoreElector, memory::MemoryStore};
///
/// let store = MemoryStore::new();
/// let elector = StoreElector::new(Arc::new(store.backend()), Config::new())?;
/// let leadership = elector.campaign("billing").await?;
/// assert!(leadership.is_leader());
/// leadership.resign().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct StoreElector {
    /// `None` for an elector that runs in the current runtime.
    engine: Option<Engine>,
    shared: Arc<ElectorContext>,
    campaigns: Campaigns,
    elections: Arc<Elections>,
}

impl StoreElector {
    /// Creates an elector over `backend`. Starts the engine's threads unless the config names an engine, but sends no
    /// request to the store yet.
    ///
    /// The engine runs in real time, also when tokio's time is paused: use [`with_clock`](Self::with_clock) in
    /// tests.
    ///
    /// The engine logs to the `tracing` subscriber of the current thread. If that has none, it logs to the
    /// process's subscriber as soon as one is set.
    ///
    /// # Errors
    /// - An invalid setting: see [`Config::validate`]; or a [resume file](Config::with_resume_file) that cannot be used.
    /// - [`Error::Threads`] when the system refuses a thread.
    /// - [`Error::Forked`] in a process that was forked, without `exec`, from one that had an elector.
    pub fn new(backend: Arc<dyn Backend>, mut config: Config) -> Result<Self, Error> {
        config.validate()?;
        refuse_in_forked_child()?;
        // Taken, because a handle that outlives the elector keeps the config, but must not keep the engine.
        let engine = config.engine.take().map_or_else(Engine::start, Ok)?;
        let shared = ElectorContext::on(&engine, backend, config)?;
        Ok(Self::with_shared(Some(engine), shared))
    }

    /// Creates an elector that measures its deadlines with `clock` and runs as tasks of the current runtime,
    /// which has to be a current-thread runtime: for simulations and tests in paused time
    /// ([`SimClock`](crate::SimClock)).
    ///
    /// Weaker than [`new`](Self::new): the engine runs only while that runtime is driven, and a waker, hook or log
    /// subscriber that blocks delays deadlines.
    ///
    /// # Errors
    /// An invalid setting: see [`Config::validate`]; [`Config::with_engine`] is not allowed.
    pub fn with_clock(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        config.validate()?;
        if config.engine.is_some() {
            return Err(InvalidConfig::EngineWithClock.into());
        }
        refuse_in_forked_child()?;
        Ok(Self::with_shared(None, ElectorContext::simulated(backend, config, clock)?))
    }

    fn with_shared(engine: Option<Engine>, shared: Arc<ElectorContext>) -> Self {
        let elections = Arc::default();
        Self { engine, campaigns: elector_task::start(&shared, &elections), shared, elections }
    }

    /// The settings of this elector.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    async fn campaign_until_given_up(
        &self,
        election: &str,
        options: CampaignOptions,
        given_up: impl Future<Output = ()> + Send,
    ) -> Result<Option<Leadership>, Error> {
        let Self { shared, campaigns, elections, .. } = self;
        campaigning::campaign(shared, campaigns, elections, election, options, given_up).await
    }

    /// Runs `call` on the engine, until the elector closes.
    async fn on_engine<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        let outcome = self.shared.runtime.call(async move { until_closing(&shared, call).await }).await?;
        outcome.ok_or(Error::Closed)
    }

    /// Sends `request` to the store, and retries for as long as the store cannot be reached. `operation` names
    /// the request in errors.
    async fn request<T, F>(
        &self,
        operation: &'static str,
        request: impl Fn(Arc<dyn Backend>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        self.request_within(operation, self.shared.config.request_timeout, request).await
    }

    /// As [`request`](Self::request), with `limit` as the timeout of each attempt.
    async fn request_within<T, F>(
        &self,
        operation: &'static str,
        limit: Duration,
        request: impl Fn(Arc<dyn Backend>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let answer = async move {
            let mut retry = Retry::new(shared.config.retry);
            loop {
                let request = request(Arc::clone(&shared.backend));
                match with_timeout(operation, limit, request).await {
                    Ok(answer) => {
                        shared.status.answered();
                        return Ok(answer);
                    }
                    Err(error) => {
                        shared.status.failed(&error);
                        if error.is_permanent() {
                            return Err(error.into());
                        }
                        debug!(%error, "{operation} again");
                    }
                }
                retry.pause().await;
            }
        };
        self.on_engine(answer).await?
    }
}

impl Drop for StoreElector {
    fn drop(&mut self) {
        // The elector of a forked child belongs to its parent.
        if self.shared.fork_mark.is_forked() {
            return;
        }
        self.shared.elector_dropped.cancel();
    }
}

#[async_trait]
impl Elector for StoreElector {
    async fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error> {
        self.campaign_until_given_up(election, options, std::future::pending()).await
    }

    async fn campaign_until(
        &self,
        election: &str,
        given_up: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        self.campaign_until_given_up(election, CampaignOptions::new(), given_up).await
    }

    async fn set_value(&self, election: &str, value: Vec<u8>) -> Result<(), Error> {
        campaigning::set_value(&self.shared, &self.elections, election, value).await
    }

    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        let shared = Arc::clone(&self.shared);
        self.request("reading the leader", move |store| {
            let (shared, election) = (Arc::clone(&shared), election.clone());
            async move {
                let read = store.leader(&election);
                tokens::noting_leader(&shared, &election, read, Option::as_ref).await
            }
        })
        .await
    }

    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        let shared = Arc::clone(&self.shared);
        self.request("reading the candidates", move |store| {
            let (shared, election) = (Arc::clone(&shared), election.clone());
            async move {
                let read = store.candidates(&election);
                tokens::noting_leader(&shared, &election, read, |candidates| candidates.first()).await
            }
        })
        .await
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, Error> {
        let limit = self.shared.config.request_timeout * LISTING_REQUESTS;
        let listed = self
            .request_within("listing the elections", limit, |store| async move { store.elections().await });
        let mut elections = listed.await?;
        elections.sort_unstable();
        elections.dedup();
        Ok(elections)
    }

    fn observe(&self, election: &str) -> Leaders {
        let election = match ElectionName::new(election) {
            Ok(election) => election,
            Err(error) => return stream::iter([Err(error.into())]).boxed(),
        };
        if self.shared.fork_mark.is_forked() {
            return stream::iter([Err(Error::Forked)]).boxed();
        }
        observe::leaders(&self.shared, election)
    }

    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        let requested = self.request("requesting a resignation", move |store| {
            let election = election.clone();
            async move {
                match store.request_resign(&election).await {
                    // An answer about this request. The store refuses nothing else, so the status stays.
                    Err(refused) if refused.kind() == BackendErrorKind::Invalid => Ok(Err(refused)),
                    answer => answer.map(Ok),
                }
            }
        });
        Ok(requested.await??)
    }

    async fn end_session(&self, record: &SessionRecord) -> Result<(), Error> {
        let (shared, record) = (Arc::clone(&self.shared), record.clone());
        let ended = async move { resume::end(&*shared.backend, &record, &shared.config).await };
        Ok(self.on_engine(ended).await??)
    }

    fn engine(&self) -> Option<Engine> {
        self.engine.clone()
    }

    fn candidate_id(&self) -> CandidateId {
        self.shared.config.id.clone()
    }

    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        // A thread of the parent may have held the lock.
        if self.shared.fork_mark.is_forked() {
            return None;
        }
        let term = self.elections.term(&ElectionName::new(election).ok()?)?;
        Some(LeadershipHandle::new(term)).filter(LeadershipHandle::is_leader)
    }

    fn status(&self) -> Status {
        if self.shared.fork_mark.is_forked() {
            return Status { last_error: Some(Error::Forked.to_string()), ..Status::default() };
        }
        self.shared.status.get()
    }

    async fn check(&self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        self.on_engine(async move { check::check(&shared).await }).await?
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        let shared = Arc::clone(&self.shared);
        let diagnoses = self.shared.runtime.call(async move { diagnose::diagnose(&shared).await }).await;
        diagnoses.unwrap_or_else(|error| {
            vec![Diagnosis::problem("engine", error.to_string(), "see the log for a panic of the backend")]
        })
    }

    fn work_backoff(&self) -> Backoff {
        self.shared.config.work_backoff
    }

    fn shutdown_timeout(&self) -> Duration {
        self.shared.config.shutdown_timeout
    }

    async fn close(&self) {
        let _ = self.close_within(self.shared.config.shutdown_timeout).await;
    }

    async fn close_within(&self, limit: Duration) -> Shutdown {
        let shared = &self.shared;
        if shared.fork_mark.is_forked() {
            return Shutdown::UNKNOWN;
        }
        shared.closing.cancel();
        shared.tasks.close();
        let (sender, closed) = oneshot::channel();
        let closing = Arc::clone(shared);
        // Not tracked: it waits for all tracked tasks.
        shared.runtime.spawn_untracked(async move {
            close(&closing, limit).await;
            let _ = sender.send(());
        });
        if PollGuard::any(|owner| owner.elector == Arc::as_ptr(shared).addr()) {
            shared.reporter.log(Level::WARN, || {
                warn!("close was awaited by work that it waits for; it goes on in the background");
            });
        } else {
            let _ = shared.runtime.relayed(closed).await;
        }
        Shutdown::of_sessions(&shared.sessions)
    }
}

/// The threads that all electors of a process share do not exist in its forked children.
fn refuse_in_forked_child() -> Result<(), Error> {
    if ForkMark::of_this_process().is_forked() { Err(Error::Forked) } else { Ok(()) }
}

/// Waits until all tasks have ended, at most for `limit`, and closes the backend.
async fn close(shared: &ElectorContext, limit: Duration) {
    let ending = async {
        shared.tasks.wait().await;
        shared.backend.close().await;
    };
    if timeout(limit, ending).await.is_err() {
        let status = shared.status.get();
        let left = Shutdown::of_sessions(&shared.sessions);
        warn!(session = status.session, error = status.last_error, within = %humantime::format_duration(limit),
            expires_in = %left.rounded_expires_in(),
            "not everything has ended in time: the rest ends in the background; if this process exits before, its session \
             expires by itself");
    }
    // A log that blocks delays `close` for no longer than this.
    let _ = timeout(FLUSH_TIMEOUT, shared.reporter.flush()).await;
}

/// The outcome of `future`, or `None` when the elector closes first.
async fn until_closing<T>(shared: &ElectorContext, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shared.closing.cancelled() => None,
        outcome = future => Some(outcome),
    }
}
