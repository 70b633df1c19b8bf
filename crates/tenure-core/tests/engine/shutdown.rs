//! A shutdown is bounded in time, with any TTL and in any outage, and reports whether it was confirmed.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tenure_core::{
    Config, Elector, ElectorExt, Error, Hierarchy, LossReason, OnOverrun, SimClock, StoreElector,
    memory::MemoryStore,
};

use crate::host::{Host, TTL, assert_nothing_left, sleep, until, within};

const SHUTDOWN_TIMEOUT: Duration = Config::DEFAULT_SHUTDOWN_TIMEOUT;
const SLACK: Duration = Duration::from_millis(10);

fn host(store: &MemoryStore, ttl: Duration) -> Host {
    Host::with(store, "a", SimClock::new(), |config| config.with_ttl(ttl))
}

/// Hazard G30, case 9: while the store is down, a resignation takes at most 5 s, and reports that it was not confirmed.
#[tokio::test(start_paused = true)]
async fn a_resignation_in_an_outage_is_bounded() {
    for ttl in [10, 60].map(Duration::from_secs) {
        let store = MemoryStore::new();
        let host = host(&store, ttl);
        let leadership = host.lead().await;
        host.link.cut();
        let error = within(SHUTDOWN_TIMEOUT + SLACK, leadership.resign()).await.unwrap_err();
        assert!(matches!(error, Error::NotConfirmed { waited, .. } if waited == SHUTDOWN_TIMEOUT), "{error}");
        assert!(
            error.to_string().starts_with("the resignation from e was not confirmed within 5s"),
            "{error}"
        );
        // The resignation continues in the background.
        host.link.heal();
        until("the entry is gone", || store.entries("e").is_empty()).await;
    }
}

/// Hazard G30, case 9: while the store is down, `close` takes at most 5 s.
#[tokio::test(start_paused = true)]
async fn closing_in_an_outage_is_bounded() {
    for ttl in [10, 60].map(Duration::from_secs) {
        let store = MemoryStore::new();
        let host = host(&store, ttl);
        let leadership = host.lead().await;
        host.link.cut();
        within(SHUTDOWN_TIMEOUT + SLACK, host.elector.close()).await;
        assert_eq!(leadership.loss(), Some(LossReason::Closed));
        drop(leadership);
        host.link.heal();
        assert_nothing_left(&store).await;
    }
}

/// Hazard G30: the shutdown timeout can be configured.
#[tokio::test(start_paused = true)]
async fn the_bound_of_a_shutdown_can_be_set() {
    let store = MemoryStore::new();
    let second = Duration::from_secs(1);
    let host = Host::with(&store, "a", SimClock::new(), |config| config.with_shutdown_timeout(second));
    let leadership = host.lead().await;
    host.link.cut();
    assert!(within(second + SLACK, leadership.resign()).await.is_err());
    within(second + SLACK, host.elector.close()).await;
}

/// Hazard G30, case 9: a service whose work ignores cancellation, while the store is up or down.
#[tokio::test(start_paused = true)]
async fn the_shutdown_of_a_service_is_bounded() {
    for (ttl, outage) in [(10, false), (10, true), (60, false), (60, true)] {
        let store = MemoryStore::new();
        let host = host(&store, Duration::from_secs(ttl));
        let is_working = AtomicBool::new(false);
        let shutdown = async {
            until("it works", || is_working.load(SeqCst)).await;
            if outage {
                host.link.cut();
            }
        };
        let from = tokio::time::Instant::now();
        host.elector
            .run_while_leader("e", shutdown, |_| {
                is_working.store(true, SeqCst);
                std::future::pending()
            })
            .await
            .unwrap();
        assert!(from.elapsed() <= SHUTDOWN_TIMEOUT + SLACK * 2, "{:?} at a TTL of {ttl} s", from.elapsed());
        assert_eq!(store.entries("e").is_empty(), !outage);
        within(SHUTDOWN_TIMEOUT + SLACK, host.elector.close()).await;
    }
}

