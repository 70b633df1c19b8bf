//! The watchdog's thread: nothing that it is told is lost between its look and its wait.

use std::sync::{Arc, Weak};

use loom::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use super::{
    ending::every_schedule,
    stage::{ModelClock, counted, notices},
};
use crate::{
    BootInstant,
    engine::{
        report::Reporter,
        watchdog::{Watchdog, Watched},
    },
    failpoints::SafetyRule,
};

/// What the watchdog has seen of a deadline.
struct Deadline {
    at: AtomicU64,
    seen: AtomicU64,
    is_seen: loom::sync::Mutex<bool>,
    told: loom::sync::Condvar,
}

const NEAR: u64 = 7;

impl Deadline {
    fn new(at: u64) -> Arc<Self> {
        Arc::new(Self {
            at: AtomicU64::new(at),
            seen: AtomicU64::new(0),
            is_seen: loom::sync::Mutex::new(false),
            told: loom::sync::Condvar::new(),
        })
    }

    fn until_seen(&self) {
        let mut is_seen = self.is_seen.lock().unwrap();
        while !*is_seen {
            is_seen = self.told.wait(is_seen).unwrap();
        }
    }
}

impl Watched for Deadline {
    fn check(&self) -> Option<BootInstant> {
        let at = self.at.load(Ordering::Relaxed);
        self.seen.store(at, Ordering::Relaxed);
        if at == NEAR {
            *self.is_seen.lock().unwrap() = true;
            self.told.notify_all();
        }
        Some(BootInstant::from_nanos(at))
    }
}

fn watched(deadline: &Arc<Deadline>) -> Weak<dyn Watched> {
    Arc::downgrade(deadline) as Weak<dyn Watched>
}

/// A deadline comes nearer while the watchdog is about to wait for a later one. In the model a wait never
/// ends by itself, so that a wake-up that is lost is a deadlock.
fn nearer_deadline() {
    let watchdog = Watchdog::start(ModelClock::new(), Reporter::inline()).unwrap();
    let deadline = Deadline::new(BootInstant::NEVER.as_nanos());
    watchdog.watch(watched(&deadline));
    deadline.at.store(NEAR, Ordering::Relaxed);
    watchdog.wake();
    deadline.until_seen();
    assert_eq!(deadline.seen.load(Ordering::Relaxed), NEAR);
}

#[test]
fn a_nearer_deadline_is_noticed() {
    counted("a_nearer_deadline_is_noticed", every_schedule(5), nearer_deadline);
}

#[test]
fn a_lost_wake_up_is_noticed() {
    notices(SafetyRule::KeepWakeups, || counted("broken", every_schedule(5), nearer_deadline));
}

/// Two sessions are opened at once: one thread watches both.
#[test]
fn two_new_sessions_are_noticed() {
    counted("two_new_sessions_are_noticed", every_schedule(3), || {
        let watchdog = Arc::new(Watchdog::start(ModelClock::new(), Reporter::inline()).unwrap());
        let (one, other) = (Deadline::new(NEAR), Deadline::new(NEAR));
        let second = {
            let (watchdog, other) = (Arc::clone(&watchdog), Arc::clone(&other));
            thread::spawn(move || {
                watchdog.watch(watched(&other));
                other.until_seen();
            })
        };
        watchdog.watch(watched(&one));
        one.until_seen();
        second.join().unwrap();
    });
}

/// The thread ends with its elector, whatever it is at: a thread that does not end is a deadlock here.
#[test]
fn the_thread_ends_with_its_elector() {
    counted("the_thread_ends_with_its_elector", every_schedule(5), || {
        let looked = Arc::new(AtomicBool::new(false));
        struct Once(Arc<AtomicBool>);
        impl Watched for Once {
            fn check(&self) -> Option<BootInstant> {
                self.0.store(true, Ordering::Relaxed);
                None
            }
        }
        let watchdog = Watchdog::start(ModelClock::new(), Reporter::inline()).unwrap();
        let once: Arc<dyn Watched> = Arc::new(Once(looked));
        watchdog.watch(Arc::downgrade(&once));
        drop(watchdog);
    });
}
