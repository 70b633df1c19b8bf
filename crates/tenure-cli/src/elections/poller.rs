//! Polls all elections whose names begin with a prefix.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tenure::{Connection, Elector};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep},
};

use super::{History, Limits, Outage, Reading, Snapshot, read};
use crate::{exit::error_text, waiting};

/// The pause between two readings. It grows with the time that a reading takes, so that a large store is not read all the time.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(10);
const PAUSE_PER_READING: u32 = 4;
/// How often a reading is checked for progress.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long requests may fail before that is an outage.
const FAILING: Duration = Duration::from_secs(1);
/// How long a request may take before that is an outage.
const SILENCE: Duration = Duration::from_secs(3);
/// After this time without an answer, a reading begins again.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Polls elections in the background until it is dropped, with all its clones.
#[derive(Clone, Debug)]
pub(crate) struct Poller {
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Poller {
    /// Reads the first elections whose names begin with `prefix` about every second, after `first` if they were read already.
    /// Changes between two readings are seen as one. Must be called within a tokio runtime.
    pub(crate) fn start(
        elector: Arc<dyn Elector>,
        prefix: String,
        limits: Limits,
        first: Option<Reading>,
    ) -> Self {
        let mut history = History::new(limits.elections);
        let read_at = first.map(|first| {
            let now = SystemTime::now();
            history.add(first, Instant::now(), now);
            now
        });
        let (sender, snapshots) = watch::channel(Arc::new(history.snapshot(read_at)));
        tokio::spawn(async move {
            let mut task = PollTask { elector, prefix, limits, history, read_at };
            tokio::select! {
                () = sender.closed() => {}
                () = task.run(&sender) => {}
            }
        });
        Self { snapshots }
    }

    /// The latest snapshot.
    pub(crate) fn latest(&mut self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow_and_update())
    }

    /// Waits for a snapshot that [`latest`](Self::latest) has not returned yet. Returns `false` if there will be none.
    ///
    /// No snapshot is lost when the future is dropped.
    pub(crate) async fn changed(&mut self) -> bool {
        self.snapshots.changed().await.is_ok()
    }
}

struct PollTask {
    elector: Arc<dyn Elector>,
    prefix: String,
    limits: Limits,
    history: History,
    /// When the last reading ended.
    read_at: Option<SystemTime>,
}

impl PollTask {
    async fn run(&mut self, snapshots: &watch::Sender<Arc<Snapshot>>) {
        let mut pause = if self.read_at.is_some() { MIN_PAUSE } else { Duration::ZERO };
        let mut outage: Option<Outage> = None;
        loop {
            sleep(pause).await;
            let began = Instant::now();
            let report = |new: Outage| {
                // It began with the first failure.
                let since = outage.as_ref().map_or(new.since, |outage| outage.since);
                let new = Some(Outage { since, ..new });
                if outage != new {
                    outage = new;
                    let snapshot = self.history.snapshot(self.read_at);
                    snapshots.send_replace(Arc::new(Snapshot { outage: outage.clone(), ..snapshot }));
                }
            };
            if let Some(reading) = read_or_report(&self.elector, &self.prefix, self.limits, report).await {
                outage = None;
                let now = SystemTime::now();
                self.read_at = Some(now);
                self.history.add(reading, Instant::now(), now);
                snapshots.send_replace(Arc::new(self.history.snapshot(self.read_at)));
            }
            pause = (began.elapsed() * PAUSE_PER_READING).clamp(MIN_PAUSE, MAX_PAUSE);
        }
    }
}