/// Hazard G29, case 8: a waiting candidate has withdrawn when the shutdown is over, and its successor can lead at once.
#[tokio::test(start_paused = true)]
async fn a_shutdown_while_waiting_leaves_no_entry() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.lead().await;
    let entered = until("it has entered", || store.entries("e").len() == 2);
    b.elector.run_while_leader("e", entered, |_| async { panic!("it never leads") }).await.unwrap();
    assert_eq!(store.entries("e").len(), 1, "its entry still exists");
    leadership.resign().await.unwrap();
    assert!(within(SLACK, a.lead()).await.is_leader());
}

/// Hazard G29: a candidate that waits for another campaign of the same elector has no entry to withdraw.
#[tokio::test(start_paused = true)]
async fn a_shutdown_while_waiting_behind_a_sibling_is_over_at_once() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let soon = sleep(Duration::from_secs(1));
    let running = host.elector.run_while_leader("e", soon, |_| async { panic!("it never leads") });
    within(Duration::from_secs(1) + SLACK, running).await.unwrap();
    assert!(leadership.is_leader());
}

/// Hazard G29: a campaign that is cancelled just as it wins resigns.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_at_any_moment_has_left() {
    for polls in 0..40 {
        let store = MemoryStore::new();
        let host = Host::new(&store, "a");
        let cancel = async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        };
        let outcome = within(TTL, host.elector.campaign_until("e", Box::pin(cancel))).await.unwrap();
        match outcome {
            Some(leadership) => assert!(leadership.is_leader()),
            None => assert!(store.entries("e").is_empty(), "its entry still exists after {polls} polls"),
        }
    }
}

/// Hazard G29: a candidate of a hierarchy withdraws from both tiers.
#[tokio::test(start_paused = true)]
async fn a_shutdown_of_a_hierarchy_leaves_both_tiers() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _top = a.lead().await;
    let group = Hierarchy::new(Arc::clone(&b.elector) as Arc<dyn Elector>, "g").unwrap();
    let entered = until("it has entered at the top", || store.entries("e").len() == 2);
    within(TTL, group.run_while_leader("e", entered, |_| async { panic!("it never leads") })).await.unwrap();
    assert_eq!((store.entries("e").len(), store.entries("e.g").len()), (1, 0));
}

/// Hazard G29, case 8: the shutdown of a waiting candidate is bounded in an outage too.
#[tokio::test(start_paused = true)]
async fn a_shutdown_while_waiting_in_an_outage_is_bounded() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _leadership = a.lead().await;
    let shutdown = async {
        until("it has entered", || store.entries("e").len() == 2).await;
        b.link.cut();
    };
    let running = b.elector.run_while_leader("e", shutdown, |_| async { panic!("it never leads") });
    within(SHUTDOWN_TIMEOUT + Duration::from_secs(1), running).await.unwrap();
}

/// Hazard G28, case 11: an engine whose runtime was dropped confirms nothing, and no call waits for it.
#[test]
fn a_resignation_under_a_runtime_that_is_gone_is_not_confirmed() {
    let store = MemoryStore::new();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (elector, held, resigning) = runtime.block_on(async {
        let host = Host::new(&store, "a");
        let held = host.elector.campaign("held").await.unwrap();
        let resigned = host.lead().await;
        // The resignation is pending when the runtime is dropped.
        host.link.cut();
        let mut resigning = Box::pin(resigned.resign());
        assert!(futures::poll!(resigning.as_mut()).is_pending());
        (Arc::clone(&host.elector), held, resigning)
    });
    drop(runtime);
    let outcome = resigning.now_or_never().expect("there is no task to wait for");
    assert!(matches!(outcome, Err(Error::TaskEnded(_))), "{outcome:?}");
    assert!(!held.is_leader());
    let outcome = held.resign().now_or_never().expect("there is no task to wait for");
    assert!(outcome.is_err(), "{outcome:?}");
    let outcome = elector.campaign("e").now_or_never().expect("there is no task to wait for");
    assert!(matches!(outcome, Err(Error::TaskEnded(_))), "{outcome:?}");
}

