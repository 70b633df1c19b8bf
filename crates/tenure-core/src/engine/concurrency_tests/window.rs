//! The window, extended by several heartbeats while it is read.

use std::{sync::Arc, time::Duration};

use loom::thread;

use super::{
    harness::{ModelClock, explore, fails_without},
    term_end::{GRACE_PERIOD, TTL, every_schedule},
};
use crate::{
    engine::rules::window::{SentAt, Window},
    failpoints::SafetyRule,
};

fn after(sent: SentAt, time: Duration) -> SentAt {
    SentAt { at: sent.at + time, ..sent }
}

/// Two heartbeats are confirmed at once: the deadline of the later one stays, and no thread sees it move back.
fn extended_twice_at_once() {
    let clock = ModelClock::new();
    let sent = SentAt::now(&*clock);
    let window = Arc::new(Window::opened(sent, TTL, 0.1, GRACE_PERIOD));
    clock.advance(Duration::from_secs(3));
    let extensions = [1, 2].map(|seconds| {
        let (window, clock) = (Arc::clone(&window), Arc::clone(&clock));
        thread::spawn(move || {
            window.extend(&*clock, after(sent, Duration::from_secs(seconds)), TTL).unwrap();
        })
    });
    let (earlier, later) = (window.deadline(), window.deadline());
    assert!(earlier <= later, "the deadline has moved back");
    extensions.into_iter().for_each(|extension| extension.join().unwrap());
    assert_eq!(window.deadline(), sent.at + Duration::from_secs(11), "the deadline has moved back");
}

#[test]
fn a_deadline_never_moves_back() {
    explore("a_deadline_never_moves_back", every_schedule(5), extended_twice_at_once);
}

#[test]
fn a_deadline_that_moves_back_is_noticed() {
    fails_without(SafetyRule::CompareAndSwapDeadline, || {
        explore("disabled", every_schedule(5), extended_twice_at_once)
    });
}
