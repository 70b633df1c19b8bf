//! Work that begins while its leadership ends.

use std::sync::Arc;

use loom::{
    future::block_on,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use super::{
    ending::{every_schedule, leading},
    stage::{ModelClock, counted, notices},
};
use crate::{Config, LossReason, engine::works::Works, failpoints::SafetyRule, sync::SetOnce};

/// Hazards G5, G9: work begins while the guard is dropped. What waits for the work before the entry is removed
/// either waits for this work too, or the work never begins.
fn begun_while_dropped(config: &Config) {
    let clock = ModelClock::new();
    let leadership = leading(config, &clock);
    let (handle, term) = (leadership.handle(), leadership.handle().term());
    // Of relaxed accesses: they order nothing by themselves.
    let entry_stands = Arc::new(AtomicBool::new(true));
    let work = {
        let entry_stands = Arc::clone(&entry_stands);
        thread::spawn(move || {
            let work = async { entry_stands.load(Ordering::Relaxed) };
            if let Ok(stood) = block_on(handle.run(work)) {
                assert!(stood, "the work ran without an entry");
            }
        })
    };
    let dropping = thread::spawn(move || drop(leadership));
    block_on(term.wait_over());
    block_on(term.wait_stopped());
    entry_stands.store(false, Ordering::Relaxed);
    work.join().unwrap();
    dropping.join().unwrap();
    assert_eq!(term.reason(), Some(LossReason::Dropped));
}

#[test]
fn an_entry_is_removed_after_its_work_has_stopped() {
    let config = Config::new();
    counted("an_entry_is_removed_after_its_work_has_stopped", every_schedule(3), move || {
        begun_while_dropped(&config);
    });
}

/// The bare count: once it is closed and at zero, no work begins that takes the leadership for standing.
fn begun_while_closed() {
    let (works, ended) = (Arc::new(Works::new()), Arc::new(SetOnce::new()));
    let running = Arc::new(AtomicUsize::new(0));
    let work = {
        let (works, ended, running) = (Arc::clone(&works), Arc::clone(&ended), Arc::clone(&running));
        thread::spawn(move || {
            let begun = works.begin();
            let stands = ended.get().is_none();
            if stands {
                running.store(1, Ordering::Relaxed);
            }
            // It is under way until this is over.
            std::mem::forget(begun);
            stands
        })
    };
    ended.set(LossReason::Dropped);
    let unseen = works.is_empty();
    works.close();
    let stands = work.join().unwrap();
    assert!(!(stands && unseen), "work begins that nobody sees");
    works.end();
    block_on(works.wait());
    assert!(works.is_empty());
}

#[test]
fn either_the_work_sees_the_loss_or_the_loser_sees_the_work() {
    counted(
        "either_the_work_sees_the_loss_or_the_loser_sees_the_work",
        every_schedule(6),
        begun_while_closed,
    );
}

/// Without the fence, both may look before either is seen.
#[test]
fn work_that_begins_unseen_is_noticed() {
    notices(SafetyRule::OrderWorkAndLoss, || counted("broken", every_schedule(6), begun_while_closed));
}
