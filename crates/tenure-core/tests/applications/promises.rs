//! The promises of the engine hold regardless of runtimes, subscribers and wakers.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tenure_core::{
    BootClock, Clock, Elector, Error, Leadership, LossReason, OnOverrun, StoreElector,
    memory::{Delivery, Direction, MemoryStore, Op},
};
use tracing::Level;

use crate::harness::{
    CHILD, Gate, LastPoll, SLACK, TEST_TIMEOUT, TTL, child_process, current_thread_runtime, elector,
    elector_with, in_time, multi_thread_runtime, now_nanos, poll_with, signal_of, subscribe, thread_count,
    until, waker,
};

/// Cuts the link of a leader whose work ignores cancellation, and checks that the work has stopped before another elector
/// leads.
fn assert_work_stops_before_takeover() {
    let store = MemoryStore::new();
    let ((one, link), (other, _)) = (elector(&store), elector(&store));
    let runtime = multi_thread_runtime();
    runtime.block_on(async {
        let leadership = in_time(one.campaign("e")).await.unwrap();
        let last_poll = LastPoll::default();
        let (handle, work) = (leadership.handle(), last_poll.clone().work());
        let working = tokio::spawn(async move { handle.run(work).await });
        let next = tokio::spawn(async move { other.campaign("e").await });
        link.cut();
        let next = in_time(next).await.unwrap().unwrap();
        let led = now_nanos();
        in_time(working).await.unwrap().unwrap_err();
        assert!(
            last_poll.nanos() < led,
            "the work ran for {} ms beside the next leader",
            (last_poll.nanos() - led) / 1_000_000
        );
        assert!(next.is_leader() && !leadership.is_leader());
    });
    // Work may block its thread, so it is not awaited.
    runtime.shutdown_background();
}

/// Hazard G26, case 1: a subscriber that blocks delays neither heartbeats nor deadlines.
#[test]
fn a_log_that_blocks_delays_no_deadline() {
    let gate = Gate::default();
    let log = gate.clone();
    subscribe(move |_| log.wait());
    let store = MemoryStore::new();
    let (calm, _) = elector(&store);
    let leads = multi_thread_runtime().block_on(in_time(calm.campaign("calm"))).unwrap();
    until("the log blocks", || gate.waiters() > 0);
    assert_work_stops_before_takeover();
    // Its heartbeats continued meanwhile.
    assert!(leads.is_leader() && leads.remaining() > TTL / 4);
    gate.open();
}

/// Hazard G26, case 2: a subscriber that panics ends neither heartbeats nor the enforcement of deadlines.
#[test]
fn a_log_that_panics_ends_nothing() {
    subscribe(|level| assert!(level > Level::WARN, "a log with a bug"));
    assert_work_stops_before_takeover();
    assert_work_stops_before_takeover();
}

/// Hazard G26, case 1: while the subscriber blocks, the process is aborted at the deadline of work that blocks.
#[test]
fn an_overrun_aborts_on_time_whatever_the_log_does() {
    if std::env::var_os(CHILD).is_some() {
        overrun_behind_a_blocked_log();
    }
    let begun = Instant::now();
    let child = child_process("promises::an_overrun_aborts_on_time_whatever_the_log_does").output().unwrap();
    let took = begun.elapsed();
    let output_text = String::from_utf8_lossy(&child.stdout).into_owned();
    assert_eq!(signal_of(&child.status), Some(6), "{output_text}{}", String::from_utf8_lossy(&child.stderr));
    let at = |what: &str| {
        let line = output_text
            .lines()
            .find_map(|line| line.strip_prefix(what))
            .unwrap_or_else(|| panic!("no {what} in {output_text}"));
        line.trim().parse::<u64>().unwrap()
    };
    // The work prints every millisecond that it still runs.
    let last = output_text.lines().filter_map(|line| line.strip_prefix("tick ")).next_back().unwrap();
    let last: u64 = last.parse().unwrap();
    assert!(
        last <= at("deadline ") + 100_000_000,
        "worked for {} ms after the deadline",
        last.saturating_sub(at("deadline ")) / 1_000_000
    );
    assert!(took < TEST_TIMEOUT && !output_text.contains("handler"), "{output_text}");
}

