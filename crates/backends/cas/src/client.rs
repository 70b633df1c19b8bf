//! Requests to the store: bounded in time, typed, and with the epoch.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::stream::BoxStream;
use tenure_core::{
    ElectionName,
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tracing::warn;

use crate::{
    record::{Election, STORE_KEY, Session, SessionId, StoreRecord, election_key},
    rules::{CasRule, is_disabled},
    store::{CasStore, Epoch, EpochState, Freshness, Swap, Version},
};

/// A record that was read, with its version.
pub(crate) type Found<T> = Option<(Version, T)>;

/// How often a swap that conflicted is repeated at once. After that, a short pause lets a lagging replica catch up.
const EAGER_RETRIES: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Sends requests to the store.
#[derive(Debug)]
pub(crate) struct Client<S> {
    store: S,
    request_timeout: Duration,
    allows_unknown_epochs: bool,
    /// The highest epoch seen.
    epoch: Mutex<Option<Epoch>>,
    /// The lower epoch that was reported last.
    reported: Mutex<Option<Epoch>>,
}

/// What [`Client::change_election`] does with a record.
pub(crate) enum Change<T> {
    /// Swaps this in, and returns the result once that is done.
    Swap(Election, T),
    /// Returns without a swap.
    Keep(T),
}

impl<S: CasStore> Client<S> {
    pub(crate) fn new(store: S, request_timeout: Duration, allows_unknown_epochs: bool) -> Self {
        Self {
            store,
            request_timeout,
            allows_unknown_epochs,
            epoch: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    /// Bounds a request in time.
    pub(crate) async fn bounded<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        match tokio::time::timeout(self.request_timeout, request).await {
            Ok(answer) => answer,
            Err(_) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("{what}: the store did not answer within {:?}", self.request_timeout),
            )),
        }
    }

    pub(crate) async fn read_session(
        &self,
        session: &SessionId,
        freshness: Freshness,
    ) -> Result<Found<Session>, BackendError> {
        let key = session.key();
        let record = self.bounded("reading a session", self.store.read(&key, freshness)).await?;
        record.map(|record| Ok((record.version, Session::decode(&key, &record.body)?))).transpose()
    }

    pub(crate) async fn read_election(
        &self,
        election: &ElectionName,
        freshness: Freshness,
    ) -> Result<Found<Election>, BackendError> {
        let key = election_key(election);
        let record = self.bounded("reading an election", self.store.read(&key, freshness)).await?;
        record.map(|record| Ok((record.version, Election::decode(&key, &record.body)?))).transpose()
    }

    pub(crate) async fn swap_session(
        &self,
        session: &SessionId,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &Session,
    ) -> Result<Swap, BackendError> {
        self.swap("changing a session", &session.key(), expected, epoch, &body.encode()).await
    }

    pub(crate) async fn swap_election(
        &self,
        election: &ElectionName,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &Election,
    ) -> Result<Swap, BackendError> {
        self.swap("changing an election", &election_key(election), expected, epoch, &body.encode()).await
    }

    pub(crate) async fn swap(
        &self,
        what: &str,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        if is_disabled(CasRule::EpochInsideSwap)
            && let EpochState::Known(current) = self.store.epoch().await?
            && current != epoch
        {
            return Ok(Swap::EpochChanged);
        }
        self.bounded(what, self.store.swap(key, expected, epoch, body)).await
    }

    /// Deletes an ended session of this version.
    pub(crate) async fn delete_session(
        &self,
        session: &SessionId,
        version: &Version,
    ) -> Result<bool, BackendError> {
        self.bounded("deleting a session", self.store.delete(&session.key(), version)).await
    }

    /// The highest epoch seen; asks the store the first time.
    pub(crate) async fn epoch(&self) -> Result<Epoch, BackendError> {
        let known = *lock(&self.epoch);
        match known {
            Some(epoch) => Ok(epoch),
            None => self.refresh_epoch().await,
        }
    }

    /// The highest epoch seen so far.
    pub(crate) fn seen_epoch(&self) -> Epoch {
        lock(&self.epoch).unwrap_or_default()
    }

    /// Asks the store for its epoch (rule 7).
    ///
    /// # Errors
    /// [`Unavailable`](BackendErrorKind::Unavailable) when it is lower than one that was seen: an earlier primary answers.
    /// [`Invalid`](BackendErrorKind::Invalid) when it is lower than one in which candidates have led, by the record of the store; and when
    /// it is unknown and that is not allowed.
    pub(crate) async fn refresh_epoch(&self) -> Result<Epoch, BackendError> {
        let mut epoch = self.current_epoch().await?;
        if let Some(known) = epoch
            && !is_disabled(CasRule::RefuseLowerEpoch)
        {
            let settled = self.read_store().await?.map(|(_, record)| record.settled).unwrap_or_default();
            if known < settled {
                // The store may have failed over between the two requests. The record is of the later epoch.
                epoch = self.current_epoch().await?;
            }
            if let Some(known) = epoch.filter(|known| *known < settled) {
                return Err(begun_again(known, settled));
            }
        }
        let epoch = epoch.unwrap_or_default();
        let mut seen = lock(&self.epoch);
        if let Some(highest) = seen.filter(|highest| epoch < *highest) {
            let text = format!(
                "the store's epoch is {}, and was {} before: either an earlier primary answers, or the store was restored from a backup; \
                 after that, restart the processes of all candidates",
                epoch.0, highest.0
            );
            // Once: it may be asked for again and again.
            if lock(&self.reported).replace(epoch) != Some(epoch) {
                warn!("{text}");
            }
            return Err(BackendError::new(BackendErrorKind::Unavailable, text));
        }
        *seen = Some(epoch);
        *lock(&self.reported) = None;
        Ok(epoch)
    }

    /// The epoch that the store says it has; `None` if it has none.
    async fn current_epoch(&self) -> Result<Option<Epoch>, BackendError> {
        match self.bounded("reading the epoch", self.store.epoch()).await? {
            EpochState::Fixed => Ok(None),
            EpochState::Unknown if self.allows_unknown_epochs => Ok(None),
            EpochState::Unknown => {
                let text = "this store can lose acknowledged writes at a failover, and does not say when: two candidates could lead \
                            with the same fencing token; use a store that has an epoch, or allow unknown epochs";
                Err(BackendError::new(BackendErrorKind::Invalid, text))
            }
            EpochState::Known(epoch) if epoch > EpochState::MAX_EPOCH => {
                let text = format!("the store's epoch {} is too large for fencing tokens", epoch.0);
                Err(BackendError::new(BackendErrorKind::Invalid, text))
            }
            EpochState::Known(epoch) => Ok(Some(epoch)),
        }
    }

    /// The record of the store.
    pub(crate) async fn read_store(&self) -> Result<Found<StoreRecord>, BackendError> {
        let read = self.store.read(STORE_KEY, Freshness::Fresh);
        let record = self.bounded("reading the record of the store", read).await?;
        record.map(|record| Ok((record.version, StoreRecord::decode(&record.body)?))).transpose()
    }

    /// The epoch of the store after it has refused this one.
    pub(crate) async fn later_epoch(&self, refused: Epoch) -> Result<Epoch, BackendError> {
        let current = self.refresh_epoch().await?;
        if current == refused { Err(epoch_refused(refused)) } else { Ok(current) }
    }

    /// Changes an election's record as `decide` says, again and again until a swap is done. Conflicts are retried at once (rule 8).
    ///
    /// For changes that are allowed in any epoch: the current one is used.
    pub(crate) async fn change_election<T>(
        &self,
        election: &ElectionName,
        mut freshness: Freshness,
        mut decide: impl FnMut(Option<&Election>, Epoch) -> Result<Change<T>, BackendError>,
    ) -> Result<T, BackendError> {
        let mut epoch = self.epoch().await?;
        let mut conflicts = 0;
        loop {
            let found = self.read_election(election, freshness).await?;
            let (version, body) = found.as_ref().map(|(version, body)| (version, body)).unzip();
            let (next, result) = match decide(body, epoch)? {
                Change::Swap(next, result) => (next, result),
                Change::Keep(result) => return Ok(result),
            };
            match self.swap_election(election, version, epoch, &next).await? {
                Swap::Done(_) => return Ok(result),
                Swap::Conflict => {
                    freshness = Freshness::Fresh;
                    conflicts += 1;
                    if conflicts > EAGER_RETRIES {
                        tokio::time::sleep(RETRY_PAUSE.mul_f64(fastrand::f64())).await;
                    }
                }
                Swap::EpochChanged => epoch = self.later_epoch(epoch).await?,
            }
        }
    }
}

