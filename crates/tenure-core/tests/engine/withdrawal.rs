//! Nothing stays behind: promise L2.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Elector, Error, LossReason, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op},
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    faulty::{self, Call},
    host::{Host, TTL, nothing_left, pass, until, within},
};

/// Hazard G10: a campaign dropped while it waits its turn.
#[tokio::test(start_paused = true)]
async fn a_waiting_campaign_that_is_dropped_withdraws() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _leadership = a.lead().await;
    let waiting = b.wait_in_line(&store).await;
    waiting.abort();
    until("the entry is gone", || store.entries("e").len() == 1).await;
}

/// Hazards G10, Z10: a campaign dropped at every moment around its request to enter, with every
/// way in which the request or its answer can go astray: no entry stays once the line is whole.
#[tokio::test(start_paused = true)]
async fn a_campaign_dropped_while_entering_leaves_nothing() {
    let second = Duration::from_secs(1);
    for side in [Direction::Request, Direction::Response] {
        for path in [Delivery::Delay(second), Delivery::Hold, Delivery::Drop, Delivery::Fail] {
            for patience in [Duration::ZERO, second / 2, second * 2, second * 8] {
                let store = MemoryStore::new();
                let host = Host::new(&store, "a");
                // A session of its own first, so that only entering is disturbed.
                host.elector.campaign("first").await.unwrap().resign().await.unwrap();
                host.link.set(&[Op::Enter], side, path);
                let campaign = tokio::time::timeout(patience, host.elector.campaign("e")).await;
                host.link.heal();
                drop(campaign);
                // Also what was held back has been carried out by now.
                pass(TTL * 2).await;
                assert!(store.entries("e").is_empty(), "{side:?} {path:?} after {patience:?}");
                assert_eq!(store.sessions().len(), 1, "the session is kept for the next campaign");
                let leadership = within(TTL, host.elector.campaign("e")).await.unwrap();
                assert!(leadership.is_leader());
                drop(leadership);
                host.elector.close().await;
                nothing_left(&store).await;
            }
        }
    }
}

/// Hazard Z10: a request that was given up is carried out long after; the ghost is found and removed.
#[tokio::test(start_paused = true)]
async fn a_ghost_of_a_withdrawn_request_is_buried() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    assert!(tokio::time::timeout(Duration::from_secs(6), host.elector.campaign("e")).await.is_err());
    pass(TTL * 3).await;
    assert!(store.entries("e").is_empty());
    host.link.heal();
    until("the ghosts have come", || !store.entries("e").is_empty()).await;
    until("the ghosts are gone", || store.entries("e").is_empty()).await;
}

/// Hazard G14: an answer that comes after its session has ended elects nobody.
#[tokio::test(start_paused = true)]
async fn an_answer_of_an_older_session_is_dropped() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Response, Delivery::Hold);
    let elector = Arc::clone(&host.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
    until("the entry is made", || !store.entries("e").is_empty()).await;
    store.expire_session(store.sessions()[0]);
    pass(TTL).await;
    host.link.heal();
    let leadership = within(TTL, campaign).await.unwrap();
    assert!(leadership.is_leader());
    assert_eq!(store.entries("e").len(), 1);
    assert_eq!(store.entries("e")[0].revision, leadership.fencing_token().get());
}

/// Hazards G13, Z4, Z5: a waiting candidate whose entry was deleted enters again, and never leads without one.
#[tokio::test(start_paused = true)]
async fn a_waiting_candidate_without_an_entry_enters_again() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.wait_in_line(&store).await;
    let old = store.entries("e")[1].revision;
    store.delete_entry("e", old);
    until("it has entered again", || store.entries("e").len() == 2).await;
    first.resign().await.unwrap();
    let second = within(TTL, next).await.unwrap();
    assert!(second.fencing_token().get() > old);
    assert_eq!(store.entries("e")[0].revision, second.fencing_token().get());
}

/// Hazard G13: the waiter's session is ended at the same moment as the leader resigns.
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_session_ended_does_not_win_without_an_entry() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.wait_in_line(&store).await;
    let session = store.entries("e")[1].session;
    store.expire_session(session);
    first.resign().await.unwrap();
    let second = within(TTL * 2, next).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(store.entries("e").len(), 1);
    assert_ne!(store.entries("e")[0].session, session);
}

/// Hazard G11: the entry cannot be deleted during an outage; it is once the store is back.
#[tokio::test(start_paused = true)]
async fn a_resignation_during_an_outage_is_carried_out_after_it() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_shutdown_timeout(TTL * 6));
    let leadership = host.lead().await;
    host.link.set(&[Op::Leave], Direction::Request, Delivery::Fail);
    let resigning = tokio::spawn(leadership.resign());
    pass(TTL * 3).await;
    assert!(
        !resigning.is_finished() && store.entries("e").len() == 1,
        "the session lives on, and so does the entry"
    );
    host.link.heal();
    within(TTL, resigning).await.unwrap().unwrap();
    assert!(store.entries("e").is_empty());
    assert!(host.lead().await.is_leader());
}

