//! The elector.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt as _, channel::oneshot};
use tenure_core::{
    Candidate, CandidateId, Config, Error, Status,
    block_on::{block_on, block_on_timeout},
};

use super::{Leaders, Leadership, LeadershipHandle};

/// Takes part in elections, and observes them; see [`tenure::Elector`](tenure_core::Elector).
///
/// Clones are the same elector, for several threads. The methods return the errors of the async elector's, and
/// [`Error::OnEngineThread`] on an engine thread.
#[derive(Clone, Debug)]
pub struct Elector(Arc<dyn tenure_core::Elector>);

impl From<Arc<dyn tenure_core::Elector>> for Elector {
    fn from(elector: Arc<dyn tenure_core::Elector>) -> Self {
        Self(elector)
    }
}

impl Elector {
    /// An elector over the async `elector`, whose engine has to run on threads of its own.
    pub fn new(elector: impl tenure_core::Elector + 'static) -> Self {
        Self(Arc::new(elector))
    }

    /// Creates an elector for the store and the settings in `url`.
    ///
    /// # Errors
    /// See [`tenure::connect`](crate::connect()).
    pub fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_with(url, Config::new())
    }

    /// Like [`connect`](Self::connect), with `config` for the settings that the URL does not contain.
    ///
    /// # Errors
    /// See [`tenure::connect`](crate::connect()).
    pub fn connect_with(url: &str, config: Config) -> Result<Self, Error> {
        Ok(Self(block_on(crate::connect_with(url, config))??))
    }

    /// The async elector.
    pub fn as_async(&self) -> &Arc<dyn tenure_core::Elector> {
        &self.0
    }

    /// Campaigns until this candidate leads.
    ///
    /// # Errors
    /// See [`campaign`](tenure_core::Elector::campaign).
    pub fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        Ok(Leadership::new(block_on(self.0.campaign(election))??))
    }

    /// Campaigns for at most `timeout`. Returns `None` after that, once the candidate has withdrawn.
    ///
    /// Waits for the withdrawal for at most the shutdown timeout, in addition to `timeout`. A leadership that is won just as the
    /// time is over is resigned.
    ///
    /// # Errors
    /// See [`campaign_until`](tenure_core::Elector::campaign_until).
    pub fn campaign_within(&self, election: &str, timeout: Duration) -> Result<Option<Leadership>, Error> {
        let (cancel, cancelled) = oneshot::channel::<()>();
        let mut campaign = pin!(self.0.campaign_until(election, cancelled.map(drop).boxed()));
        let outcome = match block_on_timeout(campaign.as_mut(), timeout)? {
            Some(outcome) => outcome,
            None => {
                drop(cancel);
                block_on(campaign)?
            }
        };
        Ok(outcome?.map(Leadership::new))
    }

    /// Campaigns without waiting. Returns `None` when another candidate leads.
    ///
    /// # Errors
    /// See [`try_campaign`](tenure_core::Elector::try_campaign).
    pub fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        Ok(block_on(self.0.try_campaign(election))??.map(Leadership::new))
    }

    /// Campaigns until this candidate leads, calls `work` on the current thread, resigns, and returns the output.
    ///
    /// `work` is called once. It cannot be dropped when leadership is lost: see the
    /// [module's documentation](super#work-that-blocks-cannot-be-dropped).
    ///
    /// # Errors
    /// [`Error::Lost`] when leadership was lost before or while `work` ran; the output is dropped then. Use
    /// [`campaign`](Self::campaign) and [`Leadership::run`](LeadershipHandle::run) to keep it. Otherwise as
    /// [`campaign`](Self::campaign). That the store has not confirmed the resignation in time is no error: it is completed in the
    /// background, or the entry expires with its session.
    pub fn run<T>(&self, election: &str, work: impl FnOnce(&LeadershipHandle) -> T) -> Result<T, Error> {
        let leadership = self.campaign(election)?;
        let output = leadership.run(work)?;
        match leadership.resign() {
            Ok(()) | Err(Error::NotConfirmed { .. }) => Ok(output),
            Err(error) => Err(error),
        }
    }

    /// The current leader, or `None` when there is none.
    ///
    /// # Errors
    /// See [`leader`](tenure_core::Elector::leader).
    pub fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        block_on(self.0.leader(election))?
    }

    /// All candidates in order of succession, the leader first.
    ///
    /// # Errors
    /// See [`candidates`](tenure_core::Elector::candidates).
    pub fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        block_on(self.0.candidates(election))?
    }

    /// The current leader, and then every change of leader; `None` while there is no leader.
    pub fn observe(&self, election: &str) -> Leaders {
        Leaders::new(self.0.observe(election))
    }

    /// Asks the current leader to resign, and returns it; `None` when there is no leader.
    ///
    /// # Errors
    /// See [`request_resign`](tenure_core::Elector::request_resign).
    pub fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        block_on(self.0.request_resign(election))?
    }

    /// The id of this elector's candidates.
    pub fn candidate(&self) -> CandidateId {
        self.0.candidate()
    }

    /// The state of the connection between the elector and its store.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Ends all campaigns and leaderships, blocks until their work has stopped and the session is closed, at most for the
    /// shutdown timeout. Iterators of [`observe`](Self::observe) end.
    ///
    /// # Errors
    /// [`Error::OnEngineThread`].
    pub fn close(&self) -> Result<(), Error> {
        block_on(self.0.close())
    }
}
