//! The promises of the engine, whatever runtimes, logs and wakers do.

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
    BootClock, Clock, Elector, Error, Leadership, LossReason, OnOverrun, StoreElector, memory::MemoryStore,
};
use tracing::Level;

use crate::stage::{
    CHILD, Gate, PATIENCE, SLACK, TTL, Ticks, again, elector, listen, now, one_thread, poll_with,
    several_threads, signal_of, soon, until, waker, with,
};

/// Cuts a leader off whose work listens to nothing, and lets another elector lead. The work does nothing once that leads.
fn is_overtaken_in_time() {
    let store = MemoryStore::new();
    let ((one, link), (other, _)) = (elector(&store), elector(&store));
    let runtime = several_threads();
    runtime.block_on(async {
        let leadership = soon(one.campaign("e")).await.unwrap();
        let ticks = Ticks::default();
        let (handle, work) = (leadership.handle(), ticks.clone().work());
        let working = tokio::spawn(async move { handle.run(work).await });
        let next = tokio::spawn(async move { other.campaign("e").await });
        link.cut();
        let next = soon(next).await.unwrap().unwrap();
        let led = now();
        soon(working).await.unwrap().unwrap_err();
        assert!(
            ticks.last() < led,
            "the work went on for {} ms beside the next leader",
            (ticks.last() - led) / 1_000_000
        );
        assert!(next.is_leader() && !leadership.is_leader());
    });
    // Work may be what blocks: nobody waits for it here.
    runtime.shutdown_background();
}

/// Hazard G26, case 1: a log that takes nothing more costs neither heartbeats nor deadlines.
#[test]
fn a_log_that_blocks_delays_no_deadline() {
    let gate = Gate::default();
    let log = gate.clone();
    listen(move |_| log.pass());
    let store = MemoryStore::new();
    let (calm, _) = elector(&store);
    let leads = several_threads().block_on(soon(calm.campaign("calm"))).unwrap();
    until("the log blocks", || gate.blocked() > 0);
    is_overtaken_in_time();
    // Meanwhile its heartbeats went on.
    assert!(leads.is_leader() && leads.remaining() > TTL / 4);
    gate.open();
}

/// Hazard G26, case 2: a log that panics ends nothing.
#[test]
fn a_log_that_panics_ends_nothing() {
    listen(|level| assert!(level > Level::WARN, "a log with a bug"));
    is_overtaken_in_time();
    is_overtaken_in_time();
}

/// Hazard G26, case 1: with a log that takes nothing more, the process is aborted at the deadline of work that blocks.
#[test]
fn an_overrun_aborts_on_time_whatever_the_log_does() {
    if std::env::var_os(CHILD).is_some() {
        overrun_behind_a_blocked_log();
    }
    let begun = Instant::now();
    let child = again("promises::an_overrun_aborts_on_time_whatever_the_log_does").output().unwrap();
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert_eq!(signal_of(&child.status), Some(6), "{said}{}", String::from_utf8_lossy(&child.stderr));
    let at = |what: &str| {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(what))
            .unwrap_or_else(|| panic!("no {what} in {said}"));
        line.trim().parse::<u64>().unwrap()
    };
    // The work notes every millisecond that it still runs.
    let last = said.lines().filter_map(|line| line.strip_prefix("tick ")).next_back().unwrap();
    let last: u64 = last.parse().unwrap();
    assert!(
        last <= at("deadline ") + 100_000_000,
        "worked on for {} ms",
        last.saturating_sub(at("deadline ")) / 1_000_000
    );
    assert!(took < PATIENCE && !said.contains("handler"), "{said}");
}

fn overrun_behind_a_blocked_log() -> ! {
    let gate = Gate::default();
    let log = gate.clone();
    listen(move |_| log.pass());
    let store = MemoryStore::new();
    let (elector, link) = with(&store, |config| config.with_on_overrun(OnOverrun::Abort));
    let runtime = one_thread();
    runtime.block_on(async {
        let leadership = soon(elector.campaign("e")).await.unwrap();
        link.cut();
        println!("\ndeadline {}", leadership.deadline().as_nanos());
        let outcome = leadership
            .run(async {
                let begun = Instant::now();
                while begun.elapsed() < PATIENCE {
                    println!("tick {}", now());
                    thread::sleep(Duration::from_millis(1));
                }
            })
            .await;
        panic!("nobody aborted: {outcome:?}");
    })
}

