//! Work under a leadership is cancelled, dropped and awaited: promise S3.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenure_core::{
    Config, Elector, Error, LossReason, OnOverrun, SimClock, StoreElector,
    memory::{Delivery, Direction, MemoryStore, Op},
};

use crate::host::{Host, TTL, UNTIL_DEADLINE, UNTIL_STOP, sleep, until, within};

/// Records when it was dropped.
struct DropTime(Arc<std::sync::Mutex<Option<tokio::time::Instant>>>);

impl Drop for DropTime {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(tokio::time::Instant::now());
    }
}

/// Promise S3: work is cancelled at deadline − grace period, and dropped by the deadline.
#[tokio::test(start_paused = true)]
async fn work_is_cancelled_and_dropped_by_the_deadline() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.link.set(&[Op::Heartbeat], Direction::Request, Delivery::Drop);
    let from = tokio::time::Instant::now();
    let leadership = host.lead().await;
    let token = leadership.cancellation_token();
    let dropped = Arc::default();
    let guard = DropTime(Arc::clone(&dropped));
    let work = async move {
        token.cancelled().await;
        let elapsed = from.elapsed();
        assert!(
            elapsed >= UNTIL_STOP - Duration::from_millis(5)
                && elapsed <= UNTIL_STOP + Duration::from_millis(5)
        );
        let _guard = guard;
        std::future::pending::<()>().await;
    };
    let lost = within(TTL, leadership.run(work)).await.unwrap_err();
    assert_eq!(lost.reason, LossReason::Deadline);
    let after = dropped.lock().unwrap().unwrap() - from;
    assert!(after > UNTIL_STOP && after <= UNTIL_DEADLINE - Duration::from_millis(20), "{after:?}");
}

/// The output of work that stops when it is cancelled is returned.
#[tokio::test(start_paused = true)]
async fn work_that_stops_in_time_returns_its_output() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    let token = leadership.cancellation_token();
    let output = leadership
        .run(async {
            token.cancelled().await;
            sleep(Duration::from_millis(500)).await;
            "cleaned up"
        })
        .await;
    assert_eq!(output, Ok("cleaned up"));
    assert!(!leadership.is_leader());
}

/// Hazard G5: the successor leads only after the work has stopped, also in a handover.
#[tokio::test(start_paused = true)]
async fn a_resignation_waits_for_the_work() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.lead().await;
    let next = b.enter_queue(&store).await;
    let handle = leadership.handle();
    let working = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&working);
    let work = tokio::spawn(async move {
        let token = handle.cancellation_token();
        handle
            .run(async {
                token.cancelled().await;
                sleep(Duration::from_secs(3)).await;
                still.store(false, Ordering::SeqCst);
            })
            .await
    });
    tokio::task::yield_now().await;
    let from = tokio::time::Instant::now();
    leadership.resign().await.unwrap();
    assert!(!working.load(Ordering::SeqCst));
    assert!(from.elapsed() >= Duration::from_secs(3));
    drop(within(Duration::from_millis(50), next).await.unwrap());
    work.await.unwrap().unwrap();
}

/// Hazard G5: work that ignores the resignation is dropped by the deadline, and the entry is removed after that.
#[tokio::test(start_paused = true)]
async fn a_resignation_drops_work_by_the_deadline() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_shutdown_timeout(TTL));
    let leadership = host.lead().await;
    let handle = leadership.handle();
    let dropped = Arc::default();
    let guard = DropTime(Arc::clone(&dropped));
    let work = tokio::spawn(async move {
        handle
            .run(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            })
            .await
    });
    tokio::task::yield_now().await;
    within(UNTIL_DEADLINE + Duration::from_millis(100), leadership.resign()).await.unwrap();
    assert!(dropped.lock().unwrap().is_some());
    assert!(store.entries("e").is_empty());
    assert_eq!(work.await.unwrap().unwrap_err().reason, LossReason::Resigned);
}

/// Hazard G4: work that was not polled past its deadline is dropped, not resumed.
#[tokio::test(start_paused = true)]
async fn work_is_not_resumed_past_its_deadline() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let polls = Arc::new(AtomicUsize::new(0));
    let (counted, clock) = (Arc::clone(&polls), host.clock.clone());
    let lost = leadership
        .run(std::future::poll_fn(move |context| {
            assert!(counted.fetch_add(1, Ordering::SeqCst) < 10, "polled repeatedly");
            // The process is stopped here, and continued after its TTL. The work is ready to continue.
            clock.jump(TTL * 2);
            context.waker().wake_by_ref();
            std::task::Poll::<()>::Pending
        }))
        .await
        .unwrap_err();
    assert_eq!((lost.reason, polls.load(Ordering::SeqCst)), (LossReason::Deadline, 1));
}

