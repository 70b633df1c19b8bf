//! The watchdog's thread: no wake-up is lost between its check and its wait.

use std::sync::{Arc, Weak};

use loom::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use super::{
    harness::{ModelClock, explore, fails_without},
    term_end::every_schedule,
};
use crate::{
    BootInstant,
    engine::{
        enforcement::watchdog::{Watchdog, Watched},
        runtime::report::Reporter,
    },
    failpoints::SafetyRule,
};

/// A deadline, and whether the watchdog has seen it.
struct Deadline {
    at: AtomicU64,
    /// The deadline at the watchdog's latest check.
    seen: AtomicU64,
    is_seen: loom::sync::Mutex<bool>,
    seen_changed: loom::sync::Condvar,
}

const NEAR: u64 = 7;

impl Deadline {
    fn new(at: u64) -> Arc<Self> {
        Arc::new(Self {
            at: AtomicU64::new(at),
            seen: AtomicU64::new(0),
            is_seen: loom::sync::Mutex::new(false),
            seen_changed: loom::sync::Condvar::new(),
        })
    }

    fn wait_seen(&self) {
        let mut is_seen = self.is_seen.lock().unwrap();
        while !*is_seen {
            is_seen = self.seen_changed.wait(is_seen).unwrap();
        }
    }
}

impl Watched for Deadline {
    fn enforce(&self) -> Option<BootInstant> {
        let at = self.at.load(Ordering::Relaxed);
        self.seen.store(at, Ordering::Relaxed);
        if at == NEAR {
            *self.is_seen.lock().unwrap() = true;
            self.seen_changed.notify_all();
        }
        Some(BootInstant::from_nanos(at))
    }
}

fn as_watched(deadline: &Arc<Deadline>) -> Weak<dyn Watched> {
    Arc::downgrade(deadline) as Weak<dyn Watched>
}

/// A deadline comes nearer while the watchdog is about to wait for a later one. In the model a wait never
/// times out, so that a lost wake-up is a deadlock.
fn nearer_deadline() {
    let watchdog = Watchdog::start(ModelClock::new(), Reporter::inline()).unwrap();
    let deadline = Deadline::new(BootInstant::NEVER.as_nanos());
    watchdog.watch(as_watched(&deadline));
    deadline.at.store(NEAR, Ordering::Relaxed);
    watchdog.wake();
    deadline.wait_seen();
    assert_eq!(deadline.seen.load(Ordering::Relaxed), NEAR);
}

#[test]
fn a_nearer_deadline_is_noticed() {
    explore("a_nearer_deadline_is_noticed", every_schedule(5), nearer_deadline);
}

#[test]
fn a_lost_wake_up_is_noticed() {
    fails_without(SafetyRule::KeepWakeups, || explore("disabled", every_schedule(5), nearer_deadline));
}

/// Two sessions are opened at once: one thread watches both.
#[test]
fn two_new_sessions_are_noticed() {
    explore("two_new_sessions_are_noticed", every_schedule(3), || {
        let watchdog = Arc::new(Watchdog::start(ModelClock::new(), Reporter::inline()).unwrap());
        let (one, other) = (Deadline::new(NEAR), Deadline::new(NEAR));
        let second = {
            let (watchdog, other) = (Arc::clone(&watchdog), Arc::clone(&other));
            thread::spawn(move || {
                watchdog.watch(as_watched(&other));
                other.wait_seen();
            })
        };
        watchdog.watch(as_watched(&one));
        one.wait_seen();
        second.join().unwrap();
    });
}

/// The thread ends with its elector, in whatever state it is: a thread that does not end is a deadlock here.
#[test]
fn the_thread_ends_with_its_elector() {
    explore("the_thread_ends_with_its_elector", every_schedule(5), || {
        let checked = Arc::new(AtomicBool::new(false));
        struct Once(Arc<AtomicBool>);
        impl Watched for Once {
            fn enforce(&self) -> Option<BootInstant> {
                self.0.store(true, Ordering::Relaxed);
                None
            }
        }
        let watchdog = Watchdog::start(ModelClock::new(), Reporter::inline()).unwrap();
        let once: Arc<dyn Watched> = Arc::new(Once(checked));
        watchdog.watch(Arc::downgrade(&once));
        drop(watchdog);
    });
}
