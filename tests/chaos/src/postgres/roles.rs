//! Which member is the primary, whether its replica may be promoted, and the failover itself.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tenure_containers::{PostgresAdmin, PostgresCluster, Replication};
use tokio::{
    sync::{RwLock, RwLockReadGuard},
    time::timeout,
};

use super::MEMBERS;

/// How long a server may take to answer before it counts as silent.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_millis(700);
/// How long one step of a failover may take. Nothing that is injected on purpose delays one.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// The state that a supervisor such as Patroni keeps in a store of its own.
pub(super) struct Roles {
    pub(super) cluster: PostgresCluster,
    pub(super) replication: Replication,
    state: Mutex<State>,
    /// How many faults each member has.
    disruptions: Arc<[AtomicUsize; MEMBERS]>,
    /// Held exclusively from before a primary is stopped until the other member is one, and shared while a fault begins or
    /// ends: a former primary must not start in between, because its replica still waits for it.
    changing: RwLock<()>,
    failovers: AtomicU64,
}

#[derive(Debug)]
struct State {
    primary: usize,
    /// The replica has every acknowledged commit. Set only once that is so, and cleared before the primary is configured
    /// not to wait.
    is_replica_complete: bool,
    /// When the primary was last seen with a replica that follows it.
    does_replica_follow: bool,
    failure: Option<String>,
}

impl Roles {
    pub(super) fn new(cluster: PostgresCluster, replication: Replication) -> Self {
        let state = State { primary: 0, is_replica_complete: true, does_replica_follow: true, failure: None };
        Self {
            cluster,
            replication,
            state: Mutex::new(state),
            disruptions: Arc::default(),
            changing: RwLock::default(),
            failovers: AtomicU64::new(0),
        }
    }

    pub(super) fn primary(&self) -> usize {
        self.state().primary
    }

    pub(super) fn replica(&self) -> usize {
        MEMBERS - 1 - self.primary()
    }

    pub(super) fn admin(&self, member: usize) -> &PostgresAdmin {
        self.cluster.member(member).admin()
    }

    pub(super) fn is_replica_complete(&self) -> bool {
        self.state().is_replica_complete
    }

    pub(super) fn set_replica_complete(&self, complete: bool) {
        self.state().is_replica_complete = complete;
    }

    pub(super) fn set_replica_follows(&self, follows: bool) {
        self.state().does_replica_follow = follows;
    }

    /// Whether the replica follows, as far as the kind of replication demands.
    pub(super) fn is_replica_ready(&self) -> bool {
        let state = self.state();
        state.does_replica_follow
            && (state.is_replica_complete || self.replication == Replication::Asynchronous)
    }

    pub(super) fn failovers(&self) -> u64 {
        self.failovers.load(Relaxed)
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    pub(super) fn set_failure(&self, error: &anyhow::Error) {
        self.state().failure = Some(format!("{error:#}"));
    }

    /// Counts a fault of a member until it is dropped.
    pub(super) fn disrupt(&self, member: usize) -> Disruption {
        self.disruptions[member].fetch_add(1, Relaxed);
        Disruption { disruptions: Arc::clone(&self.disruptions), member }
    }

    pub(super) fn is_disrupted(&self, member: usize) -> bool {
        self.disruptions[member].load(Relaxed) > 0
    }

    /// Keeps roles from changing until it is dropped.
    pub(super) async fn unchanged(&self) -> RwLockReadGuard<'_, ()> {
        self.changing.read().await
    }

    /// Stops the primary for certain, and promotes its replica. Does nothing if there is none that can be promoted, or if it may
    /// lack acknowledged commits and replication is synchronous.
    ///
    /// # Errors
    /// When it fails half-way: which member is the primary is unknown then.
    pub(super) async fn fail_over(&self) -> Result<()> {
        // A fault that begins or ends now is waited for by the next attempt.
        let Ok(_exclusive) = self.changing.try_write() else { return Ok(()) };
        let (primary, replica) = (self.primary(), self.replica());
        let is_allowed = self.replication == Replication::Asynchronous || self.is_replica_complete();
        if !is_allowed || self.is_disrupted(replica) || !self.answers_as_replica(replica).await {
            return Ok(());
        }
        let fenced = timeout(STEP_TIMEOUT, self.cluster.fence(primary)).await;
        fenced.context("stopping the primary takes too long")?.context("cannot stop the primary")?;
        let promoted = timeout(STEP_TIMEOUT, self.cluster.promote(replica)).await;
        promoted.context("the promotion takes too long")?.context("cannot promote the replica")?;
        {
            let mut state = self.state();
            state.primary = replica;
            state.is_replica_complete = false;
            state.does_replica_follow = false;
        }
        self.failovers.fetch_add(1, Relaxed);
        if self.replication == Replication::Synchronous {
            // If it does not answer yet, the supervisor finds that nothing is committed, and tells it again.
            let _ = self.cluster.replicate_asynchronously(replica).await;
        }
        Ok(())
    }

    async fn answers_as_replica(&self, member: usize) -> bool {
        matches!(timeout(PROBE_TIMEOUT, self.admin(member).is_replica()).await, Ok(Ok(true)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roles").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A fault of a member, while it is in force.
#[derive(Debug)]
pub(super) struct Disruption {
    disruptions: Arc<[AtomicUsize; MEMBERS]>,
    member: usize,
}

impl Drop for Disruption {
    fn drop(&mut self) {
        self.disruptions[self.member].fetch_sub(1, Relaxed);
    }
}
