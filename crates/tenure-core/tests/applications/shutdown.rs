//! Shutdowns in unusual situations: after an outage, inside work, or when the engine has ended.

use std::{
    pin::pin,
    sync::{Arc, Barrier, Mutex},
    thread,
    time::Duration,
};

use tenure_core::{
    CandidateId, Config, Elector, ElectorExt, Engine, Error, Hierarchy, LossReason, SimClock, StoreElector,
    block_on::{block_on, block_on_timeout},
    memory::{Delivery, Direction, Link, MemoryStore, Op},
};
use tokio::time::{Instant, sleep};

use crate::harness::{TEST_TIMEOUT, elector, in_time, multi_thread_runtime, thread_count, until};

/// The TTL of electors in simulated time.
const SIMULATED_TTL: Duration = Duration::from_secs(10);

fn simulated_elector(store: &MemoryStore, id: &str, ttl: Duration) -> (Arc<StoreElector>, Link) {
    let backend = store.backend();
    let link = backend.link().clone();
    let config = Config::new().with_ttl(ttl).with_id(CandidateId::new(id).unwrap());
    let elector = StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new())).unwrap();
    (Arc::new(elector), link)
}

async fn until_two_have_entered(store: &MemoryStore) {
    while store.entries("e").len() < 2 {
        sleep(Duration::from_millis(5)).await;
    }
}

/// `resign` of a lost leadership returns the loss reason, even after its elector was closed and dropped.
#[test]
fn a_resignation_after_the_engine_has_ended_returns_the_loss_reason() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    runtime.block_on(in_time(elector.close()));
    assert!(store.sessions().is_empty());
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    drop(elector);
    until("the engine has ended", || thread_count("tenure-engine") == 0);
    let outcome = runtime.block_on(in_time(leadership.resign()));
    assert!(matches!(&outcome, Err(Error::Lost(lost)) if lost.reason == LossReason::Closed), "{outcome:?}");
}

/// Hazard G29: when `campaign_until` returns `None`, it has withdrawn or has waited for the shutdown timeout; also when the session
/// ended just before the campaign was cancelled.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_after_its_session_ended_has_left() {
    let store = MemoryStore::new();
    let (a, _) = simulated_elector(&store, "a", SIMULATED_TTL);
    let (b, link) = simulated_elector(&store, "b", SIMULATED_TTL);
    let _leadership = a.campaign("e").await.unwrap();
    let cancel = async {
        until_two_have_entered(&store).await;
        link.cut();
        // The window of the session closes after at most 8 s. The store keeps the session for 10 s.
        sleep(Duration::from_millis(8_200)).await;
    };
    let from = Instant::now();
    let outcome = b.campaign_until("e", Box::pin(cancel)).await.unwrap();
    assert!(outcome.is_none());
    let waited = from.elapsed();
    assert!(
        store.entries("e").len() == 1 || waited > Duration::from_secs(13),
        "its entry still exists after {waited:?}"
    );
}

/// Hazard G29: the same when the session ends while the candidate withdraws.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_before_its_session_ends_has_left() {
    let store = MemoryStore::new();
    let (a, _) = simulated_elector(&store, "a", SIMULATED_TTL);
    let (b, link) = simulated_elector(&store, "b", SIMULATED_TTL);
    let _leadership = a.campaign("e").await.unwrap();
    let cancel = async {
        until_two_have_entered(&store).await;
        link.cut();
        sleep(Duration::from_millis(7_000)).await;
    };
    let from = Instant::now();
    assert!(b.campaign_until("e", Box::pin(cancel)).await.unwrap().is_none());
    let waited = from.elapsed();
    assert!(
        store.entries("e").len() == 1 || waited > Duration::from_millis(11_900),
        "its entry still exists after {waited:?}"
    );
}

