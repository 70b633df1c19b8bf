//! One connection per member, and failover between them.
//!
//! etcd-client can spread calls over endpoints but does no health checks: with one member of three dead a quarter of
//! all calls failed, and with one frozen a third never returned (hazard E6). Here every member has its own client,
//! every await has a timeout (E7), a late or failed answer moves the call to the next member, and the member that
//! answered last is preferred.

mod cluster_check;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use tenure_core::{
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind},
};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    config::EtcdConfig,
    transport::{
        cluster::PinnedCluster,
        connection::Connection,
        error::{Failure, with_context},
        hedge::{HedgeLimits, HedgedResponse, LazyTimeout, hedged},
        limiter::Limiter,
        request::{AttemptClient, kv},
    },
};

/// How long a call may take, all its attempts together. etcd recovers from the loss of its leader within about two
/// seconds. The engine has shorter limits of its own.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// The members of the cluster.
pub(crate) struct Members {
    members: Vec<Member>,
    preferred: AtomicUsize,
    config: Arc<EtcdConfig>,
    probe_key: Arc<str>,
    limiter: Limiter,
    started_at: Instant,
    cluster: PinnedCluster,
}

struct Member {
    /// `host:port`.
    endpoint: String,
    connection: Arc<Connection>,
    /// When this member last returned an answer that needed a quorum, in milliseconds since `started_at` plus one.
    /// Zero when the member is suspected to be frozen or partitioned.
    last_quorum_answer: AtomicU64,
    /// Whether it was logged that the member belongs to another cluster.
    is_foreign: AtomicBool,
}

/// The class of a call, which decides how it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallClass {
    /// Needs a quorum. There may be thousands at the same time, so that the [`Limiter`] applies.
    Bulk,
    /// Needs a quorum, and must not queue behind other calls.
    Urgent,
    /// A lease keepalive: urgent, and no proof that the member reaches a quorum.
    Keepalive,
}

impl Members {
    pub(crate) fn new(config: EtcdConfig, probe_key: String) -> Self {
        let (config, probe_key) = (Arc::new(config), Arc::from(probe_key));
        let members: Vec<_> = config
            .endpoints
            .iter()
            .map(|endpoint| Member {
                endpoint: endpoint.clone(),
                connection: Connection::new(Arc::clone(&config), endpoint, Arc::clone(&probe_key)),
                last_quorum_answer: AtomicU64::new(0),
                is_foreign: AtomicBool::new(false),
            })
            .collect();
        // Random, so that processes spread over the members.
        let preferred = AtomicUsize::new(fastrand::usize(..members.len().max(1)));
        Self {
            members,
            preferred,
            config,
            probe_key,
            limiter: Limiter::new(),
            started_at: Instant::now(),
            cluster: PinnedCluster::default(),
        }
    }

    /// The member that calls try first.
    pub(crate) fn preferred(&self) -> usize {
        if is_disabled(SafetyRule::FailOver) { 0 } else { self.preferred.load(Relaxed) }
    }

    /// Whether a user and a password are configured.
    pub(crate) fn uses_login(&self) -> bool {
        self.config.login.is_some()
    }

    /// The prefix of all entries' keys, with its slash.
    pub(crate) fn key_prefix(&self) -> String {
        format!("{}/", self.config.prefix)
    }

    pub(crate) fn prefix_watch_threshold(&self) -> usize {
        self.config.prefix_watch_threshold
    }

