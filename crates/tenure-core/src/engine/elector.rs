//! The elector over any store.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream};
use tokio::sync::oneshot::{self, error::RecvError};
use tracing::{Level, debug, warn};

use super::{
    diagnose,
    elector_context::ElectorContext,
    runtime::{
        report::FLUSH_TIMEOUT,
        retry::{Retry, with_timeout},
    },
    tasks::{
        campaign::Campaign, candidacy::Caller, elections::Elections, in_flight_work::PollGuard, observe,
        session_pool::SessionPool,
    },
};
use crate::{
    Backoff, Candidate, CandidateId, Clock, Config, Diagnosis, ElectionName, Elector, Error, Leaders,
    Leadership, LeadershipHandle, Shutdown, Status,
    spi::{Backend, BackendError},
    sync::timeout,
    telemetry,
};

/// The [`Elector`] over any [`Backend`].
///
/// The engine runs on threads of its own, which start with the elector. A blocked, idle or dropped runtime of
/// the application, or a log subscriber that blocks or panics, neither costs a leadership nor delays its end.
/// The threads end once the elector is dropped and all its leaderships have been given back. A backend serves
/// one elector: its connections live on that elector's threads.
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
    shared: Arc<ElectorContext>,
    session_pool: SessionPool,
    elections: Arc<Elections>,
}

impl StoreElector {
    /// Creates an elector over `backend`. Starts the engine's threads, but sends no request to the store yet.
    ///
    /// The engine runs in real time, also when tokio's time is paused: use [`with_clock`](Self::with_clock) in
    /// tests.
    ///
    /// The engine logs to the `tracing` subscriber of the current thread. If that has none, it logs to the
    /// process's subscriber as soon as one is set.
    ///
    /// # Errors
    /// - An invalid setting: see [`Config::validate`].
    /// - [`Error::Threads`] when the system refuses a thread.
    pub fn new(backend: Arc<dyn Backend>, config: Config) -> Result<Self, Error> {
        config.validate()?;
        let shared = ElectorContext::start(backend, config).map_err(Error::Threads)?;
        Ok(Self::with_shared(shared))
    }

    /// Creates an elector that measures its deadlines with `clock` and runs as tasks of the current runtime,
    /// which has to be a current-thread runtime: for simulations and tests in paused time
    /// ([`SimClock`](crate::SimClock)).
    ///
    /// Weaker than [`new`](Self::new): the engine runs only while that runtime is driven, and a waker, hook or log
    /// subscriber that blocks delays deadlines.
    ///
    /// # Errors
    /// An invalid setting: see [`Config::validate`].
    pub fn with_clock(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self::with_shared(ElectorContext::simulated(backend, config, clock)))
    }

    fn with_shared(shared: Arc<ElectorContext>) -> Self {
        Self { shared, session_pool: SessionPool::default(), elections: Arc::default() }
    }

    /// The settings of this elector.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Campaigns as a task of the engine. When the future is dropped, or `given_up` completes, the candidacy
    /// withdraws.
    async fn start_campaign(
        &self,
        election: &str,
        wait_for_turn: bool,
        given_up: impl Future<Output = ()> + Send,
    ) -> Result<Option<Leadership>, Error> {
        let election = ElectionName::new(election)?;
        let shared = &self.shared;
        let started_at = shared.clock.now();
        shared.reporter.measured(|| telemetry::campaign_started(&election));
        let (caller, answer, withdraw_on_drop) = Caller::new();
        let campaign = Campaign {
            shared: Arc::clone(shared),
            session_pool: self.session_pool.clone(),
            elections: Arc::clone(&self.elections),
            election: election.clone(),
            started_at,
            wait_for_turn,
        };
        shared.runtime.spawn(campaign.run(caller));
        let mut answer = shared.runtime.relayed(answer);
        let answered = tokio::select! {
            biased;
            answered = &mut answer => Some(answered),
            () = given_up => None,
        };
        let answered = match answered {
            Some(answered) => answered,
            None => {
                drop(withdraw_on_drop);
                return self.withdraw(election, answer).await;
            }
        };
        match answered {
            Ok(outcome) => outcome,
            Err(_) if shared.closing.is_cancelled() => Err(Error::Closed),
            Err(_) => Err(Error::TaskEnded("the campaign's task was aborted without a result")),
        }
    }

    /// Waits until a candidacy that was given up has withdrawn. Waits at most for the shutdown timeout.
    async fn withdraw(
        &self,
        election: ElectionName,
        answer: impl Future<Output = Result<Result<Option<Leadership>, Error>, RecvError>> + Send + 'static,
    ) -> Result<Option<Leadership>, Error> {
        let shared = &self.shared;
        let limit = shared.config.shutdown_timeout;
        let withdrawn = async move {
            match answer.await {
                // It was elected before it could withdraw.
                Ok(Ok(Some(leadership))) => leadership.release_and_wait().await,
                Ok(Ok(None)) => true,
                // A candidate that the store refuses has no entry.
                Ok(Err(error)) => !matches!(error, Error::NotConfirmed { .. }),
                // The elector is closing, and reports itself what is left.
                Err(_) => false,
            }
        };
        let withdrawn = shared.runtime.call(async move { timeout(limit, withdrawn).await }).await;
        if !matches!(withdrawn, Ok(Ok(true))) && !shared.closing.is_cancelled() {
            shared.reporter.log(Level::WARN, move || {
                warn!(%election, within = %humantime::format_duration(limit),
                    "the store has not confirmed that the candidate's entry is gone; it is removed once the store answers, or expires with its session");
            });
        }
        Ok(None)
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
        let shared = Arc::clone(&self.shared);
        let answer = async move {
            let mut retry = Retry::new(shared.config.retry);
            loop {
                let request = request(Arc::clone(&shared.backend));
                match with_timeout(operation, shared.config.request_timeout, request).await {
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
        self.shared.elector_dropped.cancel();
    }
}

#[async_trait]
impl Elector for StoreElector {
    async fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        match self.start_campaign(election, true, std::future::pending()).await? {
            Some(leadership) => Ok(leadership),
            None => Err(Error::TaskEnded("a campaign that waits was not elected")),
        }
    }

    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        self.start_campaign(election, false, std::future::pending()).await
    }

    async fn campaign_until(
        &self,
        election: &str,
        given_up: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        self.start_campaign(election, true, given_up).await
    }

    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.request("reading the leader", move |store| {
            let election = election.clone();
            async move { store.leader(&election).await }
        })
        .await
    }

    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.request("reading the candidates", move |store| {
            let election = election.clone();
            async move { store.candidates(&election).await }
        })
        .await
    }

    fn observe(&self, election: &str) -> Leaders {
        let election = match ElectionName::new(election) {
            Ok(election) => election,
            Err(error) => return stream::iter([Err(error.into())]).boxed(),
        };
        observe::leaders(&self.shared, election)
    }

    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.request("requesting a resignation", move |store| {
            let election = election.clone();
            async move { store.request_resign(&election).await }
        })
        .await
    }

    fn candidate(&self) -> CandidateId {
        self.shared.config.id.clone()
    }

    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        let term = self.elections.term(&ElectionName::new(election).ok()?)?;
        Some(LeadershipHandle::new(term)).filter(LeadershipHandle::is_leader)
    }

    fn status(&self) -> Status {
        self.shared.status.get()
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
