//! The [`Elector`] trait, which users of the library hold.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::{
    Backoff, CampaignOptions, Candidate, CandidateId, Config, Diagnosis, ElectionName, Engine, Error,
    Leadership, LeadershipHandle, Patience, Shutdown, Status, spi::SessionRecord,
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
/// All methods work under any executor, because the engine has threads of its own.
///
/// While the store cannot be reached, a call retries with jittered backoff for as long as the caller waits. To wait
/// less, bound the call with a timeout of the executor, such as [`tokio::time::timeout`]. [`status`](Self::status) and `tracing` events say what is
/// wrong meanwhile. Permanent errors (refused credentials, an illegal name) are returned at once.
///
/// Dropping an elector closes its session once all of its leaderships are over.
///
/// # Implementing it
///
/// [`StoreElector`](crate::StoreElector) and [`Hierarchy`](crate::Hierarchy) implement this trait; an application may wrap them.
/// [`campaign_with`](Self::campaign_with) is the method that the other campaigns are built on, and has no default. A method that is new in a release
/// has a default, so that other implementations continue to compile; where no default can work, it returns
/// [`Error::Unsupported`].
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
    async fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        let options = CampaignOptions::new().with_patience(Patience::Forever);
        match self.campaign_with(election, options).await? {
            Some(leadership) => Ok(leadership),
            None => Err(Error::TaskEnded("a campaign that waits was not elected")),
        }
    }

    /// Campaigns with a value, a grace period or a patience of its own. Returns `None` when the
    /// [patience](crate::Patience) is over.
    ///
    /// # Behavior
    /// - Campaigns as [`campaign`](Self::campaign) does.
    /// - When the time of [`Patience::AtMost`] is over, returns `None` once the candidate has withdrawn, as
    ///   [`campaign_until`](Self::campaign_until) does.
    /// - With [`Patience::NoWait`], as [`try_campaign`](Self::try_campaign).
    /// - The value of the options is that of this candidate alone. [`set_value`](Self::set_value) replaces it.
    ///
    /// # Errors
    /// - [`Error::InvalidConfig`] when the grace period is zero, or longer than the TTL that the store has granted allows: a third
    ///   of it, or less. The candidate has not entered then.
    /// - [`Error::ValueTooLarge`], and [`Error::InvalidConfig`] for a value that ends with the marker of a resign request.
    /// - Otherwise as [`campaign`](Self::campaign).
    ///
    /// # Cancellation safety
    /// As [`campaign`](Self::campaign).
    async fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error>;

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
    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        self.campaign_with(election, CampaignOptions::new().with_patience(Patience::NoWait)).await
    }

    /// Sets the value of this elector's candidates in `election`, in place of that of the
    /// [configuration](Config::with_value). At most 64 KiB.
    ///
    /// # Behavior
    /// - Applies to the candidate that takes part, whether it is entering, waits or leads, and to all later ones until the elector
    ///   is dropped. A candidate that loses its entry enters again with this value.
    /// - Whatever was set last counts: this, the value of a later [`campaign_with`](Self::campaign_with) for that campaign, or
    ///   [`LeadershipHandle::set_value`](crate::LeadershipHandle::set_value) for that term.
    /// - Returns when the store has this value or a later one. Returns at once when there is no entry: the next one has the value.
    ///   A candidate that is just entering gets it as soon as its entry is known.
    /// - Neither the queue position nor the fencing token changes.
    ///
    /// # Errors
    /// An illegal name, [`Error::ValueTooLarge`], [`Error::InvalidConfig`] for a value that ends with the marker of a resign
    /// request, an error when the store refuses the request, [`Error::Closed`]; [`Error::Unsupported`] by default. Retries during
    /// an outage.
    ///
    /// # Cancellation safety
    /// When the future is dropped after its first poll, the value is stored in the background.
    async fn set_value(&self, election: &str, value: Vec<u8>) -> Result<(), Error> {
        let _ = (election, value);
        Err(Error::Unsupported("set a candidate's value"))
    }

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

    /// The names of the elections that exist: those with at least one candidate, of any process. In alphabetical order.
    ///
    /// An election that nobody takes part in does not exist, whatever it has left in the store. `tenure-doctor` is listed while
    /// somebody [diagnoses](Self::diagnose) the store. What is listed, by store:
    ///
    /// | store | elections | left out |
    /// |---|---|---|
    /// | etcd | directly below the prefix, with a key that is named after its own lease, tenure's or Go's; as of one revision | other keys; keys below a longer prefix |
    /// | ZooKeeper | children of the root with an entry in the layout of the URL; read one after the other | elections that this user may not list |
    /// | local | with a live candidate; read one after the other | files of dead candidates |
    /// | memory | with an entry | |
    ///
    /// Names that are no [`ElectionName`] are left out too. Reads all entries of the store, and on ZooKeeper every election
    /// that has ever existed: meant for people and dashboards, not to be called at every request.
    ///
    /// # Errors
    /// [`Error::Refused`] when the store cannot list them, or when there are more than a million keys below the prefix (etcd);
    /// [`Error::Unsupported`] by default; otherwise as [`campaign`](Self::campaign).
    async fn elections(&self) -> Result<Vec<ElectionName>, Error> {
        Err(Error::Unsupported("list the elections"))
    }

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

    /// Ends the session of another process that is dead, so that another candidate leads now and not after the TTL. For a
    /// supervisor, which got the record from that process ([`LeadershipHandle::session_record`]).
    ///
    /// Two candidates lead if anything still relies on that session. Call this only when it is certain that the process is dead,
    /// for example by its pidfd, and that the work that it had begun in other processes has ended. Silence, a broken connection or
    /// a closed pipe prove nothing: a process that is stopped continues later. To restart a service in place, use a
    /// [resume file](Config::with_resume_file), which proves it with a lock.
    ///
    /// # Behavior
    /// - The candidate that comes next leads once this returns or soon after. All elections of the session are affected.
    /// - Succeeds when the session has ended already.
    /// - A request that the dead process had sent can still be carried out, as after its end by the TTL: fence writes.
    /// - On ZooKeeper the entries of the session are deleted, and the session expires.
    /// - Retries for one [request timeout](Config::with_request_timeout).
    ///
    /// # Errors
    /// [`Error::Refused`] when the session is not the one that the record means (another store, root or prefix, entries of another
    /// process), or when the store cannot end sessions: nothing was changed. [`Error::Unavailable`] when the store does not
    /// answer: the session may have ended. [`Error::Closed`]; [`Error::Unsupported`] by default.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the session may have ended.
    async fn end_session(&self, record: &SessionRecord) -> Result<(), Error> {
        let _ = record;
        Err(Error::Unsupported("end the session of another process"))
    }

    /// The engine on whose threads this elector runs; a wrapper returns that of the elector it wraps. Others can share it
    /// ([`Config::with_engine`]).
    ///
    /// `run_while_leader`, [`Hierarchy`](crate::Hierarchy) and [`StatusHandle`](crate::StatusHandle) use its timers, and
    /// `StatusHandle` calls the elector's methods on its thread. With `None`, the default, they need a tokio runtime.
    fn engine(&self) -> Option<Engine> {
        None
    }

    /// The id of this elector's candidates.
    fn candidate_id(&self) -> CandidateId;

    /// This elector's own leadership in the election, while it may be assumed. Request handlers, for example, can look it
    /// up instead of having it passed to them. Compares the clock; sends no request to the store.
    fn leadership(&self, election: &str) -> Option<LeadershipHandle>;

    /// The state of the connection between the elector and its store, for a health endpoint.
    fn status(&self) -> Status;

    /// Checks that the store can be used now, for a service that ends at its start rather than wait for its store. A campaign
    /// does wait.
    ///
    /// # Behavior
    /// - Opens a session, reads the leader of one election, and closes the session. That shows that the store answers,
    ///   accepts the login and the certificate, belongs to one cluster, grants a TTL that suits the settings, and lets this user
    ///   read. It does not show that this user may enter an election: [`diagnose`](Self::diagnose) tries that as well.
    /// - Repeats what was not answered for one [request timeout](Config::with_request_timeout), 5 s by default, so that a leader
    ///   election inside the store is no failure. Returns after two request timeouts at the latest.
    /// - Changes nothing for campaigns and leaderships of this elector.
    ///
    /// # Errors
    /// Those of the first campaign, in the same words. [`Error::Unavailable`] when the store does not answer;
    /// [`Error::Unauthorized`] and [`Error::Refused`] when it refuses; [`Error::InvalidConfig`] when the granted TTL does not
    /// suit the grace period; [`Error::Closed`]; [`Error::Unsupported`] by default.
    ///
    /// # Cancellation safety
    /// Dropping the future leaves at most a session that expires by itself.
    async fn check(&self) -> Result<(), Error> {
        Err(Error::Unsupported("check the store"))
    }

    /// Checks whether the store, this machine and the settings are fit for elections, and advises what to change. For
    /// people: `tenure doctor` prints it.
    ///
    /// # Behavior
    /// - Sends requests to the store, and to each of its members if there are several. Every request is bounded in time.
    /// - Opens a short session of its own, and enters the election `tenure-doctor`, which is reserved for it.
    /// - Reports whether fencing tokens have gone back since this elector was created.
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
    async fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error> {
        (**self).campaign_with(election, options).await
    }
    async fn set_value(&self, election: &str, value: Vec<u8>) -> Result<(), Error> {
        (**self).set_value(election, value).await
    }
    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        (**self).leader(election).await
    }
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        (**self).candidates(election).await
    }
    async fn elections(&self) -> Result<Vec<ElectionName>, Error> {
        (**self).elections().await
    }
    fn observe(&self, election: &str) -> Leaders {
        (**self).observe(election)
    }
    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        (**self).request_resign(election).await
    }
    async fn end_session(&self, record: &SessionRecord) -> Result<(), Error> {
        (**self).end_session(record).await
    }
    fn engine(&self) -> Option<Engine> {
        (**self).engine()
    }
    fn candidate_id(&self) -> CandidateId {
        (**self).candidate_id()
    }
    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        (**self).leadership(election)
    }
    fn status(&self) -> Status {
        (**self).status()
    }
    async fn check(&self) -> Result<(), Error> {
        (**self).check().await
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
