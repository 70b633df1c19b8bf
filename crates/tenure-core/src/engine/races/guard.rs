//! Whole electors, with all their tasks, and threads that do with the guard what they like.

use std::{sync::Arc, time::Duration};

use shuttle::{
    Config as Shuttle, Runner,
    future::{JoinHandle, block_on, spawn},
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    thread,
};

use super::{
    host::{ELECTION, World},
    stage::{Model, counted, notices},
};
use crate::{Config, Elector, Leadership, LeadershipHandle, LossReason, failpoints::SafetyRule};

/// So many schedules of each kind.
const SCHEDULES: usize = 25_000;
/// In a schedule drawn by priorities, the number of times that these change.
const CHANGES: usize = 4;

/// Schedules drawn at random: at each step, and by priorities that change a few times.
fn schedules(model: Model) {
    draw(&model, RandomScheduler::new(SCHEDULES));
    draw(&model, PctScheduler::new(CHANGES, SCHEDULES));
}

fn draw(model: &Model, scheduler: impl Scheduler + 'static) {
    let mut config = Shuttle::new();
    config.stack_size = 0x4_0000;
    // It would warn of every ordering but the strongest: those are loom's part.
    config.silence_warnings = true;
    let model = Arc::clone(model);
    Runner::new(scheduler, config).run(move || {
        // The in-memory store waits for sessions to expire by tokio's clock, which stands still here.
        let paused = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let paused = paused.unwrap();
        let _entered = paused.enter();
        model();
    });
}

/// Looks at a leadership from another thread: a no stays a no, for one reason.
fn look_on(handle: &LeadershipHandle) -> Option<LossReason> {
    let mut told = None;
    for _ in 0..4 {
        let seen = handle.loss();
        assert!(told.is_none() || told == seen, "{told:?}, and then {seen:?}");
        assert!(told.is_none() || !handle.is_leader(), "led no more, and leads again");
        told = seen;
        thread::yield_now();
    }
    told
}

/// Starts the work of a leader.
fn start(leadership: &Leadership, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let handle = leadership.handle();
    spawn(async move { handle.run(work).await.unwrap_or_default() })
}

/// Hazards G5, G14: the guard is dropped or resigned while its session expires, its entry is deleted or its
/// elector is closed, and somebody else waits to lead.
fn ended_from_all_sides(config: &Config) {
    let world = World::new();
    let (one, other) = (world.elector(config, "a"), world.elector(config, "b"));
    let leadership = block_on(one.campaign(ELECTION)).unwrap();
    let working = start(&leadership, world.work(&leadership));
    let (handle, token) = (leadership.handle(), leadership.fencing_token());
    let next = spawn({
        let other = Arc::clone(&other);
        async move { other.campaign(ELECTION).await.unwrap() }
    });
    let onlooker = thread::spawn({
        let handle = handle.clone();
        move || look_on(&handle)
    });
    let fate = thread::spawn({
        let (world, one) = (world.clone(), Arc::clone(&one));
        move || match thread_rng().gen_range(0..4) {
            0 => world.expire(token),
            1 => drop(world.store.delete_entry(ELECTION, token.get())),
            2 => block_on(one.close()),
            _ => {}
        }
    });
    let ending = thread::spawn(move || {
        let handle = leadership.handle();
        match thread_rng().gen_range(0..3) {
            0 => drop(leadership),
            1 => {
                leadership.begin_resign();
                assert!(!handle.is_leader(), "resigned, and leads");
            }
            _ => {
                let outcome = block_on(leadership.resign());
                assert_eq!(outcome.is_ok(), handle.loss() == Some(LossReason::Resigned));
            }
        }
        assert!(!handle.is_leader() && handle.cancellation_token().is_cancelled());
        handle.loss()
    });
    let ended = ending.join().unwrap();
    let seen = onlooker.join().unwrap();
    fate.join().unwrap();
    block_on(working).unwrap();
    assert!(ended.is_some() && ended == handle.loss() && (seen.is_none() || seen == ended));
    let successor = block_on(next).unwrap();
    assert!(successor.fencing_token() > token && successor.is_leader() && !handle.is_leader());
    drop(successor);
    close(&world, [&one, &other]);
}

