//! A simulated host: an elector with its own clock and its own network link to the store.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tenure_core::{
    CandidateId, Config, Elector, Leadership, Lost, SimClock, StoreElector,
    memory::{Link, MemoryBackend, MemoryStore},
    spi::Backend,
};

/// TTL 10 s, drift 10 %, grace period 1 s: the deadline is 9 s after the last confirmed
/// heartbeat was sent, and work is cancelled after 8 s.
pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const UNTIL_STOP: Duration = Duration::from_secs(8);
pub(crate) const UNTIL_DEADLINE: Duration = Duration::from_secs(9);

pub(crate) struct Host {
    pub(crate) elector: Arc<StoreElector>,
    pub(crate) link: Link,
    pub(crate) clock: SimClock,
}

impl Host {
    pub(crate) fn new(store: &MemoryStore, id: &str) -> Self {
        Self::with(store, id, SimClock::new(), |config| config)
    }

    pub(crate) fn with(
        store: &MemoryStore,
        id: &str,
        clock: SimClock,
        settings: impl FnOnce(Config) -> Config,
    ) -> Self {
        Self::with_backend(store, id, clock, settings, |backend| Arc::new(backend))
    }

    /// A host whose backend is wrapped by `wrap`.
    pub(crate) fn with_backend(
        store: &MemoryStore,
        id: &str,
        clock: SimClock,
        settings: impl FnOnce(Config) -> Config,
        wrap: impl FnOnce(MemoryBackend) -> Arc<dyn Backend>,
    ) -> Self {
        let backend = store.backend();
        let link = backend.link().clone();
        let config = settings(Config::new().with_ttl(TTL).with_id(CandidateId::new(id).unwrap()));
        let elector = StoreElector::with_clock(wrap(backend), config, Arc::new(clock.clone())).unwrap();
        Self { elector: Arc::new(elector), link, clock }
    }

    pub(crate) async fn lead(&self) -> Leadership {
        within(Duration::from_secs(60), self.elector.campaign("e")).await.unwrap()
    }

    /// Starts a campaign and returns once its entry exists.
    pub(crate) async fn enter_queue(&self, store: &MemoryStore) -> tokio::task::JoinHandle<Leadership> {
        let before = store.entries("e").len();
        let elector = Arc::clone(&self.elector);
        let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
        until("the candidate has entered", || store.entries("e").len() > before).await;
        campaign
    }
}

/// Starts work that never ends by itself. Returns whether it is running, and its task.
pub(crate) fn endless_work(
    leadership: &Leadership,
) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Result<(), Lost>>) {
    struct Working(Arc<AtomicBool>);
    impl Drop for Working {
        fn drop(&mut self) {
            self.0.store(false, SeqCst);
        }
    }
    let is_running = Arc::new(AtomicBool::new(true));
    let (working, handle) = (Working(Arc::clone(&is_running)), leadership.handle());
    let work = tokio::spawn(async move {
        handle
            .run(async move {
                let _working = working;
                std::future::pending::<()>().await;
            })
            .await
    });
    (is_running, work)
}

/// Waits for a condition, for at most 10 simulated minutes.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(600), poll).await.is_err() {
        panic!("never: {what}");
    }
}

/// The output of `future`. Panics unless it completes within this simulated time.
pub(crate) async fn within<T>(time: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(time, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("not within {time:?}"),
    }
}

/// Lets simulated time pass.
pub(crate) async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Waits until the store has no entry and no session.
pub(crate) async fn assert_nothing_left(store: &MemoryStore) {
    until("no entry and no session is left", || store.entry_count() == 0 && store.sessions().is_empty())
        .await;
}
