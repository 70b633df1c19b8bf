//! The status handle: the leader, and the position of the elector's own candidate.

use std::time::Duration;

use tenure_core::{Connection, Elector, StatusHandle, memory::MemoryStore};

use crate::host::{Host, UNTIL_STOP, sleep, until, within};

#[tokio::test(start_paused = true)]
async fn a_status_handle_reports_the_leader_and_its_own_queue_position() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let mut status = StatusHandle::new(b.elector.clone(), "e").unwrap();
    assert!(!status.get().known);
    until("the vacancy is known", || status.get().known).await;
    assert!(status.get().leader.is_none());
    let first = a.lead().await;
    let next = b.enter_queue(&store).await;
    until("the position is known", || status.get().queue_position == Some(2)).await;
    let now = status.get();
    assert_eq!((now.leader.unwrap().id.as_str(), now.candidates), ("a", 2));
    assert!(now.leadership.is_none() && now.store.connection == Connection::Connected);
    first.resign().await.unwrap();
    let second = within(Duration::from_secs(5), next).await.unwrap();
    let own = status.leadership().unwrap();
    assert_eq!(own.fencing_token(), second.fencing_token(), "known without a request");
    until("the new leader is known", || status.get().leader.is_some_and(|leader| leader.id == "b")).await;
    assert!(within(Duration::from_secs(60), status.changed()).await);
    until("the new position is known", || status.get().queue_position == Some(1)).await;
    sleep(Duration::from_secs(5)).await;
    assert!(status.get().seen_for >= Duration::from_secs(5));
}

/// Hazards G1, G25: its own leadership depends on the clock, not on the last answer of the store.
#[tokio::test(start_paused = true)]
async fn a_status_handle_reports_no_leadership_past_its_deadline() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let status = StatusHandle::new(host.elector.clone(), "e").unwrap();
    let leadership = host.lead().await;
    until("it leads", || status.get().leader.is_some()).await;
    host.clock.jump(UNTIL_STOP + Duration::from_millis(1));
    let now = status.get();
    assert!(now.leadership.is_none() && now.leader.is_some());
    assert!(!leadership.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_status_handle_ends_with_its_elector() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let mut status = StatusHandle::new(host.elector.clone(), "e").unwrap();
    until("the state is known", || status.get().known).await;
    host.elector.close().await;
    let ended = async { while status.changed().await {} };
    within(Duration::from_secs(60), ended).await;
    assert!(StatusHandle::new(host.elector.clone(), "no/name").is_err());
}