/// Hazard G27, case 3: a campaign that a second runtime has given up leaves nothing, and ends nothing of the first's.
#[test]
fn a_campaign_of_a_runtime_that_idles_or_is_gone_leaves_nothing() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let first = several_threads();
    let held = first.block_on(soon(elector.campaign("held"))).unwrap();
    let (rival, _) = with(&store, |config| config);
    let blocking = first.block_on(soon(rival.campaign("wanted"))).unwrap();
    let token = held.fencing_token();
    for drops in [false, true] {
        let second = one_thread();
        let given_up = second.block_on(async {
            tokio::time::timeout(Duration::from_millis(100), elector.campaign("wanted")).await
        });
        assert!(given_up.is_err());
        // It is not driven any more, or not there.
        let second = (!drops).then_some(second);
        until("the entry is gone", || store.entries("wanted").len() == 1);
        drop(second);
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let third = one_thread();
            third.block_on(async {
                let campaign = elector.campaign("wanted");
                let mut campaign = pin!(campaign);
                assert!(futures::poll!(campaign.as_mut()).is_pending());
                until("it stands in line", || store.entries("wanted").len() == 2);
            });
        });
    });
    until("the entry is gone", || store.entries("wanted").len() == 1);
    first.block_on(soon(blocking.resign())).unwrap();
    let wanted = first.block_on(soon(elector.campaign("wanted"))).unwrap();
    assert!(wanted.is_leader() && held.is_leader() && held.fencing_token() == token);
}

/// Hazard G27, case 4: leaderships are joined on a runtime that is dropped; both stay until they are resigned.
#[test]
fn joined_leaderships_outlive_the_runtime_that_joined_them() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let first = several_threads();
    let (parent, child) = first.block_on(async {
        (soon(elector.campaign("parent")).await.unwrap(), soon(elector.campaign("child")).await.unwrap())
    });
    let parents = parent.handle();
    let second = one_thread();
    let child = second.block_on(async { child.with_parent(parent) });
    drop(second);
    let lasts = BootClock.now() + TTL * 2;
    first.block_on(BootClock.sleep_until(lasts));
    assert!(child.is_leader() && parents.is_leader());
    first.block_on(soon(child.resign())).unwrap();
    assert_eq!(parents.loss(), Some(LossReason::Dropped));
    assert_eq!(store.entry_count(), 0);
}

/// Hazard G28, case 5: the runtime of the first campaign is shut down at any moment. Nobody waits for ever, and no session is
/// left that nobody keeps.
#[test]
fn a_runtime_shut_down_at_any_moment_leaves_nothing() {
    for tenths in 0..400_u32 {
        let store = MemoryStore::new();
        let (elector, _) = elector(&store);
        let runtime = several_threads();
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
        let other = one_thread();
        other.block_on(async {
            if let Ok(leadership) = leads.try_recv() {
                soon(leadership.resign()).await.unwrap();
            }
            drop(leads);
            let again = soon(elector.campaign("e")).await.unwrap();
            assert!(again.is_leader());
            soon(again.resign()).await.unwrap();
            soon(elector.close()).await;
        });
        assert_eq!((store.entry_count(), store.sessions().len()), (0, 0));
    }
}

/// Hazard G26, case 16: wakers that block or panic, wherever the engine wakes somebody, cost neither heartbeats nor other
/// deadlines.
#[test]
fn wakers_that_block_or_panic_delay_nothing_else() {
    overtaken_while_a_waker_blocks();
}

