//! One connection for each member, and which of them to ask.
//!
//! etcd-client can spread calls over endpoints but checks none of them: with one
//! member of three dead a quarter of all calls failed, with one frozen a third hung
//! for ever (hazard E6). Here every member has a client of its own, every await has
//! a timeout (E7), a late or failed answer sends the call to the next member, and
//! the member that answered last is asked first.

mod identity;

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
    transport::cluster::Cluster,
    transport::connection::Connection,
    transport::error::{Failure, doing},
    transport::hedge::{Late, Pace, Won, hedged},
    transport::limiter::Bulk,
    transport::request::{Asked, MAX_ANSWER_BYTES, kv},
};

/// How long a call may take, all its attempts together. A leader's loss is settled
/// in etcd within about two seconds; the engine has its own, shorter bounds.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// The members of the cluster.
pub(crate) struct Members {
    members: Vec<Member>,
    preferred: AtomicUsize,
    config: Arc<EtcdConfig>,
    probe_key: Arc<str>,
    bulk: Bulk,
    born: Instant,
    cluster: Cluster,
}

struct Member {
    /// `host:port`.
    endpoint: String,
    connection: Arc<Connection>,
    /// When a quorum's answer last came through this member, in milliseconds since
    /// `born` plus one; zero when it is suspected to be frozen or cut off.
    fresh: AtomicU64,
    /// It was said that it is of another cluster.
    is_foreign: AtomicBool,
}

