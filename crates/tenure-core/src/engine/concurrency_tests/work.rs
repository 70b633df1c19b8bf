//! Work that begins while its term ends.

use std::sync::Arc;

use loom::{
    future::block_on,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use super::{
    harness::{ModelClock, explore, fails_without},
    term_end::{every_schedule, new_leadership},
};
use crate::{
    Config, LossReason, engine::tasks::in_flight_work::InFlightWork, failpoints::SafetyRule, sync::SetOnce,
};

/// Hazards G5, G9: work begins while the guard is dropped. Either the withdrawal of the entry waits for this
/// work, or the work never begins.
fn begun_while_dropped(config: &Config) {
    let clock = ModelClock::new();
    let leadership = new_leadership(config, &clock);
    let (handle, term) = (leadership.handle(), leadership.handle().term());
    // Accessed with relaxed ordering, which orders nothing by itself.
    let entry_exists = Arc::new(AtomicBool::new(true));
    let work = {
        let entry_exists = Arc::clone(&entry_exists);
        thread::spawn(move || {
            let work = async { entry_exists.load(Ordering::Relaxed) };
            if let Ok(existed) = block_on(handle.run(work)) {
                assert!(existed, "the work ran without an entry");
            }
        })
    };
    let dropping = thread::spawn(move || drop(leadership));
    block_on(term.wait_ended());
    block_on(term.wait_work_stopped());
    entry_exists.store(false, Ordering::Relaxed);
    work.join().unwrap();
    dropping.join().unwrap();
    assert_eq!(term.reason(), Some(LossReason::Dropped));
}

#[test]
fn an_entry_is_removed_after_its_work_has_stopped() {
    let config = Config::new();
    explore("an_entry_is_removed_after_its_work_has_stopped", every_schedule(3), move || {
        begun_while_dropped(&config);
    });
}

/// The counter alone: once it is closed and at zero, no work begins that takes the term for valid.
fn begun_while_closed() {
    let (in_flight, ended) = (Arc::new(InFlightWork::new()), Arc::new(SetOnce::new()));
    let running = Arc::new(AtomicUsize::new(0));
    let work = {
        let (in_flight, ended, running) = (Arc::clone(&in_flight), Arc::clone(&ended), Arc::clone(&running));
        thread::spawn(move || {
            let work_guard = in_flight.begin();
            let is_valid = ended.get().is_none();
            if is_valid {
                running.store(1, Ordering::Relaxed);
            }
            // The work is in flight until the end of the test.
            std::mem::forget(work_guard);
            is_valid
        })
    };
    ended.set(LossReason::Dropped);
    let was_empty = in_flight.is_empty();
    in_flight.close();
    let is_valid = work.join().unwrap();
    assert!(!(is_valid && was_empty), "work begins that is not counted");
    in_flight.end();
    block_on(in_flight.wait_stopped());
    assert!(in_flight.is_empty());
}

#[test]
fn either_the_work_sees_the_loss_or_the_loser_sees_the_work() {
    explore(
        "either_the_work_sees_the_loss_or_the_loser_sees_the_work",
        every_schedule(6),
        begun_while_closed,
    );
}

/// Without the fence, both threads may read before either sees the other's write.
#[test]
fn work_that_begins_unseen_is_noticed() {
    fails_without(SafetyRule::OrderWorkAndLoss, || {
        explore("disabled", every_schedule(6), begun_while_closed)
    });
}
