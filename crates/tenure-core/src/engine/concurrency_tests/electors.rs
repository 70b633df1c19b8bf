//! Whole electors with all their tasks, and threads that use and end a leadership in any order.

use std::{sync::Arc, time::Duration};

use shuttle::{
    Config as Shuttle, Runner,
    future::{JoinHandle, block_on, spawn},
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    thread,
};

use super::{
    harness::{Model, explore, fails_without},
    world::{ELECTION, World},
};
use crate::{Config, Elector, Leadership, LeadershipHandle, LossReason, failpoints::SafetyRule};

/// The number of schedules of each kind.
const SCHEDULES: usize = 25_000;
/// The number of priority changes in a schedule of [`PctScheduler`].
const PRIORITY_CHANGES: usize = 4;

/// Draws schedules at random: a random thread at each step, and by priorities that change a few times.
fn random_schedules(model: Model) {
    run_schedules(&model, RandomScheduler::new(SCHEDULES));
    run_schedules(&model, PctScheduler::new(PRIORITY_CHANGES, SCHEDULES));
}

fn run_schedules(model: &Model, scheduler: impl Scheduler + 'static) {
    let mut config = Shuttle::new();
    config.stack_size = 0x4_0000;
    // Shuttle warns of every ordering weaker than SeqCst: loom checks those.
    config.silence_warnings = true;
    let model = Arc::clone(model);
    Runner::new(scheduler, config).run(move || {
        // The in-memory store expires sessions by tokio's clock, which stands still here.
        let paused = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let paused = paused.unwrap();
        let _entered = paused.enter();
        model();
    });
}

/// Reads a leadership a few times: once it is lost, it stays lost for one reason.
fn check_repeatedly(handle: &LeadershipHandle) -> Option<LossReason> {
    let mut last = None;
    for _ in 0..4 {
        let loss = handle.loss();
        assert!(last.is_none() || last == loss, "the reason changed from {last:?} to {loss:?}");
        assert!(last.is_none() || !handle.is_leader(), "it leads again after its end");
        last = loss;
        thread::yield_now();
    }
    last
}

/// Starts the work of a leader.
fn spawn_work(leadership: &Leadership, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let handle = leadership.handle();
    spawn(async move { handle.run(work).await.unwrap_or_default() })
}

/// Hazards G5, G14: the guard is dropped or resigned while its session expires, its entry is deleted or its
/// elector is closed, and another candidate waits.
fn ended_from_all_sides(config: &Config) {
    let world = World::new();
    let (one, other) = (world.elector(config, "a"), world.elector(config, "b"));
    let leadership = block_on(one.campaign(ELECTION)).unwrap();
    let work = spawn_work(&leadership, world.work(&leadership));
    let (handle, token) = (leadership.handle(), leadership.fencing_token());
    let next = spawn({
        let other = Arc::clone(&other);
        async move { other.campaign(ELECTION).await.unwrap() }
    });
    let observer = thread::spawn({
        let handle = handle.clone();
        move || check_repeatedly(&handle)
    });
    let interference = thread::spawn({
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
                leadership.request_resign();
                assert!(!handle.is_leader(), "it leads after its resignation");
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
    let seen = observer.join().unwrap();
    interference.join().unwrap();
    block_on(work).unwrap();
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
    world.assert_nothing_left();
}

#[test]
fn a_leadership_that_ends_from_all_sides_ends_once() {
    let config = Config::new();
    explore("a_leadership_that_ends_from_all_sides_ends_once", random_schedules, move || {
        ended_from_all_sides(&config)
    });
}

#[test]
fn an_entry_removed_beside_its_work_is_noticed() {
    let config = Config::new();
    fails_without(SafetyRule::StopWorkBeforeLeaving, || {
        explore("disabled", random_schedules, move || ended_from_all_sides(&config));
    });
}

#[test]
fn a_session_closed_beside_its_work_is_noticed() {
    let config = Config::new();
    fails_without(SafetyRule::StopWorkBeforeClosing, || {
        explore("disabled", random_schedules, move || ended_from_all_sides(&config));
    });
}

/// Hazard G10: a campaign is dropped at any moment, also just as it wins.
fn campaigns_given_up(config: &Config) {
    let world = World::new();
    let (one, other) = (world.elector(config, "a"), world.elector(config, "b"));
    let campaigns = [&one, &other, &one].map(|elector| {
        let elector = Arc::clone(elector);
        let campaign = spawn(async move { elector.campaign(ELECTION).await });
        let steps = thread_rng().gen_range(0..12);
        thread::spawn(move || {
            for _ in 0..steps {
                thread::yield_now();
            }
            campaign.abort();
            drop(block_on(campaign));
        })
    });
    // Waits in the same queue: no campaign that was dropped may hold it up.
    let last = block_on(other.campaign(ELECTION)).unwrap();
    campaigns.into_iter().for_each(|campaign| campaign.join().unwrap());
    assert!(last.is_leader());
    drop(last);
    close(&world, [&one, &other]);
}

#[test]
fn a_campaign_given_up_at_any_moment_leaves_nothing() {
    let config = Config::new();
    explore("a_campaign_given_up_at_any_moment_leaves_nothing", random_schedules, move || {
        campaigns_given_up(&config)
    });
}

/// Hazards G1, G9: time passes while heartbeats are in flight. Once another candidate leads, checks of the
/// earlier leader fail.
fn overtaken_by_time(config: &Config) {
    let world = World::new();
    let (one, other) = (world.elector(config, "a"), world.elector(config, "b"));
    let leadership = block_on(one.campaign(ELECTION)).unwrap();
    let handle = leadership.handle();
    // Not `World::work`: that would have to be polled on time, and here much time passes between two polls.
    let stop = handle.cancellation_token();
    let work = spawn_work(&leadership, async move { stop.cancelled().await });
    let time = thread::spawn({
        let world = world.clone();
        move || {
            for _ in 0..12 {
                world.advance(Duration::from_millis(thread_rng().gen_range(500..3_000)));
                thread::yield_now();
            }
        }
    });
    let next = spawn({
        let (handle, other) = (handle.clone(), Arc::clone(&other));
        async move {
            let next = other.campaign(ELECTION).await.unwrap();
            assert!(!(handle.is_leader() && next.is_leader()), "two candidates lead");
        }
    });
    let observer = thread::spawn(move || check_repeatedly(&handle));
    let seen = observer.join().unwrap();
    time.join().unwrap();
    assert!(seen.is_none() || leadership.loss() == seen);
    drop(leadership);
    block_on(work).unwrap();
    block_on(next).unwrap();
    close(&world, [&one, &other]);
}

#[test]
fn a_leader_overtaken_by_time_leads_no_more() {
    let config = Config::new();
    explore("a_leader_overtaken_by_time_leads_no_more", random_schedules, move || overtaken_by_time(&config));
}

#[test]
fn a_check_that_ignores_the_clock_is_noticed() {
    let config = Config::new();
    fails_without(SafetyRule::CheckClock, || {
        explore("disabled", random_schedules, move || overtaken_by_time(&config));
    });
}