fn overrun_behind_a_blocked_log() -> ! {
    let gate = Gate::default();
    let log = gate.clone();
    subscribe(move |_| log.wait());
    let store = MemoryStore::new();
    let (elector, link) = elector_with(&store, |config| config.with_on_overrun(OnOverrun::Abort));
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        let leadership = in_time(elector.campaign("e")).await.unwrap();
        link.cut();
        println!("\ndeadline {}", leadership.deadline().as_nanos());
        let outcome = leadership
            .run(async {
                let begun = Instant::now();
                while begun.elapsed() < TEST_TIMEOUT {
                    println!("tick {}", now_nanos());
                    thread::sleep(Duration::from_millis(1));
                }
            })
            .await;
        panic!("the process was not aborted: {outcome:?}");
    })
}

/// Hazard G27, case 3: a campaign that was dropped on a second runtime leaves no entry, and does not affect leaderships of the
/// first runtime.
#[test]
fn a_campaign_of_a_runtime_that_idles_or_is_gone_leaves_nothing() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let first = multi_thread_runtime();
    let held = first.block_on(in_time(elector.campaign("held"))).unwrap();
    let (rival, _) = elector_with(&store, |config| config);
    let blocking = first.block_on(in_time(rival.campaign("wanted"))).unwrap();
    let token = held.fencing_token();
    for drops in [false, true] {
        let second = current_thread_runtime();
        let timed_out = second.block_on(async {
            tokio::time::timeout(Duration::from_millis(100), elector.campaign("wanted")).await
        });
        assert!(timed_out.is_err());
        // The second runtime is idle, or was dropped.
        let second = (!drops).then_some(second);
        until("the entry is gone", || store.entries("wanted").len() == 1);
        drop(second);
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let third = current_thread_runtime();
            third.block_on(async {
                let campaign = elector.campaign("wanted");
                let mut campaign = pin!(campaign);
                assert!(futures::poll!(campaign.as_mut()).is_pending());
                until("it has entered", || store.entries("wanted").len() == 2);
            });
        });
    });
    until("the entry is gone", || store.entries("wanted").len() == 1);
    first.block_on(in_time(blocking.resign())).unwrap();
    let wanted = first.block_on(in_time(elector.campaign("wanted"))).unwrap();
    assert!(wanted.is_leader() && held.is_leader() && held.fencing_token() == token);
}

/// Hazard G27, case 4: a parent is set on a runtime that is dropped. Both leaderships stay until they are resigned.
#[test]
fn joined_leaderships_outlive_the_runtime_that_joined_them() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let first = multi_thread_runtime();
    let (parent, child) = first.block_on(async {
        (
            in_time(elector.campaign("parent")).await.unwrap(),
            in_time(elector.campaign("child")).await.unwrap(),
        )
    });
    let parents = parent.handle();
    let second = current_thread_runtime();
    let child = second.block_on(async { child.with_parent(parent) });
    drop(second);
    let lasts = BootClock.now() + TTL * 2;
    first.block_on(BootClock.sleep_until(lasts));
    assert!(child.is_leader() && parents.is_leader());
    first.block_on(in_time(child.resign())).unwrap();
    assert_eq!(parents.loss(), Some(LossReason::Dropped));
    assert_eq!(store.entry_count(), 0);
}

