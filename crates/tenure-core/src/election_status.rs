//! How an election stands, kept at hand for health endpoints.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{Candidate, CandidateId, ElectionName, Elector, Error, LeadershipHandle, Status};

/// How often the queue is looked at, where nothing else is asked for.
const REFRESH: Duration = Duration::from_secs(10);
/// The longest wait before the queue is looked at after the leader has changed, so that not all candidates look at once.
const SPREAD: Duration = Duration::from_secs(1);

/// A status handle: how an election stands, kept up to date by a task, for health endpoints and for requests that have
/// to find the leader. Cheap to clone, and to ask.
///
/// It watches the leader, and looks at the queue every ten seconds. When the store refuses, nothing is known until it does not any more. It keeps its elector alive; the task ends when all its
/// clones are dropped or the elector is closed.
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
/// assert_eq!(now.leader.map(|leader| leader.id), Some(elector.candidate().to_string()));
/// # leadership.resign().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StatusHandle {
    elector: Arc<dyn Elector>,
    election: ElectionName,
    seen: watch::Receiver<Seen>,
}

/// How an election stands, as far as this process knows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ElectionStatus {
    /// Which election.
    pub election: ElectionName,
    /// This elector's own leadership, while it may be assumed: by the clock, not by hearsay.
    pub leadership: Option<LeadershipHandle>,
    /// Whom this elector's candidate follows, or that it leads itself; `None` while nobody leads, or nothing is known.
    pub leader: Option<Candidate>,
    /// For how long that leader has been seen to lead, or nobody has.
    pub seen_for: Duration,
    /// Whether the store has said who leads, at least once.
    pub known: bool,
    /// The place of this elector's candidate in the queue, 1 for the leader, as last looked at.
    pub queue_position: Option<usize>,
    /// How many candidates there are, as last looked at.
    pub candidates: usize,
    /// How the elector and its store get on.
    pub store: Status,
}

#[derive(Clone, Debug)]
struct Seen {
    leader: Option<Candidate>,
    since: Instant,
    known: bool,
    queue_position: Option<usize>,
    candidates: usize,
}

impl StatusHandle {
    /// Watches `election`. Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// An illegal name.
    pub fn new(elector: Arc<dyn Elector>, election: &str) -> Result<Self, Error> {
        Self::with_refresh(elector, election, REFRESH)
    }

    /// The same, looking at the queue every `refresh` (at least 100 ms): each look reads all its entries.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_refresh(elector: Arc<dyn Elector>, election: &str, refresh: Duration) -> Result<Self, Error> {
        let election = ElectionName::new(election)?;
        let seen =
            Seen { leader: None, since: Instant::now(), known: false, queue_position: None, candidates: 0 };
        let (sender, seen) = watch::channel(seen);
        let refresh = refresh.max(Duration::from_millis(100));
        tokio::spawn(follow(Arc::clone(&elector), election.clone(), sender, refresh));
        Ok(Self { elector, election, seen })
    }

    /// Which election.
    pub fn election(&self) -> &ElectionName {
        &self.election
    }

    /// Who this elector's candidate is.
    pub fn candidate(&self) -> CandidateId {
        self.elector.candidate()
    }

    /// How the election stands. Asks no store.
    pub fn get(&self) -> ElectionStatus {
        let Seen { leader, since, known, queue_position, candidates } = self.seen.borrow().clone();
        ElectionStatus {
            leadership: self.leadership(),
            election: self.election.clone(),
            seen_for: since.elapsed(),
            leader,
            known,
            queue_position,
            candidates,
            store: self.elector.status(),
        }
    }

    /// This elector's own leadership, while it may be assumed. Compares the clock; asks no store.
    pub fn leadership(&self) -> Option<LeadershipHandle> {
        self.elector.leadership(self.election.as_str())
    }

    /// Waits for a change of the leader or of the queue since the last call; returns `false` when the elector has been closed,
    /// after which there is none.
    ///
    /// # Cancellation safety
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) -> bool {
        self.seen.changed().await.is_ok()
    }
}

async fn follow(
    elector: Arc<dyn Elector>,
    election: ElectionName,
    seen: watch::Sender<Seen>,
    refresh: Duration,
) {
    let name = election.as_str();
    let own = elector.candidate();
    let mut leaders = elector.observe(name);
    let mut ticks = interval_at(Instant::now() + spread(SPREAD.min(refresh)), refresh);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    let mut looking: Option<BoxFuture<'_, Result<Vec<Candidate>, Error>>> = None;
    loop {
        tokio::select! {
            () = seen.closed() => return,
            next = leaders.next() => match next {
                Some(Ok(leader)) => {
                    seen.send_modify(|seen| {
                        *seen = Seen { leader, since: Instant::now(), known: true, ..seen.clone() };
                    });
                    ticks.reset_after(spread(SPREAD.min(refresh)));
                }
                // The elector's status says why. What was seen may be long over.
                Some(Err(_)) => {
                    failed = true;
                    seen.send_modify(|seen| {
                        *seen = Seen { leader: None, since: Instant::now(), known: false, queue_position: None, candidates: 0 };
                    });
                }
                None if failed => {
                    failed = false;
                    let pause = tokio::time::sleep(refresh);
                    tokio::select! {
                        () = seen.closed() => return,
                        () = pause => leaders = elector.observe(name),
                    }
                }
                None => return,
            },
            _ = ticks.tick(), if looking.is_none() => looking = Some(elector.candidates(name)),
            found = async { match looking.as_mut() {
                Some(looking) => looking.await,
                None => std::future::pending().await,
            } } => {
                looking = None;
                let Ok(found) = found else { continue };
                let place = found.iter().position(|candidate| candidate.id == own.as_str()).map(|at| at + 1);
                seen.send_if_modified(|seen| {
                    let changed = (seen.queue_position, seen.candidates) != (place, found.len());
                    (seen.queue_position, seen.candidates) = (place, found.len());
                    changed
                });
            }
        }
    }
}

/// A time up to `most`, at random.
fn spread(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}