fn overtaken_while_a_waker_blocks() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let gate = Gate::default();
    let (blocks, panics) = (
        {
            let gate = gate.clone();
            waker(move || gate.pass())
        },
        waker(|| panic!("a waker with a bug")),
    );
    let bad = runtime.block_on(soon(elector.campaign("bad"))).unwrap();
    let good = runtime.block_on(soon(elector.campaign("good"))).unwrap();

    // Somebody waits for the end of a leadership, for one's turn, for news and for an answer.
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
    for (n, future) in futures.iter_mut().enumerate() {
        let waker = if n % 2 == 0 { &blocks } else { &panics };
        let _ = poll_with(future.as_mut(), waker);
    }
    until("the engine has woken one that blocks", || gate.blocked() > 0);
    let children: Vec<_> = (0..10_000).map(|_| token.child_token()).collect();

    // The engine is not waiting for any of them.
    let beats = BootClock.now() + TTL * 2;
    runtime.block_on(BootClock.sleep_until(beats));
    assert!(good.is_leader() && bad.is_leader());
    runtime.block_on(async {
        let ticks = Ticks::default();
        let (handle, work) = (good.handle(), ticks.clone().work());
        let working = tokio::spawn(async move { handle.run(work).await });
        link.cut();
        assert_eq!(soon(good.lost()).await, LossReason::Deadline);
        let deadline = good.deadline().as_nanos();
        soon(working).await.unwrap().unwrap_err();
        assert!(ticks.last() <= deadline, "the other leadership's work went on");
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

/// Rules broken on purpose; `cargo xtask races` runs these.
#[cfg(tenure_mutants)]
mod broken {
    use super::overtaken_while_a_waker_blocks;
    use crate::stage::{CHILD, again};
    use tenure_core::failpoints::{SafetyRule, disable_everywhere};

    /// With a user's waker called on the thread that enforces deadlines, a waker that blocks keeps it from the others.
    #[test]
    fn wakers_on_the_deadlines_thread_are_noticed() {
        if std::env::var_os(CHILD).is_some() {
            disable_everywhere(SafetyRule::NoUserCodeOnEngine);
            overtaken_while_a_waker_blocks();
            std::process::exit(0);
        }
        let child = again("promises::broken::wakers_on_the_deadlines_thread_are_noticed").output().unwrap();
        assert!(!child.status.success(), "nobody noticed");
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        let noticed = ["not in time", "good.is_leader() && bad.is_leader()", "never: "];
        assert!(noticed.iter().any(|how| said.contains(how)), "{said}");
    }
}

/// Hazard G26: an overrun hook that blocks delays no other deadline, and one overrun is reported once.
#[test]
fn a_hook_that_blocks_delays_no_other_deadline() {
    let store = MemoryStore::new();
    let gate = Gate::default();
    let hook = gate.clone();
    let (elector, link) =
        with(&store, |config| config.with_on_overrun(OnOverrun::Hook(Arc::new(move |_| hook.pass()))));
    let runtime = several_threads();
    let (blocking, other) = runtime.block_on(async {
        (soon(elector.campaign("blocking")).await.unwrap(), soon(elector.campaign("other")).await.unwrap())
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
        soon(other.lost()).await;
        assert!(BootClock.now() <= deadline + SLACK);
    });
    until("the hook is called", || gate.blocked() > 0);
    link.heal();
    // Another session, and its deadline.
    let again = runtime.block_on(soon(elector.campaign("again"))).unwrap();
    link.cut();
    let deadline = again.deadline();
    runtime.block_on(async {
        assert_eq!(soon(again.lost()).await, LossReason::Deadline);
        assert!(BootClock.now() <= deadline + SLACK, "late by {:?}", BootClock.now().since(deadline));
    });
    stop.store(true, SeqCst);
    gate.open();
    runtime.block_on(soon(work)).unwrap().unwrap();
}

/// The engine serves any executor: its promises need nothing of tokio's in the application.
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

/// The threads end with their elector.
#[test]
fn an_elector_that_is_dropped_leaves_no_thread() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("tenure-")).count()
    };
    let store = MemoryStore::new();
    for held in [false, true] {
        let (elector, _) = elector(&store);
        let leadership = one_thread().block_on(soon(elector.campaign("e"))).unwrap();
        assert!(threads() >= 4, "{} threads", threads());
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