/// Hazard G28, case 5: the runtime of the first campaign is shut down at various times. No call hangs, and no orphaned session
/// is left.
#[test]
fn a_runtime_shut_down_at_any_moment_leaves_nothing() {
    for tenths in 0..400_u32 {
        let store = MemoryStore::new();
        let (elector, _) = elector(&store);
        let runtime = multi_thread_runtime();
        let (sender, leads) = mpsc::channel::<Leadership>();
        let campaigns = Arc::clone(&elector);
        runtime.spawn(async move {
            if let Ok(leadership) = campaigns.campaign("e").await {
                let _ = sender.send(leadership);
            }
        });
        // Most campaigns are over within a millisecond.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(u64::from(tenths) * 10) {
            thread::yield_now();
        }
        runtime.shutdown_background();
        let other = current_thread_runtime();
        other.block_on(async {
            if let Ok(leadership) = leads.try_recv() {
                in_time(leadership.resign()).await.unwrap();
            }
            drop(leads);
            let again = in_time(elector.campaign("e")).await.unwrap();
            assert!(again.is_leader());
            in_time(again.resign()).await.unwrap();
            in_time(elector.close()).await;
        });
        assert_eq!((store.entry_count(), store.sessions().len()), (0, 0));
    }
}

/// Hazard G26, case 16: wakers that block or panic, in every future of the engine, delay neither heartbeats nor other
/// deadlines.
#[test]
fn wakers_that_block_or_panic_delay_nothing_else() {
    deadlines_hold_while_wakers_block();
}

fn deadlines_hold_while_wakers_block() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let gate = Gate::default();
    let (blocks, panics) = (
        {
            let gate = gate.clone();
            waker(move || gate.wait())
        },
        waker(|| panic!("a waker with a bug")),
    );
    let bad = runtime.block_on(in_time(elector.campaign("bad"))).unwrap();
    let good = runtime.block_on(in_time(elector.campaign("good"))).unwrap();

    // The futures wait for the end of a leadership, for leadership, for a cancellation and for an answer.
    let (token, handle) = (bad.cancellation_token(), bad.handle());
    let mut futures: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
    for _ in 0..2 {
        let (elector, handle, token) = (Arc::clone(&elector), handle.clone(), token.clone());
        let waits = Arc::clone(&elector);
        futures.push(Box::pin(async move { drop(waits.campaign("quick").await) }));
        futures.push(Box::pin(async move { token.cancelled().await }));
        futures.push(Box::pin(async move {
            handle.lost().await;
        }));
        futures.push(Box::pin(async move { drop(handle_leader(&elector).await) }));
    }
    // Held back, so that no campaign wins before its waker is registered.
    link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    for (n, future) in futures.iter_mut().enumerate() {
        let waker = if n % 2 == 0 { &blocks } else { &panics };
        let _ = poll_with(future.as_mut(), waker);
    }
    link.heal();
    until("a waker blocks", || gate.waiters() > 0);
    let children: Vec<_> = (0..10_000).map(|_| token.child_token()).collect();

    // The engine waits for none of the wakers.
    let after_heartbeats = BootClock.now() + TTL * 2;
    runtime.block_on(BootClock.sleep_until(after_heartbeats));
    assert!(good.is_leader() && bad.is_leader());
    runtime.block_on(async {
        let last_poll = LastPoll::default();
        let (handle, work) = (good.handle(), last_poll.clone().work());
        let working = tokio::spawn(async move { handle.run(work).await });
        link.cut();
        assert_eq!(in_time(good.lost()).await, LossReason::Deadline);
        let deadline = good.deadline().as_nanos();
        in_time(working).await.unwrap().unwrap_err();
        assert!(last_poll.nanos() <= deadline, "the work of the other leadership ran after its deadline");
    });
    until("all tokens are cancelled", || {
        children.iter().all(tokio_util::sync::CancellationToken::is_cancelled)
    });
    assert!(!bad.is_leader());
    gate.open();
}

async fn handle_leader(elector: &StoreElector) -> Result<(), Error> {
    elector.leader("good").await.map(drop)
}

/// Safety rules are disabled; `cargo xtask races` runs these tests.
#[cfg(tenure_mutants)]
mod broken {
    use super::deadlines_hold_while_wakers_block;
    use crate::harness::{CHILD, child_process};
    use tenure_core::failpoints::{SafetyRule, disable_everywhere};

