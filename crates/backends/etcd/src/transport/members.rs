//! One connection per member, and failover between them.
//!
//! etcd-client can spread calls over endpoints but does no health checks: with one member of three dead a quarter of
//! all calls failed, and with one frozen a third never returned (hazard E6). Here every member has its own client,
//! every await has a timeout (E7), a late or failed answer moves the call to the next member, and the member that
//! answered last is preferred.

mod cluster_check;
mod member_list;
mod outage;
mod refresh;
mod slots;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use tenure_core::{
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tracing::debug;

pub(crate) use self::slots::Member;
use self::{refresh::Refresher, slots::Origin};
use crate::{
    config::EtcdConfig,
    transport::{
        cluster::PinnedCluster,
        error::{Failure, with_context},
        hedge::{HedgeLimits, hedged},
        request::{Answer, kv},
    },
};

/// How long a call may take, all its attempts together. etcd recovers from the loss of its leader within about two
/// seconds. The engine has shorter limits of its own.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// How many bulk calls may be in flight. More would only wait in etcd's queue, where they would look late.
const MAX_BULK_CALLS: usize = 64;

/// The bounds of [`Members::tolerated_silence`].
const MIN_TOLERATED_SILENCE: Duration = Duration::from_secs(2);
const MAX_TOLERATED_SILENCE: Duration = Duration::from_secs(30);

/// The members of the cluster.
pub(crate) struct Members {
    pub(crate) config: Arc<EtcdConfig>,
    probe_key: Arc<str>,
    pub(crate) cluster: PinnedCluster,
    /// Set once the members were looked up.
    #[cfg(feature = "srv")]
    first_lookup: tokio::sync::OnceCell<()>,
    /// Those of the configuration, and those that the cluster's member list adds.
    slots: RwLock<Arc<[Arc<Member>]>>,
    /// The index of the member that calls try first.
    preferred: AtomicUsize,
    bulk_calls: Semaphore,
    /// The shortest TTL of the sessions, in milliseconds; zero without one.
    shortest_ttl: AtomicU64,
    started_at: Instant,
    refresher: Refresher,
}

/// The class of a call, which decides how it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallClass {
    /// Needs a quorum. There may be thousands at the same time, so that their number in flight is limited.
    Bulk,
    /// Needs a quorum, and must not queue behind other calls.
    Urgent,
    /// A lease keepalive: urgent, and no proof that the member reaches a quorum.
    Keepalive,
}

impl Members {
    pub(crate) fn new(config: EtcdConfig, probe_key: String) -> Self {
        let members = Self {
            // Random, so that processes spread over the members.
            preferred: AtomicUsize::new(fastrand::usize(..config.endpoints.len().max(1))),
            config: Arc::new(config),
            probe_key: Arc::from(probe_key),
            cluster: PinnedCluster::default(),
            #[cfg(feature = "srv")]
            first_lookup: tokio::sync::OnceCell::new(),
            slots: RwLock::new(Arc::from([])),
            bulk_calls: Semaphore::new(MAX_BULK_CALLS),
            shortest_ttl: AtomicU64::new(0),
            started_at: Instant::now(),
            refresher: Refresher::default(),
        };
        members.configure(&members.config.endpoints);
        members
    }

    /// The member that calls try first. `None` while no member is known.
    pub(crate) fn preferred(&self) -> Option<Arc<Member>> {
        let members = self.all();
        Some(Arc::clone(members.get(self.preferred_of(&members))?))
    }

    /// The index of the preferred one of `members`.
    fn preferred_of(&self, members: &[Arc<Member>]) -> usize {
        if is_disabled(SafetyRule::FailOver) {
            0
        } else {
            self.preferred.load(Relaxed) % members.len().max(1)
        }
    }

    /// The prefix of all entries' keys, with its slash.
    pub(crate) fn key_prefix(&self) -> String {
        format!("{}/", self.config.prefix)
    }

    /// The members that the configuration names.
    pub(crate) fn configured(&self) -> Vec<Arc<Member>> {
        let mut members = self.all().to_vec();
        members.retain(|member| member.origin == Origin::Configured);
        members
    }

