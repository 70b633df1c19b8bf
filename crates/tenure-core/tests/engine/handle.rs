//! What a handle says about its leadership, and how it resigns it.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tenure_core::{
    BootInstant, Clock as _, Elector as _, ElectorExt as _, LeadershipState, LossReason, SimClock,
    memory::MemoryStore,
};

use crate::host::{
    Host, TTL, UNTIL_DEADLINE, UNTIL_STOP, assert_nothing_left, endless_work, sleep, until, within,
};

const SLACK: Duration = Duration::from_millis(10);

/// The deadline, the time until it, and the time until work must stop are three things.
#[tokio::test(start_paused = true)]
async fn work_must_stop_a_grace_period_before_the_deadline() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    let deadline = leadership.deadline();
    assert_eq!(deadline.since(host.clock.now()), leadership.remaining());
    assert_eq!(leadership.remaining() - leadership.grace_period(), leadership.valid_for());
    assert!(leadership.valid_for() <= UNTIL_STOP && leadership.valid_for() > UNTIL_STOP - SLACK);
    let LeadershipState::Active { deadline: until, valid_for, .. } = leadership.state() else {
        panic!("{:?}", leadership.state());
    };
    assert_eq!((until, valid_for), (deadline, leadership.valid_for()));

    sleep(leadership.valid_for() - Duration::from_millis(1)).await;
    assert!(leadership.is_leader() && leadership.valid_for() == Duration::from_millis(1));
    sleep(Duration::from_millis(1)).await;
    // Work is stopping: there is time left, but none to begin anything.
    assert!(!leadership.is_leader() && leadership.valid_for().is_zero());
    assert_eq!(leadership.remaining(), UNTIL_DEADLINE - UNTIL_STOP);
    assert!(matches!(
        leadership.state(),
        LeadershipState::Stopping { reason: LossReason::Deadline, deadline: until, .. } if until == deadline
    ));
    sleep(TTL * 3).await;
    assert!(leadership.remaining().is_zero() && leadership.valid_for().is_zero());
    assert!(matches!(
        leadership.state(),
        LeadershipState::Released { reason: LossReason::Deadline, confirmed: false, .. }
    ));
}

/// Work that asks for a longer grace period has less time.
#[tokio::test(start_paused = true)]
async fn the_longest_grace_period_counts() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let before = leadership.valid_for();
    let longer = Duration::from_secs(2);
    leadership.run_with_grace_period(longer, async {}).await.unwrap();
    assert_eq!(leadership.valid_for(), before - Duration::from_secs(1));
    assert_eq!(leadership.valid_for(), leadership.remaining() - longer);
}

/// With a parent, work must stop when the first of both grace periods begins.
#[tokio::test(start_paused = true)]
async fn the_parent_s_grace_period_counts() {
    let (groups, tops) = (MemoryStore::new(), MemoryStore::new());
    let clock = SimClock::new();
    let long = Duration::from_secs(3);
    let group = Host::with(&groups, "a", clock.clone(), |config| config.with_grace_period(long));
    let top = Host::with(&tops, "a", clock, |config| config);
    let parent = group.lead().await;
    let leadership = top.lead().await.with_parent(parent);
    let valid_for = leadership.valid_for();
    assert!(valid_for <= UNTIL_DEADLINE - long && valid_for > UNTIL_DEADLINE - long - SLACK, "{valid_for:?}");
    group.link.cut();
    sleep(valid_for - Duration::from_millis(1)).await;
    assert!(leadership.is_leader());
    sleep(Duration::from_millis(1)).await;
    assert!(!leadership.is_leader() && leadership.valid_for().is_zero());
}

/// A leadership can be resigned from anywhere, by its own work as well. The entry stays until the work has stopped and the
/// owner of the guard lets go.
#[tokio::test(start_paused = true)]
async fn work_can_resign_its_own_leadership() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let handle = leadership.handle();
    let work = async {
        let stop = handle.cancellation_token();
        handle.request_resign();
        handle.request_resign();
        stop.cancelled().await;
        assert!(!handle.is_leader());
        assert_eq!(store.entries("e").len(), 1, "the work goes on");
        "stopped"
    };
    assert_eq!(within(SLACK, leadership.run(work)).await, Ok("stopped"));
    assert!(matches!(
        handle.state(),
        LeadershipState::Stopping { reason: LossReason::Resigned, deadline, .. } if deadline != BootInstant::NEVER
    ));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.entries("e").len(), 1, "the guard is held");
    within(SLACK, leadership.resign()).await.unwrap();
    assert_eq!(store.entry_count(), 0);
    assert!(matches!(
        handle.state(),
        LeadershipState::Released { reason: LossReason::Resigned, confirmed: true, .. }
    ));
    handle.request_resign();
    assert_eq!(handle.loss(), Some(LossReason::Resigned));
}

/// A guard that is held, and work that does not stop, keep the entry until the deadline and no longer.
#[tokio::test(start_paused = true)]
async fn a_requested_resignation_is_over_by_the_deadline() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let (is_running, work) = endless_work(&leadership);
    sleep(Duration::from_secs(1)).await;
    let handle = leadership.handle();
    tokio::spawn(async move { handle.request_resign() }).await.unwrap();
    assert_eq!(within(SLACK, leadership.lost()).await, LossReason::Resigned);
    assert!(is_running.load(SeqCst) && !store.entries("e").is_empty());
    within(UNTIL_DEADLINE, until("the entry is gone", || store.entries("e").is_empty())).await;
    assert!(!is_running.load(SeqCst));
    assert!(work.await.unwrap().is_err());
    drop(leadership);
    within(SLACK, host.elector.close()).await;
    assert_nothing_left(&store).await;
}

/// Under `run_while_leader`, work that resigns is called again in the next term.
#[tokio::test(start_paused = true)]
async fn the_runner_campaigns_again_after_work_has_resigned() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let terms = AtomicUsize::new(0);
    let shutdown = until("it has led three times", || terms.load(SeqCst) == 3);
    let running = host.elector.run_while_leader("e", shutdown, |leadership| {
        terms.fetch_add(1, SeqCst);
        async move {
            leadership.request_resign();
            Ok(())
        }
    });
    within(TTL, running).await.unwrap();
    assert_eq!(store.entry_count(), 0);
}
