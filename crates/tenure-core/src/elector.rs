//! The [`Elector`] trait, which users of the library hold.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::{
    Backoff, Candidate, CandidateId, Config, Diagnosis, Error, Leadership, LeadershipHandle, Shutdown, Status,
};

/// A stream of the leaders of an election; see [`Elector::observe`]. It is a boxed `Stream` of the `futures` crate, because std has
/// no trait for streams.
pub type Leaders = BoxStream<'static, Result<Option<Candidate>, Error>>;

/// Takes part in elections, and observes them.
///
/// An elector is shared as `Arc<dyn Elector>`, which is cheap to clone. All elections of one elector share one session with
/// the store. The first campaign opens the session; one heartbeat extends it for all elections. Campaigns
/// of one elector for the *same* election queue up locally, so that at most one of them has an entry in the store.
///
/// While the store cannot be reached, a call retries with jittered backoff for as long as the caller waits. To wait
/// less, bound the call with [`tokio::time::timeout`]. [`status`](Self::status) and `tracing` events say what is
/// wrong meanwhile. Permanent errors (refused credentials, an illegal name) are returned at once.
///
/// Dropping an elector closes its session once all of its leaderships are over.
#[async_trait]
pub trait Elector: Send + Sync + fmt::Debug {
    /// Campaigns until this candidate leads.
    ///
    /// # Behavior
    /// - Waits in order of arrival, if the store keeps an order.
    /// - Enters again when its entry is deleted or its session ends.
    ///
    /// # Errors
    /// An illegal name, refused credentials, [`Error::Closed`]. An outage is no error: the call retries, and does not return
    /// [`Error::Unavailable`].
    ///
    /// # Cancellation safety
    /// Dropping the future withdraws the candidate in the background: no entry is left behind, whatever request was pending.
    async fn campaign(&self, election: &str) -> Result<Leadership, Error>;

    /// Campaigns until this candidate leads or `cancel` completes. Returns `None` after `cancel`, once the candidate has
    /// withdrawn.
    ///
    /// # Behavior
    /// - Campaigns as [`campaign`](Self::campaign) does. When this method returns `None`, the entry is gone, unlike when the future
    ///   of `campaign` is dropped. The default implementation drops the future of `campaign`.
    /// - A leadership that is won just as `cancel` completes is resigned.
    /// - Waits for the withdrawal for at most the [shutdown timeout](Self::shutdown_timeout). If the store has not confirmed
    ///   it by then, a warning is logged.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// As [`campaign`](Self::campaign).
    async fn campaign_until(
        &self,
        election: &str,
        cancel: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        tokio::select! {
            biased;
            () = cancel => Ok(None),
            leadership = self.campaign(election) => leadership.map(Some),
        }
    }

    /// Campaigns without waiting. Returns `None` when another candidate leads, or when another campaign of this elector
    /// has an entry in the election or has not withdrawn it completely.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// As [`campaign`](Self::campaign).
    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error>;

    /// The current leader, or `None` when there is none.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error>;

    /// All candidates in order of succession, the leader first.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error>;

    /// The current leader, and then every change of leader; `None` while there is no leader.
    ///
    /// The stream continues across outages of the store. It ends only after a permanent error, or when the elector is
    /// closed. It needs no session.
    fn observe(&self, election: &str) -> Leaders;

    /// Asks the current leader to resign, and returns it; `None` when there is no leader.
    ///
    /// # Behavior
    /// - The leader receives the request in whatever process it runs. Its leadership ends with the reason
    ///   [`LossReason::ResignRequested`](crate::LossReason::ResignRequested), its work is cancelled and awaited, and then its
    ///   entry is removed, as after its own [`resign`](Leadership::resign).
    /// - Returns when the store has stored the request, not when the leader has resigned; [`observe`](Self::observe) shows
    ///   that.
    /// - The former leader may lead again if it campaigns again at once and no other candidate waits.
    ///
    /// # Errors
    /// [`Error::Refused`] when the leader is a foreign entry of another library, which reads no resign requests; otherwise as
    /// [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// When the future is dropped, the request may or may not have been stored.
    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error>;

    /// The id of this elector's candidates.
    fn candidate(&self) -> CandidateId;

    /// This elector's own leadership in the election, while it may be assumed. Request handlers, for example, can look it
    /// up instead of having it passed to them. Compares the clock; sends no request to the store.
    fn leadership(&self, election: &str) -> Option<LeadershipHandle>;

    /// The state of the connection between the elector and its store, for a health endpoint.
    fn status(&self) -> Status;

    /// Checks whether the store, this machine and the settings are fit for elections, and advises what to change. For
    /// people: `tenure doctor` prints it.
    ///
    /// # Behavior
    /// - Sends requests to the store, and to each of its members if there are several. Every request is bounded in time.
    /// - Opens a short session of its own, and enters the election `tenure-doctor`, which is reserved for it.
    ///
    /// # Cancellation safety
    /// Dropping the future leaves at most a session that expires by itself.
    async fn diagnose(&self) -> Vec<Diagnosis>;

    /// The waits before campaigning again after failed work; see [`Config::with_work_backoff`].
    fn work_backoff(&self) -> Backoff {
        Config::DEFAULT_WORK_BACKOFF
    }

    /// The longest time that a shutdown waits; see [`Config::with_shutdown_timeout`].
    fn shutdown_timeout(&self) -> Duration {
        Config::DEFAULT_SHUTDOWN_TIMEOUT
    }

    /// Ends all campaigns and leaderships, waits for their work to stop, and closes the session.
    ///
    /// Waits for at most the [shutdown timeout](Self::shutdown_timeout). The rest continues in the background, and is
    /// logged.
    ///
    /// # Behavior
    /// - Campaigns return [`Error::Closed`]. Work under [`run`](crate::LeadershipHandle::run) is cancelled and
    ///   has until its deadline to stop.
    /// - Waits in the same way for guards that are still held.
    /// - Returns when the store has confirmed that the session is closed, or when the session has expired in any case.
    /// - A second call waits for the first.
    /// - Returns at once, and logs it, when it is awaited by work that it would wait for.
    async fn close(&self);

    /// Closes the elector as [`close`](Self::close) does, waits for at most `limit`, and returns what is left in the store by
    /// then.
    ///
    /// # Behavior
    /// - No heartbeat is sent any more, also when work has not stopped. What is left is given back in the background as long as
    ///   the process goes on.
    /// - The default implementation calls `close` and knows nothing about what is left. It needs tokio's timer.
    ///
    /// # Cancellation safety
    /// Dropping the future does not stop the closing.
    async fn close_within(&self, limit: Duration) -> Shutdown {
        let _ = tokio::time::timeout(limit, self.close()).await;
        Shutdown::UNKNOWN
    }
}

#[async_trait]
impl<E: Elector + ?Sized> Elector for Arc<E> {
    async fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        (**self).campaign(election).await
    }
    async fn campaign_until(
        &self,
        election: &str,
        cancel: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        (**self).campaign_until(election, cancel).await
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
    async fn close_within(&self, limit: Duration) -> Shutdown {
        (**self).close_within(limit).await
    }
}