/// Hazard G30: the shutdown of a candidate of a hierarchy takes no longer than the shutdown timeout.
#[tokio::test(start_paused = true)]
async fn the_shutdown_of_a_waiting_hierarchy_is_bounded() {
    let store = MemoryStore::new();
    let (a, _) = simulated_elector(&store, "a", SIMULATED_TTL);
    let _leadership = a.campaign("e").await.unwrap();
    // The TTL is so long that no session ends meanwhile.
    let (b, link) = simulated_elector(&store, "b", Duration::from_secs(120));
    let group = Hierarchy::new(b as Arc<dyn Elector>, "g").unwrap();
    let begun = Mutex::new(None);
    let shutdown = async {
        until_two_have_entered(&store).await;
        link.cut();
        *begun.lock().unwrap() = Some(Instant::now());
    };
    group.run_while_leader("e", shutdown, |_| async { panic!("it never leads") }).await.unwrap();
    let took = begun.lock().unwrap().unwrap().elapsed();
    assert!(took <= Config::DEFAULT_SHUTDOWN_TIMEOUT + Duration::from_millis(500), "{took:?}");
}

/// Hazard G30: a cancelled campaign waits no longer than the shutdown timeout, also when it wins late.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_that_wins_late_is_bounded() {
    let store = MemoryStore::new();
    let (elector, link) = simulated_elector(&store, "a", Duration::from_secs(60));
    link.set(&[Op::Enter], Direction::Response, Delivery::Delay(Duration::from_millis(4_900)));
    link.set(&[Op::Leave], Direction::Request, Delivery::Drop);
    let from = Instant::now();
    let cancel = sleep(Duration::from_millis(10));
    assert!(elector.campaign_until("e", Box::pin(cancel)).await.unwrap().is_none());
    let took = from.elapsed();
    assert!(took <= Config::DEFAULT_SHUTDOWN_TIMEOUT + Duration::from_millis(500), "{took:?}");
}

/// Work of a parent leadership that resigns the child does not wait for itself.
#[tokio::test(start_paused = true)]
async fn work_of_a_parent_does_not_wait_for_itself() {
    let store = MemoryStore::new();
    let (a, _) = simulated_elector(&store, "a", SIMULATED_TTL);
    let parent = a.campaign("parent").await.unwrap();
    let handle = parent.handle();
    let child = a.campaign("child").await.unwrap().with_parent(parent);
    let from = Instant::now();
    let outcome = handle.run(child.resign()).await;
    assert!(from.elapsed() < Duration::from_secs(1), "{outcome:?} after {:?}", from.elapsed());
}

/// Work of a hierarchy that closes the hierarchy does not wait for itself.
#[tokio::test(start_paused = true)]
async fn closing_a_hierarchy_inside_its_work_does_not_wait() {
    let store = MemoryStore::new();
    let (a, _) = simulated_elector(&store, "a", SIMULATED_TTL);
    let (b, _) = simulated_elector(&store, "b", SIMULATED_TTL);
    let group = Hierarchy::new(a as Arc<dyn Elector>, "g").unwrap().with_group_elector(b as Arc<dyn Elector>);
    let leadership = group.campaign("e").await.unwrap();
    let from = Instant::now();
    let outcome = leadership.run(group.close()).await;
    assert!(from.elapsed() < Duration::from_secs(1), "{outcome:?} after {:?}", from.elapsed());
}

/// A campaign that is called while another thread closes the elector returns. (The message with which it was called could stay in
/// the channel to the engine, together with the place for its answer. One in some thousand such campaigns never returned.)
#[test]
fn a_campaign_called_during_close_returns() {
    let engine = Engine::start().unwrap();
    let store = MemoryStore::new();
    for round in 0..4_000_u32 {
        let config = Config::new().with_engine(engine.clone());
        let elector = Arc::new(StoreElector::new(Arc::new(store.backend()), config).unwrap());
        let caller = Arc::clone(&elector);
        let begin = Arc::new(Barrier::new(2));
        let begun = Arc::clone(&begin);
        let campaign = thread::spawn(move || {
            begun.wait();
            for _ in 0..(round % 200) * 20 {
                std::hint::spin_loop();
            }
            let campaign = pin!(caller.campaign("e"));
            assert!(block_on_timeout(campaign, TEST_TIMEOUT).unwrap().is_some(), "not in time");
        });
        begin.wait();
        block_on(elector.close()).unwrap();
        campaign.join().unwrap();
    }
}
