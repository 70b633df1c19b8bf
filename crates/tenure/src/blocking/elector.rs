//! The elector.

use std::{future::ready, pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt as _, channel::oneshot};
use tenure_core::{
    BoxError, CampaignOptions, Candidate, CandidateId, Config, Diagnosis, ElectionName, ElectorExt as _,
    Engine, Error, Shutdown, Status,
    block_on::{block_on, block_on_timeout},
    spi::SessionRecord,
};
use tokio_util::sync::CancellationToken;

use super::{Leaders, Leadership, LeadershipHandle};

/// Takes part in elections, and observes them; see [`tenure::Elector`](tenure_core::Elector).
///
/// Clones are the same elector, for several threads. The methods return the errors of the async elector's, and
/// [`Error::OnEngineThread`] on an engine thread.
#[derive(Clone, Debug)]
pub struct Elector {
    inner: Arc<dyn tenure_core::Elector>,
    /// Cancelled when this elector or a clone is closed.
    closing: CancellationToken,
}

impl From<Arc<dyn tenure_core::Elector>> for Elector {
    fn from(elector: Arc<dyn tenure_core::Elector>) -> Self {
        Self { inner: elector, closing: CancellationToken::new() }
    }
}

impl Elector {
    /// An elector over the async `elector`, whose engine has to run on threads of its own.
    pub fn new(elector: impl tenure_core::Elector + 'static) -> Self {
        Self::from(Arc::new(elector) as Arc<dyn tenure_core::Elector>)
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
        Ok(Self::from(block_on(crate::connect_with(url, config))??))
    }

    /// Like [`connect`](Self::connect), and fails now if the store cannot be used. Blocks for two request timeouts at most (10 s
    /// by default).
    ///
    /// # Errors
    /// See [`tenure::connect_checked`](crate::connect_checked).
    pub fn connect_checked(url: &str) -> Result<Self, Error> {
        Self::connect_checked_with(url, Config::new())
    }

    /// Like [`connect_checked`](Self::connect_checked), with `config` for the settings that the URL does not contain.
    ///
    /// # Errors
    /// See [`tenure::connect_checked`](crate::connect_checked).
    pub fn connect_checked_with(url: &str, config: Config) -> Result<Self, Error> {
        Ok(Self::from(block_on(crate::connect_checked_with(url, config))??))
    }

    /// The async elector.
    pub fn as_async(&self) -> &Arc<dyn tenure_core::Elector> {
        &self.inner
    }