/// Hazard G9: a leadership that was lost before the work began runs no work.
#[tokio::test(start_paused = true)]
async fn work_of_a_lost_leadership_never_begins() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let token = leadership.cancellation_token();
    host.clock.jump(TTL);
    let outcome = leadership.run(async { panic!("the work has begun") }).await;
    assert_eq!(outcome.unwrap_err().reason, LossReason::Deadline);
    assert!(token.is_cancelled() && leadership.cancellation_token().is_cancelled());
}

/// Hazard G4: the loss is polled before the work, in the same poll.
#[tokio::test(start_paused = true)]
async fn work_is_not_polled_once_more_when_its_leadership_is_over() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let polls = AtomicUsize::new(0);
    let work = std::future::poll_fn(|_| {
        polls.fetch_add(1, Ordering::SeqCst);
        std::task::Poll::<()>::Pending
    });
    let mut running = std::pin::pin!(leadership.run(work));
    assert!(futures::poll!(running.as_mut()).is_pending());
    host.clock.jump(TTL * 2);
    assert!(futures::poll!(running.as_mut()).is_ready());
    assert_eq!(polls.load(Ordering::SeqCst), 1);
}

/// Hazard G12: when the store says that leadership is over, work has no grace period.
#[tokio::test(start_paused = true)]
async fn work_is_dropped_at_once_when_the_entry_is_gone() {
    for grace_period in [TTL / 10, TTL / 250] {
        let store = MemoryStore::new();
        let host = Host::with(&store, "a", SimClock::new(), |c| c.with_grace_period(grace_period));
        let leadership = host.lead().await;
        let token = leadership.fencing_token().get();
        let from = tokio::time::Instant::now();
        let working = within(TTL, leadership.run(std::future::pending::<()>()));
        let (lost, _) = tokio::join!(working, async { store.delete_entry("e", token) });
        assert_eq!(lost.unwrap_err().reason, LossReason::EntryGone);
        assert!(from.elapsed() < Duration::from_millis(20), "{:?} with {grace_period:?}", from.elapsed());
    }
}

/// Hazards E12, Z3: also when only a heartbeat reports that the session has ended.
#[tokio::test(start_paused = true)]
async fn work_is_dropped_at_once_when_the_session_has_ended() {
    for grace_period in [TTL / 10, TTL / 250] {
        let store = MemoryStore::new();
        let host = Host::with(&store, "a", SimClock::new(), |c| c.with_grace_period(grace_period));
        let leadership = host.lead().await;
        host.link.set(&[Op::Watch], Direction::Response, Delivery::Drop);
        store.expire_session(store.sessions()[0]);
        let elapsed = async {
            leadership.lost().await;
            tokio::time::Instant::now()
        };
        let working = within(TTL, leadership.run(std::future::pending::<()>()));
        let (lost, elapsed) = tokio::join!(working, elapsed);
        assert_eq!(lost.unwrap_err().reason, LossReason::SessionExpired);
        assert!(
            elapsed.elapsed() < Duration::from_millis(20),
            "{:?} with {grace_period:?}",
            elapsed.elapsed()
        );
    }
}

/// Hazards G5, G12: the entry is deleted while the work stops after a resignation. The work does not run beside that of the
/// successor.
#[tokio::test(start_paused = true)]
async fn work_that_stops_is_dropped_at_once_when_the_entry_is_gone() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.lead().await;
    let next = b.enter_queue(&store).await;
    let (handle, token) = (leadership.handle(), leadership.fencing_token().get());
    let dropped: Arc<std::sync::Mutex<_>> = Arc::default();
    let guard = DropTime(Arc::clone(&dropped));
    let work = tokio::spawn(async move {
        handle
            .run(async move {
                let _guard = guard;
                sleep(TTL).await;
            })
            .await
    });
    tokio::task::yield_now().await;
    let resigning = tokio::spawn(leadership.resign());
    sleep(Duration::from_millis(100)).await;
    assert!(dropped.lock().unwrap().is_none() && !next.is_finished(), "the work may still stop by itself");
    store.delete_entry("e", token);
    let second = within(TTL, next).await.unwrap();
    sleep(Duration::from_millis(20)).await;
    assert!(second.is_leader() && dropped.lock().unwrap().is_some());
    assert_eq!(within(TTL, work).await.unwrap().unwrap_err().reason, LossReason::Resigned);
    within(TTL, resigning).await.unwrap().unwrap();
}

