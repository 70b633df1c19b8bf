//! The window, with heartbeats credited while it is looked at and while it closes.

use std::{sync::Arc, time::Duration};

use loom::thread;

use super::{
    ending::{BUDGET, TTL, every_schedule},
    stage::{ModelClock, counted, notices},
};
use crate::{
    engine::window::{Sent, Window},
    failpoints::SafetyRule,
};

fn after(sent: Sent, time: Duration) -> Sent {
    Sent { at: sent.at + time, ..sent }
}

/// Two heartbeats are confirmed at once: the later one's deadline stays, and nobody sees it move back.
fn credits_at_once() {
    let clock = ModelClock::new();
    let sent = Sent::now(&*clock);
    let window = Arc::new(Window::opened(sent, TTL, 0.1, BUDGET));
    clock.advance(Duration::from_secs(3));
    let credits = [1, 2].map(|seconds| {
        let (window, clock) = (Arc::clone(&window), Arc::clone(&clock));
        thread::spawn(move || {
            window.credit(&*clock, after(sent, Duration::from_secs(seconds)), TTL).unwrap();
        })
    });
    let (earlier, later) = (window.deadline(), window.deadline());
    assert!(earlier <= later, "the deadline has moved back");
    credits.into_iter().for_each(|credit| credit.join().unwrap());
    assert_eq!(window.deadline(), sent.at + Duration::from_secs(11), "the deadline has moved back");
}

#[test]
fn a_deadline_never_moves_back() {
    counted("a_deadline_never_moves_back", every_schedule(5), credits_at_once);
}

#[test]
fn a_deadline_that_moves_back_is_noticed() {
    notices(SafetyRule::CompareAndSwapDeadline, || counted("broken", every_schedule(5), credits_at_once));
}