    /// Campaigns until this candidate leads.
    ///
    /// # Errors
    /// See [`campaign`](tenure_core::Elector::campaign).
    pub fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        Ok(Leadership::new(block_on(self.inner.campaign(election))??))
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
        let mut campaign = pin!(self.inner.campaign_until(election, cancelled.map(drop).boxed()));
        let outcome = match block_on_timeout(campaign.as_mut(), timeout)? {
            Some(outcome) => outcome,
            None => {
                drop(cancel);
                block_on(campaign)?
            }
        };
        Ok(outcome?.map(Leadership::new))
    }

    /// Campaigns with a value, a grace period or a patience of its own. Returns `None` when the
    /// [patience](tenure_core::Patience) is over, once the candidate has withdrawn.
    ///
    /// Waits for the withdrawal for at most the shutdown timeout, in addition to the patience.
    ///
    /// # Errors
    /// See [`campaign_with`](tenure_core::Elector::campaign_with).
    pub fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error> {
        Ok(block_on(self.inner.campaign_with(election, options))??.map(Leadership::new))
    }

    /// Campaigns without waiting. Returns `None` when another candidate leads.
    ///
    /// # Errors
    /// See [`try_campaign`](tenure_core::Elector::try_campaign).
    pub fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        Ok(block_on(self.inner.try_campaign(election))??.map(Leadership::new))
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

    /// Sets the value of this elector's candidates in `election`, of the one that takes part and of all later ones. At most
    /// 64 KiB.
    ///
    /// Blocks until the store has the value. Returns at once when there is no entry: the next one has the value.
    ///
    /// # Errors
    /// See [`set_value`](tenure_core::Elector::set_value).
    pub fn set_value(&self, election: &str, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        block_on(self.inner.set_value(election, value.into()))?
    }

    /// Calls `work` on the current thread once per term and campaigns again after each, until the elector is
    /// [closed](Self::close), by another thread or by the work. See
    /// [`run_while_leader`](tenure_core::ElectorExt::run_while_leader).
    ///
    /// # Behavior
    /// - When the work returns, resigns, pauses and campaigns again. The pauses are jittered, and grow while the work fails
    ///   ([`Config::with_work_backoff`](tenure_core::Config::with_work_backoff)). Work that panics counts as failed.
    /// - When leadership is lost, `work` has to return: see the
    ///   [module's documentation](super#work-that-blocks-cannot-be-dropped).
    /// - Closing ends the leadership, the campaign or the pause. The elector may also be closed before this call; `work` is not
    ///   called then. When it is closed through [`as_async`](Self::as_async), a pause is not cut short.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # fn main() -> Result<(), tenure::Error> {
    /// use std::{thread, time::Duration};
    ///
    /// let elector = tenure::blocking::Elector::connect("memory:service")?;
    /// let service = elector.clone();
    /// let serving = thread::spawn(move || {
    ///     service.run_while_leader("billing", |leadership| {
    ///         while leadership.ensure().is_ok() {
    ///             // One step of the work, with the token in each write.
    ///             leadership.lost_within(Duration::from_secs(10))?;
    ///         }
    ///         Ok(())
    ///     })
    /// });
    /// // When the program is asked to end:
    /// elector.close()?;
    /// serving.join().expect("no panic leaves the loop")
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// Permanent errors: an illegal name, refused credentials; [`Error::OnEngineThread`]. Failures of the work and outages of the
    /// store are logged and retried.
    pub fn run_while_leader(
        &self,
        election: &str,
        mut work: impl FnMut(&LeadershipHandle) -> Result<(), BoxError> + Send,
    ) -> Result<(), Error> {
        // Called while the engine counts the work, as in `LeadershipHandle::run`.
        let work = |leadership| ready(work(&LeadershipHandle::new(leadership)));
        match block_on(self.inner.run_while_leader(election, self.closing.cancelled(), work))? {
            Err(Error::Closed) => Ok(()),
            ended => ended,
        }
    }

    /// The current leader, or `None` when there is none.
    ///
    /// # Errors
    /// See [`leader`](tenure_core::Elector::leader).
    pub fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        block_on(self.inner.leader(election))?
    }

    /// All candidates in order of succession, the leader first.
    ///
    /// # Errors
    /// See [`candidates`](tenure_core::Elector::candidates).
    pub fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        block_on(self.inner.candidates(election))?
    }

    /// The names of the elections that have a candidate, of any process. In alphabetical order.
    ///
    /// # Errors
    /// See [`elections`](tenure_core::Elector::elections).
    pub fn elections(&self) -> Result<Vec<ElectionName>, Error> {
        block_on(self.inner.elections())?
    }

    /// The current leader, and then every change of leader; `None` while there is no leader.
    pub fn observe(&self, election: &str) -> Leaders {
        Leaders::new(self.inner.observe(election))
    }

    /// Asks the current leader to resign, and returns it; `None` when there is no leader.
    ///
    /// # Errors
    /// See [`request_resign`](tenure_core::Elector::request_resign).
    pub fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        block_on(self.inner.request_resign(election))?
    }

    /// Ends the session of another process, which must be known to be dead: read the conditions at
    /// [`end_session`](tenure_core::Elector::end_session).
    ///
    /// # Errors
    /// See there; also [`Error::OnEngineThread`].
    pub fn end_session(&self, record: &SessionRecord) -> Result<(), Error> {
        block_on(self.inner.end_session(record))?
    }

    /// The engine on whose threads this elector runs, which other electors can share
    /// ([`Config::with_engine`](tenure_core::Config::with_engine)).
    pub fn engine(&self) -> Option<Engine> {
        self.inner.engine()
    }

    /// The id of this elector's candidates.
    pub fn candidate_id(&self) -> CandidateId {
        self.inner.candidate_id()
    }

    /// This elector's own leadership in the election, while it may be assumed. Compares the clock; sends no request to the
    /// store.
    pub fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        self.inner.leadership(election).map(LeadershipHandle::new)
    }

    /// The state of the connection between the elector and its store.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Checks that the store can be used now: opens a session, reads, and closes the session. Blocks for two request timeouts at
    /// most (10 s by default).
    ///
    /// # Errors
    /// See [`check`](tenure_core::Elector::check).
    pub fn check(&self) -> Result<(), Error> {
        block_on(self.inner.check())?
    }

    /// Checks whether the store, this machine and the settings are fit for elections, and advises what to change. See
    /// [`diagnose`](tenure_core::Elector::diagnose).
    ///
    /// # Errors
    /// [`Error::OnEngineThread`]. Whatever else is wrong is a [`Diagnosis`].
    pub fn diagnose(&self) -> Result<Vec<Diagnosis>, Error> {
        block_on(self.inner.diagnose())
    }

    /// Ends all campaigns and leaderships, blocks until their work has stopped and the session is closed, at most for the
    /// shutdown timeout. Iterators of [`observe`](Self::observe) end.
    ///
    /// # Errors
    /// [`Error::OnEngineThread`].
    pub fn close(&self) -> Result<(), Error> {
        block_on(async {
            self.closing.cancel();
            self.inner.close().await;
        })
    }

    /// Closes the elector as [`close`](Self::close) does, blocks for at most `limit`, and returns what is left in the store by
    /// then.
    ///
    /// What is left is given back in the background as long as the process goes on.
    ///
    /// # Errors
    /// [`Error::OnEngineThread`]. An unconfirmed [`Shutdown`] is no error.
    pub fn close_within(&self, limit: Duration) -> Result<Shutdown, Error> {
        block_on(async {
            self.closing.cancel();
            self.inner.close_within(limit).await
        })
    }
}