/// A longer grace period ends this leadership earlier, but no other one.
#[tokio::test(start_paused = true)]
async fn work_can_have_a_longer_grace_period() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.link.set(&[Op::Heartbeat], Direction::Request, Delivery::Drop);
    let from = tokio::time::Instant::now();
    let leadership = host.lead().await;
    let other = host.elector.campaign("another").await.unwrap();
    let token = leadership.cancellation_token();
    leadership
        .run_with_grace_period(Duration::from_secs(3), async {
            token.cancelled().await;
            let elapsed = from.elapsed();
            assert!(
                elapsed >= Duration::from_millis(5_990) && elapsed <= Duration::from_millis(6_010),
                "{elapsed:?}"
            );
            assert!(!leadership.is_leader() && other.is_leader());
        })
        .await
        .unwrap();
    let refused = other.run_with_grace_period(Duration::from_secs(5), async {}).await.unwrap_err();
    assert!(refused.to_string().contains("at most 3s 333ms"), "{refused}");
}

/// Hazard G6: a waiting candidate reports no loss when its session expires.
#[tokio::test(start_paused = true)]
async fn a_waiting_candidate_cannot_lose_leadership() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.lead().await;
    let waiting = b.enter_queue(&store).await;
    store.expire_session(store.sessions()[1]);
    sleep(TTL).await;
    // The campaign still waits, with a new entry.
    assert!(!waiting.is_finished() && store.entries("e").len() == 2);
    leadership.resign().await.unwrap();
    drop(within(TTL, waiting).await.unwrap());
}

/// Hazard G4: when all workers of the runtime are blocked, the work is still cancelled on time, and the overrun policy is
/// applied.
#[test]
fn a_blocked_runtime_does_not_stop_the_watchdog() {
    let overruns = Arc::new(AtomicUsize::new(0));
    let (seen, counted) = (Arc::clone(&overruns), Arc::clone(&overruns));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let backend = MemoryStore::new().backend();
        let link = backend.link().clone();
        let config = Config::new().with_ttl(Duration::from_secs(1)).with_on_overrun(OnOverrun::Hook(
            Arc::new(move |overrun| {
                assert_eq!(overrun.election.as_str(), "e");
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        ));
        let elector = StoreElector::new(Arc::new(backend), config).unwrap();
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let token = leadership.cancellation_token();
        let blocked = leadership.run(async {
            let begun = std::time::Instant::now();
            // The only worker never returns to the runtime.
            while seen.load(Ordering::SeqCst) == 0 {
                assert!(begun.elapsed() < Duration::from_secs(20), "the overrun was not reported");
                std::thread::yield_now();
            }
            assert!(token.is_cancelled() && !leadership.is_leader());
        });
        // The output of work that completes in the poll that ran too long is still returned.
        blocked.await.unwrap();
    });
    assert_eq!(overruns.load(Ordering::SeqCst), 1);
}

/// Hazard G20: dropping the guard outside a runtime neither blocks nor panics, and resigns.
#[tokio::test(start_paused = true)]
async fn a_guard_can_be_dropped_anywhere() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let handle = leadership.handle();
    std::thread::spawn(move || drop(leadership)).join().unwrap();
    assert_eq!(handle.loss(), Some(LossReason::Dropped));
    until("the entry is gone", || store.entries("e").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn the_value_can_be_changed_while_leading() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    leadership.set_value("10.0.0.9").await.unwrap();
    let seen = host.elector.leader("e").await.unwrap().unwrap();
    assert_eq!((seen.id.as_str(), seen.value.as_slice()), ("a", &b"10.0.0.9"[..]));
    let error = leadership.set_value(vec![0; 65 * 1024]).await.unwrap_err();
    assert!(matches!(error, Error::ValueTooLarge { bytes: 66_560 }), "{error}");
    store.delete_entry("e", leadership.fencing_token().get());
    let error = leadership.set_value("late").await.unwrap_err();
    assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::EntryGone), "{error}");
}
