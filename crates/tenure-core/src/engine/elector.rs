//! The elector over any store.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream};
use tokio::sync::oneshot::{self, error::RecvError};
use tracing::{Level, debug, warn};

use super::{
    Shared,
    campaign::Campaign,
    entry::Caller,
    observe,
    opener::Opener,
    report::FLUSH,
    retry::{Retry, timed},
    works::Polling,
};
use crate::{
    Backoff, Candidate, CandidateId, Clock, Config, Diagnosis, ElectionName, Elector, Error, Leaders,
    Leadership, LeadershipHandle, Status,
    spi::{Backend, BackendError},
    sync::timeout,
    telemetry,
};

/// The [`Elector`] over any [`Backend`].
///
/// The engine runs on threads of its own, which start with the elector: the application's runtimes may be blocked, idle or
/// dropped, and a log subscriber may block or panic, without costing a leadership or delaying its end. The threads end once
/// the elector is dropped and everything it led has been given back. A backend serves one elector: its connections live on
/// that elector's threads.
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
    shared: Arc<Shared>,
    opener: Opener,
}

impl StoreElector {
    /// An elector over `backend`. Starts the engine's threads; nothing is asked of the store yet.
    ///
    /// The engine runs in real time, also where the caller's is paused: see [`with_clock`](Self::with_clock) for tests.
    ///
    /// What the engine logs goes to the `tracing` subscriber of the thread that calls this; where there is none yet, to the
    /// process's once there is one.
    ///
    /// # Errors
    /// When a setting cannot work; see [`Config::validate`]. [`Error::Threads`] when the system refuses a thread.
    pub fn new(backend: Arc<dyn Backend>, config: Config) -> Result<Self, Error> {
        config.validate()?;
        let shared = Shared::start(backend, config).map_err(Error::Threads)?;
        Ok(Self { shared, opener: Opener::default() })
    }

    /// An elector that measures its deadlines with `clock` and runs as tasks of the current runtime, which has to be a
    /// current-thread one: for simulations and tests in paused time ([`SimClock`](crate::SimClock)).
    ///
    /// Weaker than [`new`](Self::new): the engine lives only as long as that runtime is driven, and a waker, hook or log
    /// subscriber that blocks delays deadlines.
    ///
    /// # Errors
    /// When a setting cannot work; see [`Config::validate`].
    pub fn with_clock(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self { shared: Shared::simulated(backend, config, clock), opener: Opener::default() })
    }

    /// Who this elector's candidates are.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Campaigns as a task of the engine. When the future is dropped, or `given_up` completes, the candidacy withdraws.
    async fn stand(
        &self,
        election: &str,
        waits: bool,
        given_up: impl Future<Output = ()> + Send,
    ) -> Result<Option<Leadership>, Error> {
        let election = ElectionName::new(election)?;
        let shared = &self.shared;
        let since = shared.clock.now();
        shared.reporter.measured(|| telemetry::campaign_started(&election));
        let (caller, answer, stays) = Caller::new();
        let (opener, name) = (self.opener.clone(), election.clone());
        let campaign = Campaign { shared: Arc::clone(shared), opener, election: name, since, waits };
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
                drop(stays);
                return self.withdraw(election, answer).await;
            }
        };
        match answered {
            Ok(outcome) => outcome,
            Err(_) if shared.closing.is_cancelled() => Err(Error::Closed),
            Err(_) => Err(Error::TaskEnded("its outcome never came")),
        }
    }

    /// Waits until a candidacy that was given up has withdrawn, at most for the shutdown timeout.
    async fn withdraw(
        &self,
        election: ElectionName,
        answer: impl Future<Output = Result<Result<Option<Leadership>, Error>, RecvError>> + Send + 'static,
    ) -> Result<Option<Leadership>, Error> {
        let shared = &self.shared;
        let limit = shared.config.shutdown_timeout;
        let withdrawn = async move {
            match answer.await {
                // It came to lead at the last moment.
                Ok(Ok(Some(leadership))) => leadership.give_back().await,
                Ok(Ok(None)) => true,
                // Refused, and so without an entry.
                Ok(Err(error)) => !matches!(error, Error::NotConfirmed { .. }),
                // The elector closes, and says itself what is left.
                Err(_) => false,
            }
        };
        let withdrawn = shared.runtime.call(async move { timeout(limit, withdrawn).await }).await;
        if !matches!(withdrawn, Ok(Ok(true))) && !shared.closing.is_cancelled() {
            shared.reporter.log(Level::WARN, move || {
                warn!(%election, within = %humantime::format_duration(limit),
                    "the store has not confirmed that the candidate's entry is gone; it goes once the store answers, or with its session");
            });
        }
        Ok(None)
    }

    /// Runs `call` on the engine; given up when the elector closes.
    async fn on_engine<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        let outcome = self.shared.runtime.call(async move { end_with(&shared, call).await }).await?;
        outcome.ok_or(Error::Closed)
    }

    /// The store's answer to a question, asked again for as long as it cannot be reached.
    async fn ask<T, F>(
        &self,
        what: &'static str,
        question: impl Fn(Arc<dyn Backend>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let asking = async move {
            let mut retry = Retry::new(shared.config.retry);
            loop {
                let question = question(Arc::clone(&shared.backend));
                match timed(what, shared.config.request_timeout, question).await {
                    Ok(answer) => {
                        shared.status.answered();
                        return Ok(answer);
                    }
                    Err(error) => {
                        shared.status.failed(&error);
                        if error.is_permanent() {
                            return Err(error.into());
                        }
                        debug!(%error, "asking again");
                    }
                }
                retry.pause().await;
            }
        };
        self.on_engine(asking).await?
    }
}