    /// Calls `op` on the preferred member, and on the next ones when it is late or fails.
    ///
    /// `op` must be safe to repeat, also long after this call has returned: an attempt that was overtaken may still
    /// reach the store.
    pub(crate) async fn call<T, F, Fut>(
        self: &Arc<Self>,
        what: &'static str,
        class: CallClass,
        op: F,
    ) -> Result<T, BackendError>
    where
        F: Fn(Arc<Client>) -> Fut,
        Fut: Future<Output = Result<Answer<T>, Failure>>,
    {
        #[cfg(feature = "srv")]
        self.ensure_known().await?;
        if self.cluster.is_unpinned() {
            self.verify_cluster(what).await?;
        }
        let _permit = match class {
            CallClass::Bulk => self.bulk_calls.acquire().await.ok(),
            CallClass::Urgent | CallClass::Keepalive => None,
        };
        // The same members throughout the call, also when others are found or dropped meanwhile.
        let members = self.all();
        if members.is_empty() {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "no member is known yet"));
        }
        let (first, count) = (self.preferred_of(&members), members.len());
        let nth = |n: usize| &members[(first + n) % count];
        let (hedge_delay, round) = match is_disabled(SafetyRule::FailOver) {
            true => (CALL_TIMEOUT, 1),
            false => (self.config.hedge, count),
        };
        let limits = HedgeLimits { hedge_delay, call_timeout: CALL_TIMEOUT, round };
        let outcome = hedged(limits, |n| {
            if n > 0 {
                nth(n - 1).suspect();
            }
            self.attempt(nth(n), what, class, self.config.attempt_timeout, &op)
        })
        .await;
        match &outcome {
            Ok((attempt, _)) => {
                if *attempt > 0 {
                    self.prefer(nth(*attempt));
                }
                self.warn_of_outages();
            }
            Err(error) if error.kind() == BackendErrorKind::Unavailable => {
                self.prefer(nth(1));
                if self.cluster.needs_recheck() {
                    // For the next call, in case the whole cluster was replaced.
                    let _ = Box::pin(self.verify_cluster(what)).await;
                }
            }
            Err(_) => {}
        }
        let failed_over =
            outcome.as_ref().map_or_else(BackendError::is_retryable, |(attempt, _)| *attempt > 0);
        // While calls go to a listed member, the configured ones may come back as members of another cluster, where other
        // processes lead (hazard G34).
        let relies_on_listed = nth(0).origin != Origin::Configured;
        self.refresher.run_if_due(self, failed_over || relies_on_listed);
        outcome.map(|(_, value)| value)
    }

    /// Makes one attempt on one member.
    async fn attempt<T, F, Fut>(
        &self,
        member: &Member,
        what: &'static str,
        class: CallClass,
        limit: Duration,
        op: &F,
    ) -> Result<T, BackendError>
    where
        F: Fn(Arc<Client>) -> Fut,
        Fut: Future<Output = Result<Answer<T>, Failure>>,
    {
        let mut used = None;
        let attempt = async {
            let connected = used.insert(member.connection.get().await?);
            let client = connected.client();
            match op(Arc::clone(&client)).await {
                Ok((Some(header), value)) => self.check_cluster(member, header.cluster_id()).map(|()| value),
                Ok((None, value)) => Ok(value),
                Err(failure) => Err(self.verify_failure(member, &client, failure).await),
            }
        };
        let failure = match timeout(limit, attempt).await {
            Ok(Ok(value)) => {
                used.iter().for_each(|connected| member.connection.record_success(connected));
                member.record_answer();
                if matches!(class, CallClass::Bulk | CallClass::Urgent) {
                    member.last_quorum_answer.store(self.now(), Relaxed);
                }
                return Ok(value);
            }
            Ok(Err(mut failure)) => {
                if failure.error.kind() == BackendErrorKind::Unavailable
                    && let Some(reason) = member.connection.explain().await
                {
                    failure.error = BackendError::new(BackendErrorKind::Unavailable, reason);
                }
                failure
            }
            Err(_) => {
                BackendError::new(BackendErrorKind::Unavailable, format!("no answer within {limit:?}")).into()
            }
        };
        let mut error = failure.error;
        if failure.stale_login {
            member.connection.disconnect(used.as_ref());
            if self.config.login.is_some() {
                error = BackendError::new(BackendErrorKind::Unavailable, error.to_string());
            }
        }
        if error.kind() == BackendErrorKind::Unavailable {
            member.suspect();
            if !failure.stale_login {
                member.record_error(&error);
            }
            if let Some(connected) = &used {
                member.connection.record_failure(connected);
            }
        }
        debug!(member = %member.endpoint, what, %error, "etcd request failed");
        Err(with_context(what, &member.endpoint, &error))
    }

    /// Sends a linearizable read to `member` alone, to check that it reaches a quorum.
    pub(crate) async fn probe(&self, member: &Member, limit: Duration) -> Result<(), BackendError> {
        self.attempt(member, "probe", CallClass::Urgent, limit, &|client: Arc<Client>| async move {
            let options = GetOptions::new().with_count_only();
            let mut response = kv(&client).get(&*self.probe_key, Some(options)).await?;
            Ok((response.take_header(), ()))
        })
        .await
    }

    /// A random number for a lease id, unique across processes.
    pub(crate) fn random(&self) -> Result<u64, BackendError> {
        // A simulated run has to be reproducible.
        #[cfg(feature = "simulation")]
        if self.config.network.is_some() {
            return Ok(fastrand::u64(..));
        }
        getrandom::u64().map_err(|error| {
            let message = "the system's random number generator failed";
            BackendError::with_source(BackendErrorKind::Unavailable, message, error)
        })
    }

    /// Drops all connections.
    pub(crate) fn disconnect_all(&self) {
        self.refresher.stop();
        self.all().iter().for_each(|member| member.connection.disconnect(None));
    }

    /// Suspects `member`, and prefers the next one if this one was preferred.
    pub(crate) fn avoid(&self, member: &Arc<Member>) {
        member.suspect();
        let members = self.all();
        let preferred = self.preferred_of(&members);
        if members.get(preferred).is_some_and(|preferred| Arc::ptr_eq(preferred, member)) {
            self.preferred.store((preferred + 1) % members.len(), Relaxed);
        }
    }

    fn prefer(&self, member: &Arc<Member>) {
        if let Some(index) = self.all().iter().position(|one| Arc::ptr_eq(one, member)) {
            self.preferred.store(index, Relaxed);
        }
    }

    /// How long ago `member` last returned an answer that needed a quorum; `None` when it is suspected.
    pub(crate) fn since_quorum_answer(&self, member: &Member) -> Option<Duration> {
        match member.last_quorum_answer.load(Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(self.now().saturating_sub(at))),
        }
    }

    /// Records the TTL of a session, on which [`tolerated_silence`](Self::tolerated_silence) depends.
    pub(crate) fn record_ttl(&self, ttl: Duration) {
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let _ = self.shortest_ttl.fetch_update(Relaxed, Relaxed, |shortest| {
            (shortest == 0 || millis < shortest).then_some(millis)
        });
    }

    /// How long `member` may go without an answer that needed a quorum until it is probed.
    ///
    /// - The preferred member: three times the shortest TTL of the sessions, within 2 s to 30 s. Heartbeats of a leader, and
    ///   of a candidate that is next in line, need a quorum, and so take the place of probes.
    /// - Another member: one TTL, within the same limits. The heartbeats do not go to it, so that they prove nothing about it.
    pub(crate) fn tolerated_silence(&self, member: &Arc<Member>) -> Duration {
        let ttl = Duration::from_millis(self.shortest_ttl.load(Relaxed));
        let is_preferred = self.preferred().is_some_and(|preferred| Arc::ptr_eq(&preferred, member));
        (ttl * if is_preferred { 3 } else { 1 }).clamp(MIN_TOLERATED_SILENCE, MAX_TOLERATED_SILENCE)
    }

    /// Milliseconds since `started_at`, plus one.
    fn now(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("config", &self.config).field("slots", &self.all()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn three_members() -> Arc<Members> {
        Arc::new(Members::new(EtcdConfig::new(["a", "b", "c"]), "/t/~probe".to_owned()))
    }

    fn refused() -> Failure {
        BackendError::new(BackendErrorKind::Unavailable, "connection refused").into()
    }

    /// E6: a dead member costs one attempt and is then not preferred.
    #[tokio::test(start_paused = true)]
    async fn the_member_that_answered_is_preferred() {
        let members = three_members();
        let (dead, attempts_made) = (members.preferred_of(&members.all()), AtomicUsize::new(0));
        for attempts in [2, 3, 4] {
            let response = members.call("test", CallClass::Urgent, |_| async {
                if attempts_made.fetch_add(1, Relaxed) == 0 { Err(refused()) } else { Ok((None, ())) }
            });
            response.await.unwrap();
            assert_eq!(attempts_made.load(Relaxed), attempts);
            assert_eq!(members.preferred_of(&members.all()), (dead + 1) % 3);
        }
    }

    /// E5, E16: a member whose answer is late is suspected, whichever call was late.
    #[tokio::test(start_paused = true)]
    async fn a_late_member_is_suspected() {
        let members = three_members();
        let frozen = members.preferred().unwrap();
        members.call("test", CallClass::Urgent, |_| async { Ok((None, ())) }).await.unwrap();
        assert_eq!(members.since_quorum_answer(&frozen), Some(Duration::ZERO));
        let attempts_made = AtomicUsize::new(0);
        let response = members.call("test", CallClass::Keepalive, |_| async {
            if attempts_made.fetch_add(1, Relaxed) == 0 { pending().await } else { Ok((None, ())) }
        });
        response.await.unwrap();
        assert_eq!(members.since_quorum_answer(&frozen), None);
        let preferred = members.preferred().unwrap();
        assert_eq!(members.since_quorum_answer(&preferred), None, "a keepalive proves no quorum");
    }

    /// E5, E16: a watch stays on its member when others are preferred. Heartbeats go to those, so that it is probed sooner.
    #[tokio::test]
    async fn a_member_that_is_not_preferred_is_probed_sooner() {
        let members = three_members();
        let ttl = Duration::from_secs(5);
        members.record_ttl(ttl);
        let member = members.preferred().unwrap();
        assert_eq!(members.tolerated_silence(&member), ttl * 3);
        members.prefer(members.all().iter().find(|one| !Arc::ptr_eq(one, &member)).unwrap());
        assert_eq!(members.tolerated_silence(&member), ttl);
        let preferred = members.preferred().unwrap();
        members.update(Vec::new(), |one| one.endpoint != preferred.endpoint);
        assert_eq!(members.tolerated_silence(&preferred), ttl * 3, "whatever its index is");
        assert_eq!(members.tolerated_silence(&member), ttl, "and one that was dropped is still probed");
    }

    /// E6: with every member dead the call fails after one round, and the error names the member.
    #[tokio::test(start_paused = true)]
    async fn a_call_fails_when_all_members_have() {
        let members = three_members();
        let attempts_made = AtomicUsize::new(0);
        let error = members.call("test", CallClass::Bulk, |_| async {
            attempts_made.fetch_add(1, Relaxed);
            Err::<Answer<()>, _>(refused())
        });
        let error = error.await.unwrap_err();
        assert_eq!((attempts_made.load(Relaxed), error.kind()), (3, BackendErrorKind::Unavailable));
        assert!(error.to_string().contains(":2379: connection refused"), "{error}");
    }

    /// E10: an expired login costs another attempt, and a missing permission is permanent.
    #[tokio::test(start_paused = true)]
    async fn an_expired_login_is_renewed() {
        let stale = || Failure {
            error: BackendError::new(BackendErrorKind::Unavailable, "invalid auth token"),
            stale_login: true,
        };
        let (members, attempts_made) = (three_members(), AtomicUsize::new(0));
        let response = members.call("test", CallClass::Urgent, |_| async {
            if attempts_made.fetch_add(1, Relaxed) == 0 { Err(stale()) } else { Ok((None, ())) }
        });
        response.await.unwrap();
        assert_eq!(attempts_made.load(Relaxed), 2);
        let denied = members.call("test", CallClass::Urgent, |_| async {
            Err::<Answer<()>, _>(
                BackendError::new(BackendErrorKind::Unauthorized, "permission denied").into(),
            )
        });
        assert_eq!(denied.await.unwrap_err().kind(), BackendErrorKind::Unauthorized);
    }
}