fn close(world: &World, electors: [&Arc<impl Elector + 'static>; 2]) {
    for elector in electors {
        block_on(elector.close());
    }
    world.nothing_left();
}

#[test]
fn a_leadership_that_ends_from_all_sides_ends_once() {
    let config = Config::new();
    counted("a_leadership_that_ends_from_all_sides_ends_once", schedules, move || {
        ended_from_all_sides(&config)
    });
}

#[test]
fn an_entry_removed_beside_its_work_is_noticed() {
    let config = Config::new();
    notices(SafetyRule::StopWorkBeforeLeaving, || {
        counted("broken", schedules, move || ended_from_all_sides(&config));
    });
}

#[test]
fn a_session_closed_beside_its_work_is_noticed() {
    let config = Config::new();
    notices(SafetyRule::StopWorkBeforeClosing, || {
        counted("broken", schedules, move || ended_from_all_sides(&config));
    });
}

/// Hazard G10: a campaign is dropped at any moment, also just as it wins.
fn given_up(config: &Config) {
    let world = World::new();
    let (one, other) = (world.elector(config, "a"), world.elector(config, "b"));
    let campaigns = [&one, &other, &one].map(|elector| {
        let elector = Arc::clone(elector);
        let campaign = spawn(async move { elector.campaign(ELECTION).await });
        let patience = thread_rng().gen_range(0..12);
        thread::spawn(move || {
            for _ in 0..patience {
                thread::yield_now();
            }
            campaign.abort();
            drop(block_on(campaign));
        })
    });
    // In the same line: nobody who has left may hold it up.
    let last = block_on(other.campaign(ELECTION)).unwrap();
    campaigns.into_iter().for_each(|campaign| campaign.join().unwrap());
    assert!(last.is_leader());
    drop(last);
    close(&world, [&one, &other]);
}

#[test]
fn a_campaign_given_up_at_any_moment_leaves_nothing() {
    let config = Config::new();
    counted("a_campaign_given_up_at_any_moment_leaves_nothing", schedules, move || given_up(&config));
}

/// Hazards G1, G9: time passes while heartbeats are on their way. Once somebody else leads, whoever led before is told no.
fn overtaken_by_time(config: &Config) {
    let world = World::new();
    let (one, other) = (world.elector(config, "a"), world.elector(config, "b"));
    let leadership = block_on(one.campaign(ELECTION)).unwrap();
    let handle = leadership.handle();
    // Not as the probe_entry's: it would have to be polled in time, and here time flies between two polls.
    let stop = handle.cancellation_token();
    let working = start(&leadership, async move { stop.cancelled().await });
    let time = thread::spawn({
        let world = world.clone();
        move || {
            for _ in 0..12 {
                world.pass(Duration::from_millis(thread_rng().gen_range(500..3_000)));
                thread::yield_now();
            }
        }
    });
    let next = spawn({
        let (handle, other) = (handle.clone(), Arc::clone(&other));
        async move {
            let next = other.campaign(ELECTION).await.unwrap();
            assert!(!(handle.is_leader() && next.is_leader()), "two lead");
        }
    });
    let onlooker = thread::spawn(move || look_on(&handle));
    let seen = onlooker.join().unwrap();
    time.join().unwrap();
    assert!(seen.is_none() || leadership.loss() == seen);
    drop(leadership);
    block_on(working).unwrap();
    block_on(next).unwrap();
    close(&world, [&one, &other]);
}

#[test]
fn whoever_was_overtaken_by_time_leads_no_more() {
    let config = Config::new();
    counted("whoever_was_overtaken_by_time_leads_no_more", schedules, move || overtaken_by_time(&config));
}

#[test]
fn a_clock_that_nobody_reads_is_noticed() {
    let config = Config::new();
    notices(SafetyRule::CheckClock, || {
        counted("broken", schedules, move || overtaken_by_time(&config));
    });
}
