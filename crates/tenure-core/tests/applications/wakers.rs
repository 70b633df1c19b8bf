//! Wakers that panic or block.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use tenure_core::{
    BootClock, Clock, Elector,
    memory::{Delivery, Direction, MemoryStore, Op},
};

use crate::harness::{
    Gate, TEST_TIMEOUT, TTL, elector, in_time, multi_thread_runtime, poll_with, run_endless_work, until,
    waker,
};

/// A guard is dropped while a task waits for its loss with a waker that panics. The entry is removed.
#[test]
fn a_waker_that_panics_keeps_no_entry_when_the_guard_is_dropped() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    let handle = leadership.handle();
    let mut lost = pin!(handle.lost());
    assert!(poll_with(lost.as_mut(), &waker(|| panic!("a waker with a bug"))).is_pending());
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(leadership)));
    until("the entry is gone", || store.entries("e").is_empty());
    assert!(dropped.is_ok(), "drop panicked");
}

/// Hazard G26: `drop` never blocks.
#[test]
fn a_waker_that_blocks_does_not_block_the_drop_of_a_guard() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    let handle = leadership.handle();
    let gate = Gate::default();
    let mut lost = pin!(handle.lost());
    let blocking = gate.clone();
    assert!(poll_with(lost.as_mut(), &waker(move || blocking.wait())).is_pending());
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    thread::spawn(move || {
        drop(leadership);
        is_done.store(true, SeqCst);
    });
    until("the guard is dropped", || done.load(SeqCst));
    gate.open();
}

/// A waker that panics does not keep the loss from another waiting task.
#[test]
fn a_waker_that_panics_does_not_affect_other_waiters() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    let token = leadership.cancellation_token();
    let mut bad = pin!(token.cancelled());
    assert!(poll_with(bad.as_mut(), &waker(|| panic!("a waker with a bug"))).is_pending());
    let handle = leadership.handle();
    let waits = Arc::new(AtomicBool::new(false));
    let is_waiting = Arc::clone(&waits);
    let lost = runtime.spawn(async move {
        let mut lost = pin!(handle.lost());
        assert!(futures::poll!(lost.as_mut()).is_pending());
        is_waiting.store(true, SeqCst);
        lost.await
    });
    until("the other task waits", || waits.load(SeqCst));
    link.cut();
    let lost = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, lost).await });
    assert!(lost.is_ok(), "the other task was not woken");
}

/// Hazard G26: a waker that panics in `run` does not keep other work of the same leadership from being dropped.
#[test]
fn a_waker_that_panics_keeps_no_other_work() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    let mut bad = pin!(leadership.run(std::future::pending::<()>()));
    assert!(poll_with(bad.as_mut(), &waker(|| panic!("a waker with a bug"))).is_pending());
    let work = run_endless_work(&runtime, &leadership);
    link.cut();
    let work = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, work).await });
    assert!(work.is_ok(), "run never returned");
}

/// Hazard G26: more wakers block than there are callback threads. The work of another leadership is dropped all the same.
#[test]
fn many_wakers_that_block_delay_no_other_leadership() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let gate = Gate::default();
    let blocking = gate.clone();
    let blocks = waker(move || blocking.wait());
    let good = runtime.block_on(in_time(elector.campaign("good"))).unwrap();
    // Held back, so that no request is answered before its waker is registered.
    link.set(&[Op::Read], Direction::Request, Delivery::Hold);
    let mut requests: Vec<_> = (0..9).map(|_| elector.leader("good")).collect();
    for request in &mut requests {
        assert!(poll_with(request.as_mut(), &blocks).is_pending());
    }
    link.heal();
    until("all callback threads block", || gate.waiters() >= 8);
    let token = good.cancellation_token();
    let work = run_endless_work(&runtime, &good);
    link.cut();
    let deadline = good.deadline();
    let work = runtime.block_on(async { tokio::time::timeout(TTL * 3, work).await });
    let late = BootClock.now().since(deadline);
    let cancelled = token.is_cancelled();
    gate.open();
    assert!(
        work.is_ok() && cancelled,
        "{late:?} after the deadline: run returned {}, token cancelled {cancelled}",
        work.is_ok()
    );
}

/// A task of a `LocalSet` has a waker of tokio's, which calls the waker of the task that polls the set.
#[test]
fn the_waker_behind_a_local_set_is_not_called_by_the_engine() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let held = runtime.block_on(in_time(elector.campaign("held"))).unwrap();
    let gate = Gate::default();
    let threads = Arc::new(Mutex::new(Vec::new()));
    let (blocking, record) = (gate.clone(), Arc::clone(&threads));
    let campaigning = Arc::clone(&elector);
    // Held back, so that the campaign does not win before its waker is registered.
    link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    thread::spawn(move || {
        let blocks = waker(move || {
            record.lock().unwrap().push(thread::current().name().unwrap_or("?").to_owned());
            blocking.wait();
        });
        let set = tokio::task::LocalSet::new();
        set.spawn_local(async move {
            let _ = campaigning.campaign("other").await;
        });
        let mut set = pin!(set);
        assert!(poll_with(set.as_mut(), &blocks).is_pending());
        link.heal();
        // The set is kept until the test ends.
        loop {
            thread::park();
        }
    });
    until("the waker is called", || gate.waiters() > 0);
    let after_heartbeats = BootClock.now() + TTL * 2;
    runtime.block_on(BootClock.sleep_until(after_heartbeats));
    let leads = held.is_leader();
    gate.open();
    assert!(leads, "the engine sent no heartbeats; the waker was called on {:?}", threads.lock().unwrap());
}

/// A callback whose panic payload panics again when it is dropped ends no callback thread.
#[test]
fn a_panic_that_panics_when_dropped_ends_no_thread() {
    struct PanicsOnDrop;
    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("again");
            }
        }
    }
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let good = runtime.block_on(in_time(elector.campaign("good"))).unwrap();
    let wakes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&wakes);
    let bad = waker(move || {
        counted.fetch_add(1, SeqCst);
        std::panic::panic_any(PanicsOnDrop)
    });
    for request_number in 1..=9 {
        // Held back, so that the request is not answered before its waker is registered.
        link.set(&[Op::Read], Direction::Request, Delivery::Hold);
        let mut request = elector.leader("good");
        assert!(poll_with(request.as_mut(), &bad).is_pending());
        link.heal();
        until("the waker is called", || wakes.load(SeqCst) >= request_number);
    }
    let handle = good.handle();
    let lost = runtime.spawn(async move { handle.lost().await });
    link.cut();
    assert!(
        runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, lost).await }).is_ok(),
        "no callback thread is left"
    );
}