/// What a call is, which decides how it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A quorum's word, of which there may be thousands at once.
    Bulk,
    /// A quorum's word that must not queue behind others.
    Urgent,
    /// A lease keepalive: urgent, and no proof that the member hears the others.
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
                fresh: AtomicU64::new(0),
                is_foreign: AtomicBool::new(false),
            })
            .collect();
        // Processes spread over the members.
        let preferred = AtomicUsize::new(fastrand::usize(..members.len().max(1)));
        Self {
            members,
            preferred,
            config,
            probe_key,
            bulk: Bulk::new(),
            born: Instant::now(),
            cluster: Cluster::default(),
        }
    }

    /// The member to ask first.
    pub(crate) fn preferred(&self) -> usize {
        if is_disabled(SafetyRule::FailOver) { 0 } else { self.preferred.load(Relaxed) }
    }

    /// Whether a name and a password are shown.
    pub(crate) fn logs_in(&self) -> bool {
        self.config.login.is_some()
    }

    /// What all entries' keys begin with.
    pub(crate) fn prefix(&self) -> String {
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

    /// Makes `call` on the preferred member, and on the next ones when it is late or fails.
    ///
    /// `op` must be safe to make several times, also long after this call has ended:
    /// an attempt that was overtaken may still reach the store.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        what: &'static str,
        call: Call,
        op: F,
    ) -> Result<Won<T>, BackendError>
    where
        F: Fn(Asked) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        if self.cluster.is_unknown() {
            self.agree(what).await?;
        }
        let place = match call {
            Call::Bulk => Some(self.bulk.enter().await),
            Call::Urgent | Call::Keepalive => None,
        };
        let (first, count) = (self.preferred(), self.members.len());
        let attempt = self.config.attempt_timeout;
        let pace = match is_disabled(SafetyRule::FailOver) {
            true => Pace { hedge: CALL_TIMEOUT, attempt, call: CALL_TIMEOUT, round: 1 },
            false => Pace { hedge: self.config.hedge, attempt, call: CALL_TIMEOUT, round: count },
        };
        let late = &Late::default();
        let outcome = hedged(pace, late, |n| {
            if n > 0 {
                self.suspect((first + n - 1) % count);
            }
            self.attempt((first + n) % count, what, call, attempt, late, &op)
        })
        .await;
        if let Some(place) = place {
            place.answered(match &outcome {
                Ok(won) => won.attempts == 1,
                Err(error) => error.kind() != BackendErrorKind::Unavailable,
            });
        }
        match &outcome {
            Ok(won) if won.attempt > 0 => self.prefer((first + won.attempt) % count),
            Ok(_) => {}
            Err(error) if error.kind() == BackendErrorKind::Unavailable => {
                self.prefer((first + 1) % count);
                if self.cluster.is_in_doubt() {
                    // For whoever asks next, should the whole cluster have been replaced.
                    let _ = Box::pin(self.agree(what)).await;
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
        call: Call,
        limit: Duration,
        late: &Late,
        op: &F,
    ) -> Result<T, BackendError>
    where
        F: Fn(Asked) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let member = &self.members[index];
        let mut used = None;
        let attempt = async {
            let connected = used.insert(member.connection.get().await?);
            let asked = Asked::new(connected.client());
            match op(asked.clone()).await {
                Ok(value) => {
                    asked.cluster().map_or(Ok(()), |cluster| self.admit(index, cluster)).map(|()| value)
                }
                Err(failure) => Err(self.if_of_our_cluster(index, &asked, failure).await),
            }
        };
        let until = Instant::now() + limit;
        let outcome = tokio::select! {
            biased;
            outcome = attempt => Some(outcome),
            () = late.and_past(until) => None,
        };
        let failure = match outcome {
            Some(Ok(value)) => {
                used.iter().for_each(|connected| connected.served());
                if matches!(call, Call::Bulk | Call::Urgent) {
                    self.note_fresh(index);
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
            member.connection.forget(used.as_ref());
            if self.config.login.is_some() {
                error = BackendError::new(BackendErrorKind::Unavailable, error.to_string());
            }
        }
        if error.kind() == BackendErrorKind::Unavailable {
            self.suspect(index);
            if let Some(connected) = &used {
                member.connection.failed(connected);
            }
        }
        debug!(member = %member.endpoint, what, %error, "etcd request failed");
        Err(doing(what, &member.endpoint, &error))
    }

    /// The member's client, connected when there is none. The caller bounds it in time.
    pub(crate) async fn client(&self, index: usize) -> Result<Arc<Client>, Failure> {
        Ok(self.members[index].connection.get().await?.client())
    }

    /// Asks `member` alone for a quorum's word, to see whether it hears the others.
    pub(crate) async fn probe(&self, member: usize, limit: Duration) -> Result<(), BackendError> {
        let late = Late::default();
        late.set();
        self.attempt(member, "probe", Call::Urgent, limit, &late, &|client: Asked| async move {
            let options = GetOptions::new().with_count_only();
            kv(&client).get(&*self.probe_key, Some(options)).await?;
            Ok(())
        })
        .await
    }

    /// A number that no other process has, for a lease.
    pub(crate) fn random(&self) -> Result<u64, BackendError> {
        // A simulated run is the same every time.
        #[cfg(feature = "simulation")]
        if self.config.network.is_some() {
            return Ok(fastrand::u64(..));
        }
        getrandom::u64().map_err(|error| {
            BackendError::with_source(BackendErrorKind::Unavailable, "no random number for a lease", error)
        })
    }

    /// Forgets the member's connection and login, unless a new one is being made.
    pub(crate) fn reset(&self, member: usize) {
        self.members[member].connection.forget(None);
    }

    /// Forgets all connections.
    pub(crate) fn disconnect(&self) {
        (0..self.members.len()).for_each(|member| self.reset(member));
    }

    /// Asks another member first from now on, if this one was asked first.
    pub(crate) fn avoid(&self, member: usize) {
        self.suspect(member);
        let next = (member + 1) % self.members.len();
        let _ = self.preferred.compare_exchange(member, next, Relaxed, Relaxed);
    }

    fn prefer(&self, member: usize) {
        self.preferred.store(member, Relaxed);
    }

    fn suspect(&self, member: usize) {
        self.members[member].fresh.store(0, Relaxed);
    }

    fn note_fresh(&self, member: usize) {
        self.members[member].fresh.store(self.now(), Relaxed);
    }

    /// How long ago a quorum's answer last came through `member`; `None` when it is suspected.
    pub(crate) fn quiet(&self, member: usize) -> Option<Duration> {
        match self.members[member].fresh.load(Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(self.now().saturating_sub(at))),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("config", &self.config).field("preferred", &self.preferred()).finish()
    }
}

/// A client for watches whose messages may be large.
pub(crate) fn watches(client: &Client) -> etcd_client::WatchClient {
    client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn three() -> Members {
        Members::new(EtcdConfig::new(["a", "b", "c"]), "/t/~probe".to_owned())
    }

    fn refused() -> Failure {
        BackendError::new(BackendErrorKind::Unavailable, "connection refused").into()
    }

    /// E6: a dead member is found out once and then left alone.
    #[tokio::test(start_paused = true)]
    async fn the_member_that_answered_is_asked_first() {
        let members = three();
        let (dead, asked) = (members.preferred(), AtomicUsize::new(0));
        for attempts in [2, 1, 1] {
            let won = members.call("test", Call::Urgent, |_| async {
                if asked.fetch_add(1, Relaxed) == 0 { Err(refused()) } else { Ok(()) }
            });
            assert_eq!(won.await.unwrap().attempts, attempts);
            assert_eq!(members.preferred(), (dead + 1) % 3);
        }
    }

    /// E5, E16: a member whose answer is late is suspected, whoever noticed.
    #[tokio::test(start_paused = true)]
    async fn a_late_member_is_suspected() {
        let members = three();
        let frozen = members.preferred();
        members.call("test", Call::Urgent, |_| async { Ok(()) }).await.unwrap();
        assert_eq!(members.quiet(frozen), Some(Duration::ZERO));
        let asked = AtomicUsize::new(0);
        let won = members.call("test", Call::Keepalive, |_| async {
            if asked.fetch_add(1, Relaxed) == 0 { pending().await } else { Ok(()) }
        });
        won.await.unwrap();
        assert_eq!(members.quiet(frozen), None);
        assert_eq!(members.quiet(members.preferred()), None, "a keepalive proves no quorum");
    }

    /// E6: with every member dead the call fails after one round, and says whom it asked.
    #[tokio::test(start_paused = true)]
    async fn a_call_fails_when_all_members_have() {
        let members = three();
        let asked = AtomicUsize::new(0);
        let error = members.call("test", Call::Bulk, |_| async {
            asked.fetch_add(1, Relaxed);
            Err::<(), _>(refused())
        });
        let error = error.await.unwrap_err();
        assert_eq!((asked.load(Relaxed), error.kind()), (3, BackendErrorKind::Unavailable));
        assert!(error.to_string().contains(":2379: connection refused"), "{error}");
    }

    /// E10: an expired login costs another attempt, and a refused one is final.
    #[tokio::test(start_paused = true)]
    async fn an_expired_login_is_made_anew() {
        let stale = || Failure {
            error: BackendError::new(BackendErrorKind::Unavailable, "invalid auth token"),
            stale_login: true,
        };
        let (members, asked) = (three(), AtomicUsize::new(0));
        let won = members.call("test", Call::Urgent, |_| async {
            if asked.fetch_add(1, Relaxed) == 0 { Err(stale()) } else { Ok(()) }
        });
        assert_eq!(won.await.unwrap().attempts, 2);
        let denied = members.call("test", Call::Urgent, |_| async {
            Err::<(), _>(BackendError::new(BackendErrorKind::Unauthorized, "permission denied").into())
        });
        assert_eq!(denied.await.unwrap_err().kind(), BackendErrorKind::Unauthorized);
    }
}
