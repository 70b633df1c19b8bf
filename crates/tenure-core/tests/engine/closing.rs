//! `close` returns, regardless of held guards, long request timeouts and waiting campaigns.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Backoff, Elector, Error, LossReason, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op},
};

use crate::host::{Host, TTL, UNTIL_DEADLINE, assert_nothing_left, sleep, within};

/// `close` waits for a held guard until its deadline and no longer.
#[tokio::test(start_paused = true)]
async fn closing_waits_for_a_held_guard_until_the_deadline() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_shutdown_timeout(TTL * 2));
    let leadership = host.lead().await;
    let from = tokio::time::Instant::now();
    within(UNTIL_DEADLINE + Duration::from_millis(10), host.elector.close()).await;
    assert!(from.elapsed() > TTL / 2, "returned after {:?}", from.elapsed());
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    assert_nothing_left(&store).await;
}

/// A request timeout longer than the TTL does not delay `close` beyond the expiry of the session.
#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_long_request_timeout() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| {
        c.with_request_timeout(TTL * 60).with_shutdown_timeout(TTL * 4)
    });
    drop(host.lead().await);
    host.link.cut();
    within(TTL * 3, host.elector.close()).await;
    assert_nothing_left(&store).await;
}

/// A request that waits for a late retry ends with its elector.
#[tokio::test(start_paused = true)]
async fn closing_ends_a_request_that_waits_for_its_retry() {
    let store = MemoryStore::new();
    let later = Backoff { min: TTL * 60, max: TTL * 60 };
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_retry(later));
    host.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
    let elector = Arc::clone(&host.elector);
    let asking = tokio::spawn(async move { elector.leader("e").await });
    sleep(Duration::from_secs(1)).await;
    host.elector.close().await;
    assert!(matches!(within(TTL, asking).await.unwrap(), Err(Error::Closed)));
}
