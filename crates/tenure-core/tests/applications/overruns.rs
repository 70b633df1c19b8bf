//! Work that has not stopped by its deadline, and futures and guards that are dropped in unusual places.

use std::{
    cell::RefCell,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
    thread,
    time::Duration,
};

use tenure_core::{BootClock, Clock, Elector, Leadership, OnOverrun, memory::MemoryStore};

use crate::harness::{
    CHILD, CapturedLog, TTL, child_process, current_thread_runtime, elector, elector_with, in_time,
    poll_with, signal_of, until,
};

/// Hazard G26: work is aborted at its deadline while many other leaderships have cancellation tokens but no work.
#[test]
fn an_overrun_aborts_beside_many_leaderships_without_work() {
    if std::env::var_os(CHILD).is_some() {
        let store = MemoryStore::new();
        let (elector, link) = elector_with(&store, |config| config.with_on_overrun(OnOverrun::Abort));
        current_thread_runtime().block_on(async {
            let mut held = Vec::new();
            for n in 0..64 {
                let leadership = elector.campaign(&format!("e{n}")).await.unwrap();
                let token = leadership.cancellation_token();
                held.push((leadership, token));
            }
            let leadership = elector.campaign("worked").await.unwrap();
            link.cut();
            let _ = leadership
                .run(async {
                    // The work blocks its thread past the deadline.
                    thread::sleep(TTL * 4);
                })
                .await;
        });
        std::process::exit(0);
    }
    let test = "overruns::an_overrun_aborts_beside_many_leaderships_without_work";
    let child = child_process(test).output().unwrap();
    assert_eq!(signal_of(&child.status), Some(6), "the process was not aborted: {:?}", child.status);
}

/// A future in a thread-local variable is dropped when its thread ends.
#[test]
fn work_kept_by_a_thread_does_not_abort_the_process_when_that_ends() {
    thread_local! {
        static KEPT: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>> = const { RefCell::new(None) };
    }
    if std::env::var_os(CHILD).is_some() {
        let store = MemoryStore::new();
        let (elector, _) = elector(&store);
        let leadership = current_thread_runtime().block_on(in_time(elector.campaign("e"))).unwrap();
        let handle = leadership.handle();
        thread::spawn(move || {
            KEPT.with_borrow_mut(|kept| *kept = None);
            let mut work: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                let _ = handle.run(std::future::pending::<()>()).await;
            });
            assert!(poll_with(work.as_mut(), Waker::noop()).is_pending());
            KEPT.with_borrow_mut(|kept| *kept = Some(work));
        })
        .join()
        .unwrap();
        std::process::exit(0);
    }
    let test = "overruns::work_kept_by_a_thread_does_not_abort_the_process_when_that_ends";
    let child = child_process(test).output().unwrap();
    assert!(child.status.success(), "{:?}: {}", child.status, String::from_utf8_lossy(&child.stderr));
}

/// A guard in a thread-local variable is dropped when its thread ends.
#[test]
fn a_guard_kept_by_a_thread_does_not_abort_the_process_when_that_ends() {
    thread_local! {
        static KEPT: RefCell<Option<Leadership>> = const { RefCell::new(None) };
    }
    if std::env::var_os(CHILD).is_some() {
        let store = MemoryStore::new();
        let (elector, _) = elector(&store);
        thread::spawn(move || {
            KEPT.with_borrow_mut(|kept| *kept = None);
            let leadership = current_thread_runtime().block_on(in_time(elector.campaign("e"))).unwrap();
            KEPT.with_borrow_mut(|kept| *kept = Some(leadership));
        })
        .join()
        .unwrap();
        std::process::exit(0);
    }
    let test = "overruns::a_guard_kept_by_a_thread_does_not_abort_the_process_when_that_ends";
    let child = child_process(test).output().unwrap();
    assert!(child.status.success(), "{:?}: {}", child.status, String::from_utf8_lossy(&child.stderr));
}

/// Hazard G26: work whose drop blocks beyond the deadline is reported, even when it was not polled at the deadline.
#[test]
fn an_overrun_in_a_late_drop_is_reported() {
    struct BlocksOnDrop;
    impl Drop for BlocksOnDrop {
        fn drop(&mut self) {
            thread::sleep(Duration::from_secs(2));
        }
    }
    let overruns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&overruns);
    let store = MemoryStore::new();
    let (elector, link) = elector_with(&store, |config| {
        config.with_on_overrun(OnOverrun::Hook(Arc::new(move |_| {
            counted.fetch_add(1, SeqCst);
        })))
    });
    current_thread_runtime().block_on(async {
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let blocks = BlocksOnDrop;
        let work = leadership.run(async move {
            let _blocks = blocks;
            std::future::pending::<()>().await;
        });
        let mut work = pin!(work);
        assert!(futures::poll!(work.as_mut()).is_pending());
        // Something else blocks the runtime until after the deadline.
        thread::sleep(TTL + Duration::from_millis(300));
        work.await.unwrap_err();
    });
    assert_eq!(overruns.load(SeqCst), 1);
}

/// Work that is being polled when it is to be dropped, and stops in time, is no overrun.
#[test]
fn work_that_stops_in_time_is_no_overrun() {
    let log = CapturedLog::install();
    let store = MemoryStore::new();
    let (elector, link) = elector_with(&store, |config| config.with_on_overrun(OnOverrun::Abort));
    let deadline = current_thread_runtime().block_on(async {
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let deadline = leadership.deadline();
        let work = async {
            loop {
                thread::sleep(Duration::from_millis(5));
                tokio::task::yield_now().await;
            }
        };
        let outcome: Result<(), _> = leadership.run(work).await;
        outcome.unwrap_err();
        assert!(BootClock.now() < deadline);
        deadline
    });
    // At the deadline, the process would be aborted.
    until("the deadline has passed", || BootClock.now() > deadline + Duration::from_millis(200));
    let text = log.text();
    assert!(!text.contains("aborted"), "{text}");
}