/// Hazard G11: dropped instead of resigned, the same holds.
#[tokio::test(start_paused = true)]
async fn a_guard_dropped_during_an_outage_leaves_nothing() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    drop(leadership);
    pass(Duration::from_secs(3)).await;
    host.link.heal();
    until("the entry is gone", || store.entries("e").is_empty()).await;
}

/// Hazard G11: the store refuses, for good, to remove the entry; its session is given up, and the entry goes with it.
#[tokio::test(start_paused = true)]
async fn a_resignation_that_the_store_refuses_gives_the_session_up() {
    let store = MemoryStore::new();
    let host = faulty::host(&store, "a", |call| match call {
        Call::Leave => Err(BackendError::new(BackendErrorKind::Unauthorized, "permission denied")),
        _ => Ok(()),
    });
    let leadership = host.lead().await;
    within(TTL, leadership.resign()).await.unwrap();
    assert_eq!((store.entries("e").len(), store.sessions().len()), (0, 0));
    assert!(host.elector.status().last_error.unwrap().contains("permission denied"));
    assert!(host.lead().await.is_leader());
}

/// Hazards G5, G11: when the session ended with the leadership, its entry goes with the session;
/// the resignation waits for that.
#[tokio::test(start_paused = true)]
async fn a_resignation_waits_until_an_ended_session_is_closed() {
    let delay = Duration::from_secs(2);
    for side in [Direction::Request, Direction::Response] {
        let store = MemoryStore::new();
        let host = Host::new(&store, "a");
        let leadership = host.lead().await;
        host.link.set(&[Op::Close], side, Delivery::Delay(delay));
        host.clock.jump(TTL);
        assert!(!leadership.is_leader());
        let from = tokio::time::Instant::now();
        let error = within(TTL, leadership.resign()).await.unwrap_err();
        assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::Deadline), "{error}");
        assert!(from.elapsed() >= delay, "{side:?}: resigned after {:?}", from.elapsed());
        assert!(store.entries("e").is_empty() && store.sessions().is_empty(), "{side:?}");
    }
}

/// Hazard G16: renewal is bound to the guard: when the work has died, so has the leadership.
#[tokio::test(start_paused = true)]
async fn work_that_panics_gives_leadership_back() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let work = tokio::spawn(async move {
        leadership.run(async { panic!("the work has died") }).await.unwrap();
    });
    assert!(work.await.unwrap_err().is_panic());
    until("the entry is gone", || store.entries("e").is_empty()).await;
    assert!(host.lead().await.is_leader());
}

/// Resigning what has been lost says so, after the entry is gone.
#[tokio::test(start_paused = true)]
async fn resigning_a_lost_leadership_says_that_it_was_lost() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    store.delete_entry("e", leadership.fencing_token().get());
    leadership.lost().await;
    let error = leadership.resign().await.unwrap_err();
    assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::EntryGone), "{error}");
    assert!(store.entries("e").is_empty());
}

/// Closing ends everything, and waits for it.
#[tokio::test(start_paused = true)]
async fn closing_leaves_nothing() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.lead().await;
    let elector = Arc::clone(&b.elector);
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    until("both have entered", || store.entries("e").len() == 2).await;
    b.elector.close().await;
    assert!(matches!(waiting.await.unwrap(), Err(Error::Closed)));
    assert_eq!((store.entries("e").len(), store.sessions().len()), (1, 1));
    assert!(matches!(b.elector.campaign("e").await, Err(Error::Closed)));
    let handle = leadership.handle();
    let work = tokio::spawn(async move { leadership.run(async { leadership.lost().await }).await });
    tokio::task::yield_now().await;
    a.elector.close().await;
    assert_eq!(handle.loss(), Some(LossReason::Closed));
    assert_eq!(work.await.unwrap(), Ok(LossReason::Closed));
    nothing_left(&store).await;
    a.elector.close().await;
}

/// Closing while the store cannot be reached returns once the session has expired in any case.
#[tokio::test(start_paused = true)]
async fn closing_during_an_outage_returns() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    drop(leadership);
    within(TTL * 3, host.elector.close()).await;
    nothing_left(&store).await;
}

/// Hazard G10: closed while the session is being opened, or the entry made: nothing is left.
#[tokio::test(start_paused = true)]
async fn closing_at_any_moment_leaves_nothing() {
    for op in [Op::Open, Op::Enter] {
        for side in [Direction::Request, Direction::Response] {
            let store = MemoryStore::new();
            let host = Host::new(&store, "a");
            host.link.set(&[op], side, Delivery::Delay(Duration::from_secs(1)));
            let elector = Arc::clone(&host.elector);
            let campaign = tokio::spawn(async move { elector.campaign("e").await });
            pass(Duration::from_millis(500)).await;
            host.elector.close().await;
            assert!(matches!(campaign.await.unwrap(), Err(Error::Closed)), "{op:?} {side:?}");
            nothing_left(&store).await;
        }
    }
}

/// An elector that is dropped closes its session, once the leaderships that it gave are over.
#[tokio::test(start_paused = true)]
async fn a_dropped_elector_closes_its_session_after_its_leaderships() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    drop(host);
    pass(TTL * 3).await;
    assert!(leadership.is_leader());
    leadership.resign().await.unwrap();
    nothing_left(&store).await;
}
