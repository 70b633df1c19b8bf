//! All leases of the sidecar, by the client's nonce and by the lease's id.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use tenure::{BootInstant, ElectionName, Elector};
use tokio::sync::watch;

use super::{
    error::ApiError,
    lease::{Lease, Timing},
};

/// How many leases can exist that are not over.
const MAX_LEASES: usize = 100;
/// How many leases that are over are remembered, and for how long.
const MAX_REMEMBERED: usize = 256;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Random bytes of a lease's id.
const ID_BYTES: usize = 24;

/// All leases.
pub(super) struct Leases {
    elector: Arc<dyn Elector>,
    timing: Timing,
    by_id: Mutex<HashMap<String, Arc<Lease>>>,
    /// The number of leases whose task runs.
    running: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("count", &self.lock().len()).finish_non_exhaustive()
    }
}

/// What a client asks for.
#[derive(Debug)]
pub(super) struct CampaignRequest {
    pub(super) election: ElectionName,
    pub(super) nonce: String,
    pub(super) value: Option<String>,
    pub(super) lease_time: Option<Duration>,
}

impl Leases {
    /// Without any.
    pub(super) fn new(elector: Arc<dyn Elector>, timing: Timing) -> Self {
        Self {
            elector,
            timing,
            by_id: Mutex::default(),
            running: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        }
    }

    pub(super) fn elector(&self) -> &Arc<dyn Elector> {
        &self.elector
    }

    /// The time that everything is measured with.
    pub(super) fn now(&self) -> BootInstant {
        self.timing.clock.now()
    }

    /// Whether the sidecar is being stopped; a change is sent.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// The lease with this client's nonce. A new one campaigns in the background.
    ///
    /// # Errors
    /// When the nonce was used for something else, when there are too many leases, or when the sidecar is being stopped.
    pub(super) fn enter(&self, request: CampaignRequest) -> Result<Arc<Lease>, ApiError> {
        if *self.stopping.borrow() {
            return Err(ApiError::stopping());
        }
        let CampaignRequest { election, nonce, value, lease_time } = request;
        let mut leases = self.lock();
        if let Some(lease) = leases.values().find(|lease| lease.nonce == nonce) {
            if lease.election == election && lease.value == value {
                return Ok(Arc::clone(lease));
            }
            let message = "the nonce was used for another election or with another value";
            let advice = "a new random nonce for each candidate, and the same one for its retries alone";
            return Err(ApiError::new(StatusCode::CONFLICT, "nonce_reused", message, advice));
        }
        forget_old(&mut leases, self.now());
        if leases.values().filter(|lease| lease.over_since().is_none()).count() >= MAX_LEASES {
            let message = format!("this sidecar has {MAX_LEASES} leases");
            let advice = format!("at most {MAX_LEASES} leases that are not over");
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_leases", message, advice);
            return Err(error.retry_after(5));
        }
        let id = random_id()?;
        let lease_time = lease_time.unwrap_or(self.timing.ttl);
        let stopping = self.stopping.subscribe();
        let lease = Lease::new(election, nonce, id.clone(), value, lease_time, self.timing.clone(), stopping);
        leases.insert(id, Arc::clone(&lease));
        let running = Running::new(&self.running);
        let task = Arc::clone(&lease).run(Arc::clone(&self.elector));
        tokio::spawn(async move {
            task.await;
            drop(running);
        });
        Ok(lease)
    }

    /// The lease with this id in `election`.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn get(&self, election: &ElectionName, id: &str) -> Result<Arc<Lease>, ApiError> {
        let lease = self.lock().get(id).filter(|lease| lease.election == *election).map(Arc::clone);
        lease.ok_or_else(|| {
            ApiError::new(
                StatusCode::NOT_FOUND,
                "unknown_lease",
                format!("there is no such lease of {election}: it is over, or this sidecar was restarted"),
                "the lease id that a campaign at this sidecar has returned; campaign again with a new nonce",
            )
        })
    }

    /// Grants nothing more from now on, and withdraws all candidates.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until all leases are over and their leaderships have been given back.
    pub(super) async fn all_over(&self) {
        // The sender is a field of this.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// The number of leases with a grant that has not ended, and the time until the last of them has.
    pub(super) fn granted(&self) -> (usize, Duration) {
        let leases = self.lock();
        let now = self.now();
        let ends: Vec<_> = leases.values().filter_map(|lease| lease.granted_until()).collect();
        let last = ends.iter().max().map_or(Duration::ZERO, |last| last.since(now));
        (ends.iter().filter(|end| **end > now).count(), last)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Lease>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets leases that have been over for long, and the oldest if there are many.
fn forget_old(leases: &mut HashMap<String, Arc<Lease>>, now: BootInstant) {
    leases.retain(|_, lease| lease.over_since().is_none_or(|since| now.since(since) < REMEMBERED_FOR));
    let mut over: Vec<_> =
        leases.iter().filter_map(|(id, lease)| Some((lease.over_since()?, id.clone()))).collect();
    over.sort_unstable();
    let excess = over.len().saturating_sub(MAX_REMEMBERED);
    for (_, id) in over.drain(..excess) {
        leases.remove(&id);
    }
}

/// 192 random bits of the operating system.
fn random_id() -> Result<String, ApiError> {
    let mut bytes = [0; ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        let message = format!("the operating system has no random numbers: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, "try again").retry_after(1)
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Counts a task until it is dropped.
struct Running(watch::Sender<usize>);

impl Running {
    fn new(running: &watch::Sender<usize>) -> Self {
        running.send_modify(|running| *running += 1);
        Self(running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}