    /// When the thread that enforces deadlines calls wakers of the application, a waker that blocks delays the other deadlines.
    #[test]
    fn wakers_on_the_deadline_thread_are_detected() {
        if std::env::var_os(CHILD).is_some() {
            disable_everywhere(SafetyRule::NoUserCodeOnEngine);
            deadlines_hold_while_wakers_block();
            std::process::exit(0);
        }
        let child =
            child_process("promises::broken::wakers_on_the_deadline_thread_are_detected").output().unwrap();
        assert!(!child.status.success(), "the disabled rule was not detected");
        let output_text = String::from_utf8_lossy(&child.stderr).into_owned();
        let detected = ["not in time", "good.is_leader() && bad.is_leader()", "never: "];
        assert!(detected.iter().any(|how| output_text.contains(how)), "{output_text}");
    }
}

/// Hazard G26: an overrun hook that blocks delays no other deadline.
#[test]
fn a_hook_that_blocks_delays_no_other_deadline() {
    let store = MemoryStore::new();
    let gate = Gate::default();
    let hook = gate.clone();
    let (elector, link) = elector_with(&store, |config| {
        config.with_on_overrun(OnOverrun::Hook(Arc::new(move |_| hook.wait())))
    });
    let runtime = multi_thread_runtime();
    let (blocking, other) = runtime.block_on(async {
        (
            in_time(elector.campaign("blocking")).await.unwrap(),
            in_time(elector.campaign("other")).await.unwrap(),
        )
    });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    link.cut();
    let work = runtime.spawn(async move {
        blocking
            .run(async {
                while !stopped.load(SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
            })
            .await
    });
    let deadline = other.deadline();
    runtime.block_on(async {
        in_time(other.lost()).await;
        assert!(BootClock.now() <= deadline + SLACK);
    });
    until("the hook is called", || gate.waiters() > 0);
    link.heal();
    // Another session, and its deadline.
    let again = runtime.block_on(in_time(elector.campaign("again"))).unwrap();
    link.cut();
    let deadline = again.deadline();
    runtime.block_on(async {
        assert_eq!(in_time(again.lost()).await, LossReason::Deadline);
        assert!(BootClock.now() <= deadline + SLACK, "late by {:?}", BootClock.now().since(deadline));
    });
    stop.store(true, SeqCst);
    gate.open();
    runtime.block_on(in_time(work)).unwrap().unwrap();
}

/// Any executor can be used: the application needs no tokio runtime.
#[test]
fn campaigns_work_under_any_executor() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    futures::executor::block_on(async {
        let leadership = elector.campaign("e").await.unwrap();
        assert_eq!(leadership.run(async { 7 }).await, Ok(7));
        leadership.set_value("10.0.0.7").await.unwrap();
        assert_eq!(elector.leader("e").await.unwrap().unwrap().value, b"10.0.0.7");
        let mut leaders = elector.observe("e");
        assert!(futures::StreamExt::next(&mut leaders).await.unwrap().unwrap().is_some());
        leadership.resign().await.unwrap();
        assert!(futures::StreamExt::next(&mut leaders).await.unwrap().unwrap().is_none());
        elector.close().await;
    });
    assert_eq!(store.sessions().len(), 0);
}

/// The threads end when their elector and its leaderships are dropped.
#[test]
fn an_elector_that_is_dropped_leaves_no_thread() {
    let threads = || thread_count("tenure-");
    let store = MemoryStore::new();
    for held in [false, true] {
        let (elector, _) = elector(&store);
        let leadership = current_thread_runtime().block_on(in_time(elector.campaign("e"))).unwrap();
        // A thread sets its name itself, once it runs.
        until("the threads run", || threads() >= 4);
        let held = held.then_some(leadership.handle());
        drop(elector);
        assert!(leadership.is_leader(), "a leadership outlives its elector");
        drop(leadership);
        until("the session is closed", || store.sessions().is_empty());
        until("the engine has ended", || held.is_some() || threads() == 0);
        drop(held);
        until("all threads have ended", || threads() == 0);
    }
}
