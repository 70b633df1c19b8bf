//! The elector over any store.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::oneshot;
use tracing::{Instrument as _, debug, info_span};

use super::{
    Shared,
    entry::{self, Candidacy, Outcome},
    opener::Opener,
    retry::{Retry, timed},
};
use crate::{
    Backoff, BootClock, Candidate, CandidateId, Clock, Config, ElectionName, Elector, Error, Finding,
    Leaders, Leadership, LeadershipHandle, Status,
    spi::{Backend, BackendError},
    sync::spawn_tracked,
    telemetry,
};

/// The [`Elector`] over any [`Backend`].
///
/// A session is kept by tasks of the runtime in which it was opened, the one of the first campaign: that runtime has to be driven
/// for as long as leaderships stand, wherever they are used.
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
    /// An elector over `backend`. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// When a setting cannot work; see [`Config::validate`].
    pub fn new(backend: Arc<dyn Backend>, config: Config) -> Result<Self, Error> {
        Self::with_clock(backend, config, Arc::new(BootClock))
    }

    /// The same, measuring its deadlines with `clock`: for simulations.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(
        backend: Arc<dyn Backend>,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self { shared: Shared::new(backend, config, clock), opener: Opener::default() })
    }

    /// Who this elector's candidates are.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    async fn stand(&self, election: &str, waits: bool) -> Result<Option<Leadership>, Error> {
        let election = ElectionName::new(election)?;
        let shared = &self.shared;
        let since = shared.clock.now();
        telemetry::stands(&election);
        let slot = shared.slot(&election);
        let permit = if waits {
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => return Err(Error::Closed),
                permit = slot.acquire_owned() => permit.map_err(|_| Error::Closed)?,
            }
        } else {
            match slot.try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => return Ok(None),
            }
        };
        let mut permit = Some(permit);
        let mut retry = Retry::new(shared.config.retry);
        loop {
            if shared.closing.is_cancelled() {
                return Err(Error::Closed);
            }
            let session = tokio::select! {
                biased;
                () = shared.closing.cancelled() => return Err(Error::Closed),
                session = self.opener.session(shared) => session?,
            };
            // When this future is dropped, the outcome's receiver is, which withdraws the candidacy.
            let (sender, outcome) = oneshot::channel();
            let candidacy = Candidacy {
                election: election.clone(),
                candidate: shared.config.id.clone(),
                value: Arc::clone(&shared.value),
                since,
                waits,
                permit: permit.take(),
            };
            let span = info_span!("candidate", %election, candidate = %shared.config.id);
            let task = entry::run(Arc::clone(&session), candidacy, sender).instrument(span);
            spawn_tracked(&session.entries, task);
            let outcome = outcome.await.map_err(|_| Error::TaskEnded("its outcome never came"))?;
            match outcome {
                Outcome::Leads(leadership) => return Ok(Some(leadership)),
                Outcome::NotNow => return Ok(None),
                Outcome::Failed(error) => return Err(error),
                Outcome::SessionEnded(place) => {
                    debug!(%election, "campaigning on under a new session");
                    permit = place;
                }
            }
            tokio::select! {
                () = shared.closing.cancelled() => {}
                () = retry.pause() => {}
            }
        }
    }

    /// The store's answer to a question, asked again for as long as it cannot be reached.
    async fn ask<T, F>(&self, what: &'static str, question: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let shared = &self.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            let answer = tokio::select! {
                biased;
                () = shared.closing.cancelled() => return Err(Error::Closed),
                answer = timed(what, shared.config.request_timeout, question()) => answer,
            };
            match answer {
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
            if end_with(shared, retry.pause()).await.is_none() {
                return Err(Error::Closed);
            }
        }
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
        match self.stand(election, true).await? {
            Some(leadership) => Ok(leadership),
            None => Err(Error::TaskEnded("a candidate that waits was turned away")),
        }
    }

    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        self.stand(election, false).await
    }

    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.ask("asking for the leader", || self.shared.backend.leader(&election)).await
    }

    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.ask("asking for the candidates", || self.shared.backend.candidates(&election)).await
    }

    fn observe(&self, election: &str) -> Leaders {
        let shared = Arc::clone(&self.shared);
        let election = ElectionName::new(election);
        async_stream::stream! {
            let election = match election {
                Ok(election) => election,
                Err(error) => {
                    yield Err(error.into());
                    return;
                }
            };
            let mut retry = Retry::new(shared.config.retry);
            let mut last: Option<Option<Candidate>> = None;
            loop {
                let observing = timed("observing", shared.config.request_timeout, shared.backend.observe(&election));
                let error = match end_with(&shared, observing).await {
                    None => return,
                    Some(Err(error)) => Some(error),
                    Some(Ok(mut leaders)) => loop {
                        match end_with(&shared, leaders.next()).await {
                            None => return,
                            Some(None) => break None,
                            Some(Some(Err(error))) => break Some(error),
                            Some(Some(Ok(leader))) => {
                                shared.status.answered();
                                retry.reset();
                                if !last.as_ref().is_some_and(|last| same(last.as_ref(), leader.as_ref())) {
                                    last = Some(leader.clone());
                                    yield Ok(leader);
                                }
                            }
                        }
                    },
                };
                if let Some(error) = error {
                    shared.status.failed(&error);
                    if error.is_permanent() {
                        yield Err(error.into());
                        return;
                    }
                    debug!(%election, %error, "observing again");
                }
                if end_with(&shared, retry.pause()).await.is_none() {
                    return;
                }
            }
        }
        .boxed()
    }

    async fn ask_to_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        let election = ElectionName::new(election)?;
        self.ask("asking the leader to resign", || self.shared.backend.ask_to_resign(&election)).await
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

    async fn examine(&self) -> Vec<Finding> {
        super::examine::examine(&self.shared).await
    }

    fn work_backoff(&self) -> Backoff {
        self.shared.config.after_work
    }

    async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let closing = async {
            self.shared.backend.close().await;
            Ok(())
        };
        if let Err(error) = timed("closing the backend", self.shared.config.request_timeout, closing).await {
            debug!(%error, "the backend is left to close by itself");
        }
    }
}

/// The outcome of `future`, or `None` when the elector closes first.
async fn end_with<T>(shared: &Shared, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shared.closing.cancelled() => None,
        outcome = future => Some(outcome),
    }
}

/// Whether two observations show the same term and value.
fn same(a: Option<&Candidate>, b: Option<&Candidate>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            (&a.id, &a.value, a.token, &a.session) == (&b.id, &b.value, b.token, &b.session)
        }
        _ => false,
    }
}
