//! No entry and no session is left behind: promise L2.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Elector, Error, LossReason, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op},
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, sleep, until, within},
};

/// Hazard G10: a campaign is dropped while it waits.
#[tokio::test(start_paused = true)]
async fn a_waiting_campaign_that_is_dropped_withdraws() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _leadership = a.lead().await;
    let waiting = b.enter_queue(&store).await;
    waiting.abort();
    until("the entry is gone", || store.entries("e").len() == 1).await;
}

/// Hazards G10, Z10: a campaign is dropped at various times around its request to enter, with every fault of the request or the
/// response. No entry is left once the link is healed.
#[tokio::test(start_paused = true)]
async fn a_campaign_dropped_while_entering_leaves_nothing() {
    let second = Duration::from_secs(1);
    for direction in [Direction::Request, Direction::Response] {
        for delivery in [Delivery::Delay(second), Delivery::Hold, Delivery::Drop, Delivery::Fail] {
            for timeout in [Duration::ZERO, second / 2, second * 2, second * 8] {
                let store = MemoryStore::new();
                let host = Host::new(&store, "a");
                // The session is opened first, so that only entering is disturbed.
                host.elector.campaign("first").await.unwrap().resign().await.unwrap();
                host.link.set(&[Op::Enter], direction, delivery);
                let campaign = tokio::time::timeout(timeout, host.elector.campaign("e")).await;
                host.link.heal();
                drop(campaign);
                // By now, requests that were held back have been carried out.
                sleep(TTL * 2).await;
                assert!(store.entries("e").is_empty(), "{direction:?} {delivery:?} after {timeout:?}");
                assert_eq!(store.sessions().len(), 1, "the session is kept for the next campaign");
                let leadership = within(TTL, host.elector.campaign("e")).await.unwrap();
                assert!(leadership.is_leader());
                drop(leadership);
                host.elector.close().await;
                assert_nothing_left(&store).await;
            }
        }
    }
}

/// Hazard Z10: a withdrawn request is carried out much later. Its entry is found and removed.
#[tokio::test(start_paused = true)]
async fn a_late_entry_of_a_withdrawn_request_is_removed() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    assert!(tokio::time::timeout(Duration::from_secs(6), host.elector.campaign("e")).await.is_err());
    sleep(TTL * 3).await;
    assert!(store.entries("e").is_empty());
    host.link.heal();
    until("the late entries have been made", || !store.entries("e").is_empty()).await;
    until("the late entry is removed", || store.entries("e").is_empty()).await;
}

/// Hazard G14: an answer that arrives after its session has ended makes no candidate leader.
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
    sleep(TTL).await;
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
    let next = b.enter_queue(&store).await;
    let old = store.entries("e")[1].revision;
    store.delete_entry("e", old);
    until("it has entered again", || store.entries("e").len() == 2).await;
    first.resign().await.unwrap();
    let second = within(TTL, next).await.unwrap();
    assert!(second.fencing_token().get() > old);
    assert_eq!(store.entries("e")[0].revision, second.fencing_token().get());
}

/// Hazard G13: the session of a waiting candidate ends at the same time as the leader resigns.
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_session_ended_does_not_win_without_an_entry() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.enter_queue(&store).await;
    let session = store.entries("e")[1].session;
    store.expire_session(session);
    first.resign().await.unwrap();
    let second = within(TTL * 2, next).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(store.entries("e").len(), 1);
    assert_ne!(store.entries("e")[0].session, session);
}

/// Hazard G11: the entry cannot be deleted during an outage. It is deleted once the store is back.
#[tokio::test(start_paused = true)]
async fn a_resignation_during_an_outage_is_carried_out_after_it() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_shutdown_timeout(TTL * 6));
    let leadership = host.lead().await;
    host.link.set(&[Op::Leave], Direction::Request, Delivery::Fail);
    let resigning = tokio::spawn(leadership.resign());
    sleep(TTL * 3).await;
    assert!(
        !resigning.is_finished() && store.entries("e").len() == 1,
        "the session and the entry still exist"
    );
    host.link.heal();
    within(TTL, resigning).await.unwrap().unwrap();
    assert!(store.entries("e").is_empty());
    assert!(host.lead().await.is_leader());
}

