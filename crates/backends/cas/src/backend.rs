//! The backend.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tenure_core::{
    Candidate, Clock, Diagnosis, ElectionName,
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Observation, SessionOptions,
        SessionRecord,
    },
};

use crate::{
    client::Change,
    garbage, observe, probe,
    record::{ELECTIONS, Election, Nonce, Session, SessionId, State},
    session::CasSession,
    settings::CasSettings,
    shared::Shared,
    store::{CasStore, Freshness, Swap},
};

/// Elections over a store that can compare and swap.
///
/// The [crate documentation](crate) lists the guarantees and the assumptions.
pub struct CasBackend<S> {
    pub(crate) shared: Arc<Shared<S>>,
}

impl<S: CasStore> CasBackend<S> {
    /// A backend with the default settings. Sends no request.
    pub fn new(store: S) -> Self {
        Self::with_settings(store, CasSettings::new())
    }

    /// A backend with these settings. Sends no request.
    pub fn with_settings(store: S, settings: CasSettings) -> Self {
        Self { shared: Arc::new(Shared::new(store, settings)) }
    }

    /// Looks once at all sessions in the store, as each elector does now and then: ends those that have stood still since earlier calls for
    /// their TTL and the drift bound, removes their slots, and deletes their records.
    ///
    /// `clock` and `drift` are as in [`SessionOptions`]; the clock of the first session or call is used for all.
    ///
    /// # Errors
    /// When the store fails. What was done remains.
    ///
    /// # Cancellation safety
    /// May be dropped at any time.
    pub async fn collect_garbage(&self, clock: &Arc<dyn Clock>, drift: f64) -> Result<(), BackendError> {
        let clock = self.shared.clock(clock, drift);
        garbage::collect(&self.shared, &*clock).await
    }

    /// The store.
    pub fn store(&self) -> &S {
        self.shared.client.store()
    }
}

#[async_trait]
impl<S: CasStore> Backend for CasBackend<S> {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE.early_token(false).ends_sessions(true)
    }

    fn store_name(&self) -> String {
        self.store().name()
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(CasSession::open(&self.shared, options).await?))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.shared.candidates(election).await
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.shared.leader(election, Freshness::Fresh).await
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        let client = &self.shared.client;
        let records = client.bounded("listing the elections", client.store().list(ELECTIONS)).await?;
        let named = records.into_iter().filter_map(|record| {
            let name = ElectionName::new(record.key.strip_prefix(ELECTIONS)?).ok()?;
            let election = Election::decode(&record.key, &record.body).ok()?;
            (!election.queue.is_empty()).then_some(name)
        });
        Ok(named.collect())
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        Ok(observe::observe(Arc::clone(&self.shared), election.clone()))
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.shared.request_resign(election).await
    }

    /// Rule 11: the caller has made sure that the process is dead.
    async fn end_session(&self, record: &SessionRecord) -> Result<(), BackendError> {
        let invalid = |text: &str| Err(BackendError::new(BackendErrorKind::Invalid, text));
        let client = &self.shared.client;
        if record.cluster != probe::store_identity(client).await? {
            return invalid("the session belongs to another store");
        }
        let Some(session) = SessionId::parse(&record.session) else {
            return invalid("this is no session of this store");
        };
        let is_own = |nonce: Nonce| record.is_nonce_of_session(nonce.0);
        let mut elections = Vec::new();
        for name in self.elections().await? {
            let found = client.read_election(&name, Freshness::Fresh).await?.map(|(_, found)| found);
            let slots = found.iter().flat_map(|found| &found.queue).filter(|slot| slot.session == session);
            let own: Vec<_> = slots.map(|slot| is_own(slot.nonce)).collect();
            if own.iter().any(|is_own| !is_own) {
                return invalid("the entries of the session were created by another process");
            }
            if !own.is_empty() {
                elections.push(name);
            }
        }
        let mut epoch = client.epoch().await?;
        loop {
            let version = match client.read_session(&session, Freshness::Fresh).await? {
                None => break,
                Some((_, Session { state: State::Ended, .. })) => break,
                Some(_) if elections.is_empty() => {
                    return invalid("the session lives, and has no entry that shows whose it is");
                }
                Some((version, _)) => version,
            };
            match client.swap_session(&session, Some(&version), epoch, &Session::ended()).await? {
                Swap::Done(_) => break,
                Swap::Conflict => {}
                Swap::EpochChanged => epoch = client.later_epoch(epoch).await?,
            }
        }
        for name in elections {
            let change = client.change_election(&name, Freshness::Fresh, |found, epoch| {
                let absent = Election::default();
                let next = found.unwrap_or(&absent).without(epoch, |slot| slot.session == session)?;
                Ok(Change::Swap(next, ()))
            });
            change.await?;
        }
        Ok(())
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        self.shared.client.store().diagnose().await
    }

    async fn close(&self) {
        self.shared.client.store().close().await;
    }
}

impl<S> Clone for CasBackend<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: fmt::Debug> fmt::Debug for CasBackend<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CasBackend").field("shared", &self.shared).finish()
    }
}