    pub(crate) fn count(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn endpoint(&self, member: usize) -> &str {
        &self.members[member].endpoint
    }

    /// Calls `op` on the preferred member, and on the next ones when it is late or fails.
    ///
    /// `op` must be safe to repeat, also long after this call has returned: an attempt that was overtaken may still
    /// reach the store.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        what: &'static str,
        class: CallClass,
        op: F,
    ) -> Result<HedgedResponse<T>, BackendError>
    where
        F: Fn(AttemptClient) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        if self.cluster.is_unpinned() {
            self.verify_cluster(what).await?;
        }
        let permit = match class {
            CallClass::Bulk => Some(self.limiter.acquire().await),
            CallClass::Urgent | CallClass::Keepalive => None,
        };
        let (first, count) = (self.preferred(), self.members.len());
        let attempt_timeout = self.config.attempt_timeout;
        let (hedge_delay, round) = match is_disabled(SafetyRule::FailOver) {
            true => (CALL_TIMEOUT, 1),
            false => (self.config.hedge, count),
        };
        let limits = HedgeLimits { hedge_delay, attempt_timeout, call_timeout: CALL_TIMEOUT, round };
        let timeout = &LazyTimeout::default();
        let outcome = hedged(limits, timeout, |n| {
            if n > 0 {
                self.suspect((first + n - 1) % count);
            }
            self.attempt((first + n) % count, what, class, attempt_timeout, timeout, &op)
        })
        .await;
        if let Some(permit) = permit {
            permit.report(match &outcome {
                Ok(response) => response.attempts == 1,
                Err(error) => error.kind() != BackendErrorKind::Unavailable,
            });
        }
        match &outcome {
            Ok(response) if response.attempt > 0 => self.prefer((first + response.attempt) % count),
            Ok(_) => {}
            Err(error) if error.kind() == BackendErrorKind::Unavailable => {
                self.prefer((first + 1) % count);
                if self.cluster.needs_recheck() {
                    // For the next call, in case the whole cluster was replaced.
                    let _ = Box::pin(self.verify_cluster(what)).await;
                }
            }
            Err(_) => {}
        }
        outcome
    }

    /// Makes one attempt on one member.
    async fn attempt<T, F, Fut>(
        &self,
        index: usize,
        what: &'static str,
        class: CallClass,
        limit: Duration,
        timeout: &LazyTimeout,
        op: &F,
    ) -> Result<T, BackendError>
    where
        F: Fn(AttemptClient) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let member = &self.members[index];
        let mut used = None;
        let attempt = async {
            let connected = used.insert(member.connection.get().await?);
            let client = AttemptClient::new(connected.client());
            match op(client.clone()).await {
                Ok(value) => {
                    client.cluster().map_or(Ok(()), |id| self.check_cluster(index, id)).map(|()| value)
                }
                Err(failure) => Err(self.verify_failure(index, &client, failure).await),
            }
        };
        let deadline = Instant::now() + limit;
        let outcome = tokio::select! {
            biased;
            outcome = attempt => Some(outcome),
            () = timeout.expired(deadline) => None,
        };
        let failure = match outcome {
            Some(Ok(value)) => {
                used.iter().for_each(|connected| connected.record_success());
                if matches!(class, CallClass::Bulk | CallClass::Urgent) {
                    self.record_quorum_answer(index);
                }
                return Ok(value);
            }
            Some(Err(failure)) => failure,
            None => {
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
            self.suspect(index);
            if let Some(connected) = &used {
                member.connection.record_failure(connected);
            }
        }
        debug!(member = %member.endpoint, what, %error, "etcd request failed");
        Err(with_context(what, &member.endpoint, &error))
    }

    /// The member's client, connected when there is none. The caller sets a timeout.
    pub(crate) async fn client(&self, index: usize) -> Result<Arc<Client>, Failure> {
        Ok(self.members[index].connection.get().await?.client())
    }

    /// Sends a linearizable read to `member` alone, to check that it reaches a quorum.
    pub(crate) async fn probe(&self, member: usize, limit: Duration) -> Result<(), BackendError> {
        let timeout = LazyTimeout::default();
        timeout.arm();
        self.attempt(
            member,
            "probe",
            CallClass::Urgent,
            limit,
            &timeout,
            &|client: AttemptClient| async move {
                let options = GetOptions::new().with_count_only();
                kv(&client).get(&*self.probe_key, Some(options)).await?;
                Ok(())
            },
        )
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

    /// Drops the member's connection and login, unless a new one is being opened.
    pub(crate) fn disconnect(&self, member: usize) {
        self.members[member].connection.disconnect(None);
    }

    /// Drops all connections.
    pub(crate) fn disconnect_all(&self) {
        (0..self.members.len()).for_each(|member| self.disconnect(member));
    }

    /// Suspects `member`, and prefers the next one if this one was preferred.
    pub(crate) fn avoid(&self, member: usize) {
        self.suspect(member);
        let next = (member + 1) % self.members.len();
        let _ = self.preferred.compare_exchange(member, next, Relaxed, Relaxed);
    }

    fn prefer(&self, member: usize) {
        self.preferred.store(member, Relaxed);
    }

    fn suspect(&self, member: usize) {
        self.members[member].last_quorum_answer.store(0, Relaxed);
    }

    fn record_quorum_answer(&self, member: usize) {
        self.members[member].last_quorum_answer.store(self.now(), Relaxed);
    }

    /// How long ago `member` last returned an answer that needed a quorum; `None` when it is suspected.
    pub(crate) fn since_quorum_answer(&self, member: usize) -> Option<Duration> {
        match self.members[member].last_quorum_answer.load(Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(self.now().saturating_sub(at))),
        }
    }

    /// Milliseconds since `started_at`, plus one.
    fn now(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("config", &self.config).field("preferred", &self.preferred()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn three_members() -> Members {
        Members::new(EtcdConfig::new(["a", "b", "c"]), "/t/~probe".to_owned())
    }

    fn refused() -> Failure {
        BackendError::new(BackendErrorKind::Unavailable, "connection refused").into()
    }

    /// E6: a dead member costs one attempt and is then not preferred.
    #[tokio::test(start_paused = true)]
    async fn the_member_that_answered_is_preferred() {
        let members = three_members();
        let (dead, attempts_made) = (members.preferred(), AtomicUsize::new(0));
        for attempts in [2, 1, 1] {
            let response = members.call("test", CallClass::Urgent, |_| async {
                if attempts_made.fetch_add(1, Relaxed) == 0 { Err(refused()) } else { Ok(()) }
            });
            assert_eq!(response.await.unwrap().attempts, attempts);
            assert_eq!(members.preferred(), (dead + 1) % 3);
        }
    }

    /// E5, E16: a member whose answer is late is suspected, whichever call was late.
    #[tokio::test(start_paused = true)]
    async fn a_late_member_is_suspected() {
        let members = three_members();
        let frozen = members.preferred();
        members.call("test", CallClass::Urgent, |_| async { Ok(()) }).await.unwrap();
        assert_eq!(members.since_quorum_answer(frozen), Some(Duration::ZERO));
        let attempts_made = AtomicUsize::new(0);
        let response = members.call("test", CallClass::Keepalive, |_| async {
            if attempts_made.fetch_add(1, Relaxed) == 0 { pending().await } else { Ok(()) }
        });
        response.await.unwrap();
        assert_eq!(members.since_quorum_answer(frozen), None);
        assert_eq!(members.since_quorum_answer(members.preferred()), None, "a keepalive proves no quorum");
    }

    /// E6: with every member dead the call fails after one round, and the error names the member.
    #[tokio::test(start_paused = true)]
    async fn a_call_fails_when_all_members_have() {
        let members = three_members();
        let attempts_made = AtomicUsize::new(0);
        let error = members.call("test", CallClass::Bulk, |_| async {
            attempts_made.fetch_add(1, Relaxed);
            Err::<(), _>(refused())
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
            if attempts_made.fetch_add(1, Relaxed) == 0 { Err(stale()) } else { Ok(()) }
        });
        assert_eq!(response.await.unwrap().attempts, 2);
        let denied = members.call("test", CallClass::Urgent, |_| async {
            Err::<(), _>(BackendError::new(BackendErrorKind::Unauthorized, "permission denied").into())
        });
        assert_eq!(denied.await.unwrap_err().kind(), BackendErrorKind::Unauthorized);
    }
}
