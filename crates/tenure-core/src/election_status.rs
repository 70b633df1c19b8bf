//! The state of an election, cached for health endpoints.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{Candidate, CandidateId, ElectionName, Elector, Error, LeadershipHandle, Status, timers::Timers};

/// The default interval at which the queue is read.
const DEFAULT_REFRESH: Duration = Duration::from_secs(10);
/// The longest random delay before the queue is read after a change of leader, so that not all candidates read it at
/// the same time.
const MAX_REFRESH_DELAY: Duration = Duration::from_secs(1);

/// The state of an election, for health endpoints and for request handlers that have to find the leader.
///
/// A background task observes the leader and reads the queue every 10 s. After a permanent store error `known` is false
/// until the store answers again. Cloning the handle and reading the state are cheap. The handle keeps its elector alive; the
/// task ends when all clones are dropped or the elector is closed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::sync::Arc;
/// use tenure_core::{Config, Elector, StatusHandle, StoreElector, memory::MemoryStore};
///
/// let elector = Arc::new(StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new())?);
/// let mut status = StatusHandle::new(elector.clone(), "billing")?;
/// let leadership = elector.campaign("billing").await?;
/// while status.get().leader.is_none() {
///     status.changed().await;
/// }
/// let now = status.get();
/// assert!(now.leadership.is_some());
/// assert_eq!(now.leader.map(|leader| leader.id), Some(elector.candidate_id().to_string()));
/// # leadership.resign().await
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "the background task ends when the last handle is dropped"]
pub struct StatusHandle {
    elector: Arc<dyn Elector>,
    election: ElectionName,
    state: watch::Receiver<ElectionState>,
    timers: Timers,
}

/// The state of an election as this process knows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ElectionStatus {
    /// The election.
    pub election: ElectionName,
    /// This elector's own leadership, while it may be assumed according to the clock.
    pub leadership: Option<LeadershipHandle>,
    /// The leader, possibly this elector's own candidate. `None` while there is no leader, or nothing is known.
    pub leader: Option<Candidate>,
    /// The time for which this leader, or the lack of one, has been observed.
    pub seen_for: Duration,
    /// Whether the leader is known: the store has answered at least once, and has not refused permanently since.
    pub known: bool,
    /// The position of this elector's candidate in the queue when it was last read. The leader has position 1.
    pub queue_position: Option<usize>,
    /// The number of candidates when the queue was last read.
    pub candidates: usize,
    /// The state of the connection to the store.
    pub store: Status,
}

/// What the background task has read from the store.
#[derive(Clone, Debug)]
struct ElectionState {
    leader: Option<Candidate>,
    since: Instant,
    known: bool,
    queue_position: Option<usize>,
    candidates: usize,
}

impl ElectionState {
    fn unknown() -> Self {
        Self { leader: None, since: Instant::now(), known: false, queue_position: None, candidates: 0 }
    }
}

impl StatusHandle {
    /// Starts to observe `election`, and reads the queue every 10 s.
    ///
    /// The background task runs on the elector's [engine](Elector::engine). For an elector without one, this function must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When the name is illegal.
    pub fn new(elector: Arc<dyn Elector>, election: &str) -> Result<Self, Error> {
        Self::with_refresh(elector, election, DEFAULT_REFRESH)
    }

    /// Starts to observe `election`, and reads the queue every `refresh`, at least 100 ms. Each read returns all entries of the
    /// election.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_refresh(elector: Arc<dyn Elector>, election: &str, refresh: Duration) -> Result<Self, Error> {
        let election = ElectionName::new(election)?;
        let (sender, state) = watch::channel(ElectionState::unknown());
        let refresh = refresh.max(Duration::from_millis(100));
        let timers = Timers::of(&elector);
        timers.spawn(refresh_state(Arc::clone(&elector), election.clone(), sender, refresh));
        Ok(Self { elector, election, state, timers })
    }

    /// The election.
    pub fn election(&self) -> &ElectionName {
        &self.election
    }

    /// The id of this elector's candidate.
    pub fn candidate_id(&self) -> CandidateId {
        self.elector.candidate_id()
    }

    /// The current state. Sends no request to the store.
    pub fn get(&self) -> ElectionStatus {
        let ElectionState { leader, since, known, queue_position, candidates } = self.state.borrow().clone();
        ElectionStatus {
            leadership: self.leadership(),
            election: self.election.clone(),
            seen_for: self.timers.since(since),
            leader,
            known,
            queue_position,
            candidates,
            store: self.elector.status(),
        }
    }

    /// This elector's own leadership, while it may be assumed. Compares the clock; sends no request to the store.
    pub fn leadership(&self) -> Option<LeadershipHandle> {
        self.elector.leadership(self.election.as_str())
    }

    /// Waits for a change of the leader or of the queue since the last call. Returns `false` when the elector was closed:
    /// there are no changes after that.
    ///
    /// # Cancellation safety
    /// No change is lost when the future is dropped.
    pub async fn changed(&mut self) -> bool {
        self.timers.relayed(self.state.changed()).await.is_ok()
    }
}

async fn refresh_state(
    elector: Arc<dyn Elector>,
    election: ElectionName,
    state: watch::Sender<ElectionState>,
    refresh: Duration,
) {
    let name = election.as_str();
    let own_id = elector.candidate_id();
    let mut leaders = elector.observe(name);
    let mut ticks = interval_at(Instant::now() + jittered(MAX_REFRESH_DELAY.min(refresh)), refresh);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    let mut queue_request: Option<BoxFuture<'_, Result<Vec<Candidate>, Error>>> = None;
    loop {
        tokio::select! {
            () = state.closed() => return,
            next = leaders.next() => match next {
                Some(Ok(leader)) => {
                    state.send_modify(|state| {
                        *state = ElectionState { leader, since: Instant::now(), known: true, ..state.clone() };
                    });
                    ticks.reset_after(jittered(MAX_REFRESH_DELAY.min(refresh)));
                }
                // The error is in the elector's status. The last known state may be outdated.
                Some(Err(_)) => {
                    failed = true;
                    state.send_modify(|state| *state = ElectionState::unknown());
                }
                None if failed => {
                    failed = false;
                    let pause = tokio::time::sleep(refresh);
                    tokio::select! {
                        () = state.closed() => return,
                        () = pause => leaders = elector.observe(name),
                    }
                }
                None => return,
            },
            _ = ticks.tick(), if queue_request.is_none() => queue_request = Some(elector.candidates(name)),
            queue = async { match queue_request.as_mut() {
                Some(request) => request.await,
                None => std::future::pending().await,
            } } => {
                queue_request = None;
                let Ok(queue) = queue else { continue };
                let position = queue.iter().position(|candidate| candidate.id == own_id.as_str()).map(|at| at + 1);
                state.send_if_modified(|state| {
                    let changed = (state.queue_position, state.candidates) != (position, queue.len());
                    (state.queue_position, state.candidates) = (position, queue.len());
                    changed
                });
            }
        }
    }
}

/// A random duration up to `max`.
fn jittered(max: Duration) -> Duration {
    max.mul_f64(fastrand::f64())
}