/// The store has fewer failovers than it had when candidates led. Its next ones would have the epochs of earlier ones: nobody would wait
/// after them, and tokens would be given again (hazard C5).
fn begun_again(epoch: Epoch, settled: Epoch) -> BackendError {
    let text = format!(
        "the store's epoch is {}, but candidates have led in its epoch {}: it was restored or upgraded, and counts failovers anew; stop all \
         candidates, and raise its epoch above {1}, or remove all records and reset what has stored a fencing token",
        epoch.0, settled.0
    );
    BackendError::new(BackendErrorKind::Invalid, text)
}

/// The store refuses the epoch that it has just said it has.
pub(crate) fn epoch_refused(epoch: Epoch) -> BackendError {
    let text = format!("the store has refused a write in the epoch {}, as during a failover", epoch.0);
    BackendError::new(BackendErrorKind::Unavailable, text)
}

/// An error that says that the session has ended.
pub(crate) fn session_gone(session: &SessionId, why: &str) -> BackendError {
    BackendError::new(BackendErrorKind::SessionGone, format!("the session {session} has ended: {why}"))
}

/// A store shared by clones.
#[async_trait::async_trait]
impl<S: CasStore + ?Sized> CasStore for Arc<S> {
    fn name(&self) -> String {
        (**self).name()
    }
    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<crate::Record>, BackendError> {
        (**self).read(key, freshness).await
    }
    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        (**self).swap(key, expected, epoch, body).await
    }
    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        (**self).delete(key, expected).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<crate::Record>, BackendError> {
        (**self).list(prefix).await
    }
    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        (**self).changes(key)
    }
    async fn epoch(&self) -> Result<EpochState, BackendError> {
        (**self).epoch().await
    }
    async fn diagnose(&self) -> Vec<tenure_core::Diagnosis> {
        (**self).diagnose().await
    }
    async fn close(&self) {
        (**self).close().await;
    }
}
