//! The trait that users hold, and what it gives them on top.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::{
    Backoff, Candidate, CandidateId, Config, Diagnosis, Error, Leadership, LeadershipHandle, Status,
};

/// The leaders of an election, one after the other; see [`Elector::observe`].
pub type Leaders = BoxStream<'static, Result<Option<Candidate>, Error>>;

/// Takes part in elections, and watches them.
///
/// Cheap to share as `Arc<dyn Elector>`. All elections of one elector share one
/// session with the store, opened by the first campaign; one renewal keeps all of
/// them. Within one elector, campaigns for the *same* election queue up behind each
/// other, so that at most one of them stands in the store.
///
/// A store that cannot be reached is asked again, with jittered backoff, for as long as
/// the caller waits: bound a call with [`tokio::time::timeout`] to wait less. Meanwhile
/// [`status`](Self::status) and `tracing` say what is wrong. Whatever cannot get better
/// (refused credentials, an illegal name) is returned at once.
///
/// Dropping an elector closes its session once the leaderships it gave are over.
#[async_trait]
pub trait Elector: Send + Sync + fmt::Debug {
    /// Campaigns until this candidate leads.
    ///
    /// # Behavior
    /// - Waits its turn, in order of arrival where the store keeps one.
    /// - Goes on under a new entry when its own is deleted, or its session ends.
    ///
    /// # Errors
    /// An illegal name, refused credentials, [`Error::Closed`]; never an outage.
    ///
    /// # Cancellation safety
    /// Dropping the future withdraws the candidate: no entry stays behind, whatever was under way.
    async fn campaign(&self, election: &str) -> Result<Leadership, Error>;

    /// Campaigns until this candidate leads or `given_up` completes, and withdraws then: `None`.
    ///
    /// # Behavior
    /// - As [`campaign`](Self::campaign). Unlike after dropping that, the entry is gone when this returns `None`; an elector that
    ///   does not implement this method drops its campaign instead.
    /// - A leadership that comes just as it is given up is resigned.
    /// - Waits for the withdrawal for the [shutdown timeout](Self::shutdown_timeout) at most; a warning in the log says when
    ///   the store has not confirmed it by then.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// As [`campaign`](Self::campaign).
    async fn campaign_until(
        &self,
        election: &str,
        given_up: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        tokio::select! {
            biased;
            () = given_up => Ok(None),
            leadership = self.campaign(election) => leadership.map(Some),
        }
    }

    /// Leads at once, or not at all: `None` when somebody else does, or another campaign of this
    /// elector stands in the election or has not quite left it.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// As [`campaign`](Self::campaign).
    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error>;

    /// Who leads now; `None` when nobody does.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error>;

    /// All candidates in order of succession, the leader first.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error>;

    /// The leader now and at every change; `None` while nobody leads.
    ///
    /// The stream goes on across outages of the store and ends only after an error
    /// that cannot get better, or when the elector is closed. It needs no session.
    fn observe(&self, election: &str) -> Leaders;

    /// Asks whoever leads to resign, and returns whom it asked; `None` when nobody leads.
    ///
    /// # Behavior
    /// - The leader is told, wherever it runs: its leadership is over for the reason
    ///   [`LossReason::ResignRequested`](crate::LossReason::ResignRequested), its work is told to stop and
    ///   awaited, and its entry goes then, as on a [`resign`](Leadership::resign) of its own.
    /// - Returns when the store has taken the wish, not when the leader has gone: [`observe`](Self::observe) shows that.
    /// - Whoever campaigns again at once may lead again, when nobody else waits.
    ///
    /// # Errors
    /// [`Error::Refused`] when the leader is another library's, which would not listen; otherwise as
    /// [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// When the future is dropped, the leader may have been asked or not.
    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error>;

    /// Who this elector's candidates are.
    fn candidate(&self) -> CandidateId;

    /// This elector's own leadership in the election, while it may be assumed: for handlers of requests, say, which
    /// then need not be given it. Compares the clock; asks no store.
    fn leadership(&self, election: &str) -> Option<LeadershipHandle>;

    /// How the elector and its store get on, for a health endpoint.
    fn status(&self) -> Status;

    /// Looks whether the store, this machine and the settings are fit for elections, and says what to do where they
    /// are not. For people: what `tenure doctor` prints.
    ///
    /// # Behavior
    /// - Asks the store, each member of it where it has several, and bounds every question in time.
    /// - Opens a session of its own for a moment, and enters the election `tenure-doctor`, which nobody else is to use.
    ///
    /// # Cancellation safety
    /// Dropping the future leaves at most a session that expires by itself.
    async fn diagnose(&self) -> Vec<Diagnosis>;

    /// The waits before campaigning again after failed work; see [`Config::with_work_backoff`].
    fn work_backoff(&self) -> Backoff {
        Config::DEFAULT_WORK_BACKOFF
    }

    /// How long a shutdown waits at most; see [`Config::with_shutdown_timeout`].
    fn shutdown_timeout(&self) -> Duration {
        Config::DEFAULT_SHUTDOWN_TIMEOUT
    }

    /// Ends all campaigns and leaderships, waits for their work to stop, and closes the session.
    ///
    /// Waits for that for the [shutdown timeout](Self::shutdown_timeout) at most. What is left then goes on ending in the
    /// background, and is logged.
    ///
    /// # Behavior
    /// - Campaigns return [`Error::Closed`]; work under [`run`](crate::LeadershipHandle::run) is told to
    ///   stop, and has until its deadline.
    /// - A guard that is still held, and not dropped, is waited for in the same way.
    /// - Returns when the store has confirmed, or its session has expired in any case.
    /// - A second call waits for the first.
    /// - Returns at once, and logs it, when it is awaited by work that it would wait for.
    async fn close(&self);
}

#[async_trait]
impl<E: Elector + ?Sized> Elector for Arc<E> {
    async fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        (**self).campaign(election).await
    }
    async fn campaign_until(
        &self,
        election: &str,
        given_up: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        (**self).campaign_until(election, given_up).await
    }
    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        (**self).try_campaign(election).await
    }
    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        (**self).leader(election).await
    }
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        (**self).candidates(election).await
    }
    fn observe(&self, election: &str) -> Leaders {
        (**self).observe(election)
    }
    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        (**self).request_resign(election).await
    }
    fn candidate(&self) -> CandidateId {
        (**self).candidate()
    }
    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        (**self).leadership(election)
    }
    fn status(&self) -> Status {
        (**self).status()
    }
    async fn diagnose(&self) -> Vec<Diagnosis> {
        (**self).diagnose().await
    }
    fn work_backoff(&self) -> Backoff {
        (**self).work_backoff()
    }
    fn shutdown_timeout(&self) -> Duration {
        (**self).shutdown_timeout()
    }
    async fn close(&self) {
        (**self).close().await;
    }
}