/// Drops the runtime of a first campaign at each point between two polls of its tasks. Returns whether a session is left then
/// that no task keeps alive.
pub(crate) fn leaves_an_orphaned_session() -> bool {
    (0..30).any(|polls| {
        let store = MemoryStore::new();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // The caller of `campaign` is polled after every single task.
        let runtime = runtime.enable_time().start_paused(true).event_interval(1).build().unwrap();
        let elector = runtime.block_on(async {
            let elector = Arc::clone(&Host::new(&store, "a").elector);
            let mut campaign = elector.campaign("e");
            for _ in 0..polls {
                if futures::poll!(campaign.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(campaign);
            elector
        });
        drop(runtime);
        elector.status().session.is_some()
    })
}

/// Hazard G28, case 5: an engine whose runtime ends before one of its tasks was polled leaves no orphaned session.
#[test]
fn a_runtime_that_ends_before_a_task_is_polled_leaves_no_session() {
    assert!(!leaves_an_orphaned_session());
}

/// Case 12: work that awaits its own resignation, or `close` of its elector, does not wait for itself.
#[tokio::test(start_paused = true)]
async fn work_does_not_wait_for_itself() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let handle = leadership.handle();
    let outcome = within(SLACK, handle.run(leadership.resign())).await.unwrap();
    assert!(matches!(outcome, Err(Error::InsideWork)), "{outcome:?}");
    until("the entry is gone", || store.entries("e").is_empty()).await;

    let leadership = host.lead().await;
    within(SLACK, leadership.run(host.elector.close())).await.unwrap();
    assert_eq!(within(SLACK, leadership.lost()).await, LossReason::Closed);
    drop(leadership);
    within(SLACK, host.elector.close()).await;
    assert_nothing_left(&store).await;
}

/// Case 12: work that panics counts as failed.
#[tokio::test(start_paused = true)]
async fn the_runner_survives_work_that_panics() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let terms = AtomicUsize::new(0);
    let shutdown = until("it works again", || terms.load(SeqCst) == 3);
    let running = host.elector.run_while_leader("e", shutdown, |_| {
        assert!(terms.fetch_add(1, SeqCst) != 0, "a bug before the work");
        async {
            assert!(terms.load(SeqCst) > 2, "a bug in the work");
            std::future::pending().await
        }
    });
    let outcome = AssertUnwindSafe(within(TTL, running)).catch_unwind().await;
    outcome.expect("the panic went through").unwrap();
    assert!(store.entries("e").is_empty());
}

/// Case 12: work whose drop blocks past its deadline is reported as an overrun.
#[test]
fn an_overrun_in_a_drop_is_reported() {
    struct Blocks(Arc<AtomicUsize>);
    impl Drop for Blocks {
        fn drop(&mut self) {
            let begun = std::time::Instant::now();
            while self.0.load(SeqCst) == 0 {
                assert!(begun.elapsed() < Duration::from_secs(20), "the overrun was not reported");
                std::thread::yield_now();
            }
        }
    }
    let overruns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&overruns);
    let config = Config::new().with_ttl(Duration::from_secs(1)).with_on_overrun(OnOverrun::Hook(Arc::new(
        move |_| {
            counted.fetch_add(1, SeqCst);
        },
    )));
    let backend = MemoryStore::new().backend();
    let link = backend.link().clone();
    let elector = StoreElector::new(Arc::new(backend), config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let blocks = Blocks(Arc::clone(&overruns));
        let work = async move {
            let _blocks = blocks;
            std::future::pending::<()>().await;
        };
        leadership.run(work).await.unwrap_err();
    });
    assert_eq!(overruns.load(SeqCst), 1);
}

/// Case 13: settings that would overflow the clock are refused, and nothing panics.
#[tokio::test(start_paused = true)]
async fn times_without_a_bound_are_refused() {
    let store = MemoryStore::new();
    let config = Config::new().with_request_timeout(Duration::MAX);
    let refused = StoreElector::new(Arc::new(store.backend()), config).unwrap_err();
    assert!(refused.to_string().contains("at most 1h"), "{refused}");
    let host =
        Host::with(&store, "a", SimClock::new(), |config| config.with_request_timeout(Config::MAX_WAIT));
    assert!(!host.elector.diagnose().await.is_empty());
    sleep(SLACK).await;
}
