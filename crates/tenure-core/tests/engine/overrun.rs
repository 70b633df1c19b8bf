//! Work that runs past its deadline, and how it is reported.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenure_core::{Config, Elector, OnOverrun, SimClock, StoreElector, memory::MemoryStore};

use crate::host::{Host, TTL, sleep};

/// Blocks the only worker of the runtime until `condition` holds.
fn block_until(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::yield_now();
    }
}

/// Hazard G4: an overrun hook that panics does not stop the watchdog.
#[test]
fn the_watchdog_survives_a_hook_that_panics() {
    let overruns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&overruns);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let backend = MemoryStore::new().backend();
        let link = backend.link().clone();
        let config = Config::new().with_ttl(Duration::from_secs(1)).with_on_overrun(OnOverrun::Hook(
            Arc::new(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                panic!("a bug in the hook");
            }),
        ));
        let elector = StoreElector::new(Arc::new(backend), config).unwrap();
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let blocked =
            async { block_until("the overrun is reported", || overruns.load(Ordering::SeqCst) == 1) };
        leadership.run(blocked).await.unwrap();
        link.heal();
        drop(leadership);

        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let token = leadership.cancellation_token();
        let blocked = async { block_until("the work is cancelled", || token.is_cancelled()) };
        leadership.run(blocked).await.unwrap();
    });
}

/// Work that is not polled has no effect, and is no overrun.
#[tokio::test(start_paused = true)]
async fn work_that_is_not_polled_is_no_overrun() {
    let store = MemoryStore::new();
    let overruns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&overruns);
    let host = Host::with(&store, "a", SimClock::new(), |c| {
        c.with_on_overrun(OnOverrun::Hook(Arc::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        })))
    });
    let leadership = host.lead().await;
    let mut running = std::pin::pin!(leadership.run(std::future::pending::<()>()));
    assert!(futures::poll!(running.as_mut()).is_pending());
    host.link.cut();
    sleep(TTL * 2).await;
    running.await.unwrap_err();
    assert_eq!(overruns.load(Ordering::SeqCst), 0);
}
