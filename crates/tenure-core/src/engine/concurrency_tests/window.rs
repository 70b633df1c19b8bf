//! The window, extended by several heartbeats while it is read.

use std::{sync::Arc, time::Duration};

use loom::thread;

use super::{
    harness::{ModelClock, explore, fails_without},
    term_end::{GRACE_PERIOD, TTL, every_schedule},
};
use crate::{engine::rules::window::Window, failpoints::SafetyRule, spi::Stamp};

fn after(sent: Stamp, time: Duration) -> Stamp {
    Stamp { at: sent.at + time, ..sent }
}

/// Two heartbeats are confirmed at once: the deadline of the later one stays, and no thread sees it move back.
fn extended_twice_at_once() {
    let clock = ModelClock::new();
    let sent = Stamp::now(&*clock);
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

/// A window is suspended and opened again: no check takes it for one that has closed.
#[test]
fn a_window_that_is_opened_again_has_not_closed() {
    explore("a_window_that_is_opened_again_has_not_closed", every_schedule(5), || {
        let clock = ModelClock::new();
        let window = Arc::new(Window::opened(Stamp::now(&*clock), TTL, 0.1, GRACE_PERIOD));
        clock.advance(Duration::from_secs(1));
        let opening = {
            let (window, clock) = (Arc::clone(&window), Arc::clone(&clock));
            thread::spawn(move || {
                window.suspend(&*clock).unwrap();
                window.extend(&*clock, Stamp::now(&*clock), TTL).unwrap();
            })
        };
        for _ in 0..2 {
            assert_eq!(window.check_open(&*clock, GRACE_PERIOD).unwrap_or(Ok(())), Ok(()));
        }
        opening.join().unwrap();
        assert_eq!(window.check(&*clock, GRACE_PERIOD), Ok(()));
    });
}