/// Reads once. Reports it when the store does not answer meanwhile, and returns `None` after an error or too long a silence.
async fn read_or_report(
    elector: &Arc<dyn Elector>,
    prefix: &str,
    limits: Limits,
    mut report: impl FnMut(Outage),
) -> Option<Reading> {
    let last_answer = Mutex::new(Instant::now());
    let lock = || last_answer.lock().unwrap_or_else(PoisonError::into_inner);
    let reading = read(elector, prefix, limits, || *lock() = Instant::now());
    tokio::pin!(reading);
    let mut ticks = interval(POLL_INTERVAL);
    loop {
        tokio::select! {
            biased;
            result = &mut reading => match result {
                Ok(reading) => return Some(reading),
                Err(error) => {
                    let since = *lock();
                    report(Outage { since, error: Some(error_text(&error.into())) });
                    return None;
                }
            },
            _ = ticks.tick() => {
                let since = *lock();
                let is_failing = elector.status().connection == Connection::Retrying;
                if since.elapsed() >= if is_failing { FAILING } else { SILENCE } {
                    report(Outage { since, error: waiting::last_error(&**elector) });
                }
                if since.elapsed() >= MAX_SILENCE {
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tenure::Config;
    use tenure_core::memory::MemoryStore;
    use tenure_testkit::simulated;
    use tokio::time::timeout;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Polls elections from now on.
    async fn poll(elector: &Arc<dyn Elector>, prefix: &str, limit: usize) -> Poller {
        let limits = Limits::of(limit);
        let first = read(elector, prefix, limits, || {}).await.unwrap();
        Poller::start(Arc::clone(elector), prefix.to_owned(), limits, Some(first))
    }

    /// Waits for a snapshot of which something holds.
    async fn snapshot_with(poller: &mut Poller, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = async {
            loop {
                let snapshot = poller.latest();
                if holds(&snapshot) {
                    return snapshot;
                }
                assert!(poller.changed().await);
            }
        };
        timeout(MINUTE, found).await.expect("a snapshot within a minute")
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_seen_within_seconds() {
        let store = MemoryStore::new();
        let elector = || simulated::elector(store.backend(), Config::new()).unwrap();
        let (first, second, observer) = (elector(), elector(), Arc::new(elector()) as Arc<dyn Elector>);
        let leadership = first.campaign("billing-1").await.unwrap();
        let _second = second.campaign("billing-2").await.unwrap();
        let _other = second.campaign("reports").await.unwrap();
        let mut poller = poll(&observer, "billing", 1).await;
        let begin = poller.latest();
        assert_eq!((begin.elections.len(), begin.total, begin.is_truncated), (1, 2, true));
        assert!(!begin.elections[0].start_observed && begin.changes.is_empty());
        let resigned = Instant::now();
        leadership.resign().await.unwrap();
        let end = snapshot_with(&mut poller, |snapshot| snapshot.total == 1).await;
        assert!(resigned.elapsed() <= Duration::from_secs(2), "{:?}", resigned.elapsed());
        let changes: Vec<_> = end.changes.iter().map(|change| change.election.as_str()).collect();
        assert!(changes.contains(&"billing-1") && !changes.contains(&"reports"), "{changes:?}");
    }

    /// An outage makes few snapshots, however long it lasts, and what was read last stays.
    #[tokio::test(start_paused = true)]
    async fn an_outage_is_reported_and_ends() {
        let store = MemoryStore::new();
        let leader = simulated::elector(store.backend(), Config::new()).unwrap();
        let _leadership = leader.campaign("billing").await.unwrap();
        let backend = store.backend();
        let link = backend.link().clone();
        let observer: Arc<dyn Elector> = Arc::new(simulated::elector(backend, Config::new()).unwrap());
        let mut poller = poll(&observer, "", 10).await;
        assert_eq!(poller.latest().outage, None);
        let began = Instant::now();
        link.cut();
        let snapshot = snapshot_with(&mut poller, |snapshot| snapshot.outage.is_some()).await;
        assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(snapshot.elections.len(), 1);
        let since = snapshot.outage.as_ref().unwrap().since;
        let mut count = 0;
        let counting = async {
            while poller.changed().await {
                let snapshot = poller.latest();
                assert_eq!(snapshot.outage.as_ref().map(|outage| outage.since), Some(since));
                count += 1;
            }
        };
        assert!(timeout(10 * MINUTE, counting).await.is_err(), "it goes on");
        assert!(count <= 3, "{count}");
        link.heal();
        let snapshot = snapshot_with(&mut poller, |snapshot| snapshot.outage.is_none()).await;
        assert_eq!((snapshot.elections.len(), snapshot.changes.len()), (1, 0));
    }

    /// Nothing is known before the first answer, in particular not that nobody leads.
    #[tokio::test(start_paused = true)]
    async fn an_outage_can_begin_before_the_first_reading() {
        let store = MemoryStore::new();
        let leader = simulated::elector(store.backend(), Config::new()).unwrap();
        let _leadership = leader.campaign("billing").await.unwrap();
        let backend = store.backend();
        let link = backend.link().clone();
        link.cut();
        let observer: Arc<dyn Elector> = Arc::new(simulated::elector(backend, Config::new()).unwrap());
        let mut poller = Poller::start(observer, String::new(), Limits::of(10), None);
        assert_eq!(poller.latest().read_at, None);
        let snapshot = snapshot_with(&mut poller, |snapshot| snapshot.outage.is_some()).await;
        assert_eq!(snapshot.read_at, None);
        link.heal();
        let snapshot = snapshot_with(&mut poller, |snapshot| snapshot.read_at.is_some()).await;
        assert_eq!((snapshot.elections.len(), snapshot.outage.clone()), (1, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_when_nobody_reads_any_more() {
        let store = MemoryStore::new();
        let observer: Arc<dyn Elector> =
            Arc::new(simulated::elector(store.backend(), Config::new()).unwrap());
        let poller = poll(&observer, "", 10).await;
        let clone = poller.clone();
        drop(poller);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(Arc::strong_count(&observer), 2, "a clone still reads");
        drop(clone);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(Arc::strong_count(&observer), 1);
    }
}