impl Drop for StoreElector {
    fn drop(&mut self) {
        self.shared.abandoned.cancel();
    }
}

#[async_trait]
impl Elector for StoreElector {
    async fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        match self.stand(election, true, std::future::pending()).await? {
            Some(leadership) => Ok(leadership),
            None => Err(Error::TaskEnded("a candidate that waits was turned away")),
        }
    }

    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        self.stand(election, false, std::future::pending()).await
    }

    async fn campaign_until(
        &self,
        election: &str,
        given_up: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        self.stand(election, true, given_up).await
    }

    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.ask("asking for the leader", move |store| {
            let election = election.clone();
            async move { store.leader(&election).await }
        })
        .await
    }

    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.ask("asking for the candidates", move |store| {
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
        self.ask("asking the leader to resign", move |store| {
            let election = election.clone();
            async move { store.request_resign(&election).await }
        })
        .await
    }

    fn candidate(&self) -> CandidateId {
        self.shared.config.id.clone()
    }

    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        let term = self.shared.term(&ElectionName::new(election).ok()?)?;
        Some(LeadershipHandle::new(term)).filter(LeadershipHandle::is_leader)
    }

    fn status(&self) -> Status {
        self.shared.status.get()
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        let shared = Arc::clone(&self.shared);
        let examined =
            self.shared.runtime.call(async move { super::diagnose::diagnose(&shared).await }).await;
        examined.unwrap_or_else(|error| {
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
        let shared = &self.shared;
        shared.closing.cancel();
        shared.tasks.close();
        let (sender, closed) = oneshot::channel();
        let closing = Arc::clone(shared);
        // Not among the tasks that it waits for.
        shared.runtime.spawn_untracked(async move {
            close(&closing).await;
            let _ = sender.send(());
        });
        if Polling::any(|(_, elector)| elector == Arc::as_ptr(shared).addr()) {
            shared.reporter.log(Level::WARN, || {
                warn!("close was awaited by work that it waits for: it goes on in the background");
            });
            return;
        }
        let _ = shared.runtime.relayed(closed).await;
    }
}

/// Waits until everything has ended, at most for the shutdown timeout, and lets go of the backend.
async fn close(shared: &Shared) {
    let limit = shared.config.shutdown_timeout;
    let ending = async {
        shared.tasks.wait().await;
        shared.backend.close().await;
    };
    if timeout(limit, ending).await.is_err() {
        let status = shared.status.get();
        warn!(session = status.session, error = status.last_error, within = %humantime::format_duration(limit),
            "not everything has ended in time: what is left goes on ending in the background; if this process ends before, its \
             session expires within its TTL");
    }
    // A log that blocks keeps nobody.
    let _ = timeout(FLUSH, shared.reporter.flush()).await;
}

/// The outcome of `future`, or `None` when the elector closes first.
async fn end_with<T>(shared: &Shared, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shared.closing.cancelled() => None,
        outcome = future => Some(outcome),
    }
}