/// Hazard G11: the same when the guard is dropped instead of resigned.
#[tokio::test(start_paused = true)]
async fn a_guard_dropped_during_an_outage_leaves_nothing() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    drop(leadership);
    sleep(Duration::from_secs(3)).await;
    host.link.heal();
    until("the entry is gone", || store.entries("e").is_empty()).await;
}

/// Hazard G11: the store permanently refuses to remove the entry. Its session is given up, which removes the entry.
#[tokio::test(start_paused = true)]
async fn a_resignation_that_the_store_refuses_gives_the_session_up() {
    let store = MemoryStore::new();
    let host = faulty_backend::host(&store, "a", |call| match call {
        Call::Leave => Err(BackendError::new(BackendErrorKind::Unauthorized, "permission denied")),
        _ => Ok(()),
    });
    let leadership = host.lead().await;
    within(TTL, leadership.resign()).await.unwrap();
    assert_eq!((store.entries("e").len(), store.sessions().len()), (0, 0));
    assert!(host.elector.status().last_error.unwrap().contains("permission denied"));
    assert!(host.lead().await.is_leader());
}

/// Hazards G5, G11: when the session ended together with the leadership, the entry is removed with the session, and the resignation
/// waits for that.
#[tokio::test(start_paused = true)]
async fn a_resignation_waits_until_an_ended_session_is_closed() {
    let delay = Duration::from_secs(2);
    for direction in [Direction::Request, Direction::Response] {
        let store = MemoryStore::new();
        let host = Host::new(&store, "a");
        let leadership = host.lead().await;
        host.link.set(&[Op::Close], direction, Delivery::Delay(delay));
        host.clock.jump(TTL);
        assert!(!leadership.is_leader());
        let from = tokio::time::Instant::now();
        let error = within(TTL, leadership.resign()).await.unwrap_err();
        assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::Deadline), "{error}");
        assert!(from.elapsed() >= delay, "{direction:?}: resigned after {:?}", from.elapsed());
        assert!(store.entries("e").is_empty() && store.sessions().is_empty(), "{direction:?}");
    }
}

/// Hazard G16: leadership depends on the guard: when the work panics, the leadership ends.
#[tokio::test(start_paused = true)]
async fn work_that_panics_gives_leadership_back() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let work = tokio::spawn(async move {
        leadership.run(async { panic!("a bug in the work") }).await.unwrap();
    });
    assert!(work.await.unwrap_err().is_panic());
    until("the entry is gone", || store.entries("e").is_empty()).await;
    assert!(host.lead().await.is_leader());
}

/// `resign` of a lost leadership returns an error, after the entry is gone.
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

/// `close` ends all campaigns and leaderships, and waits for them.
#[tokio::test(start_paused = true)]
async fn closing_removes_all_entries_and_sessions() {
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
    assert_nothing_left(&store).await;
    a.elector.close().await;
}

/// `close` during an outage returns once the session has expired in any case.
#[tokio::test(start_paused = true)]
async fn closing_during_an_outage_returns() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    drop(leadership);
    within(TTL * 3, host.elector.close()).await;
    assert_nothing_left(&store).await;
}

/// Hazard G10: the elector is closed while the session is opened or the entry is made. Nothing is left.
#[tokio::test(start_paused = true)]
async fn closing_at_any_moment_leaves_nothing() {
    for op in [Op::Open, Op::Enter] {
        for direction in [Direction::Request, Direction::Response] {
            let store = MemoryStore::new();
            let host = Host::new(&store, "a");
            host.link.set(&[op], direction, Delivery::Delay(Duration::from_secs(1)));
            let elector = Arc::clone(&host.elector);
            let campaign = tokio::spawn(async move { elector.campaign("e").await });
            sleep(Duration::from_millis(500)).await;
            host.elector.close().await;
            assert!(matches!(campaign.await.unwrap(), Err(Error::Closed)), "{op:?} {direction:?}");
            assert_nothing_left(&store).await;
        }
    }
}

/// A dropped elector closes its session once its leaderships are over.
#[tokio::test(start_paused = true)]
async fn a_dropped_elector_closes_its_session_after_its_leaderships() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    drop(host);
    sleep(TTL * 3).await;
    assert!(leadership.is_leader());
    leadership.resign().await.unwrap();
    assert_nothing_left(&store).await;
}
