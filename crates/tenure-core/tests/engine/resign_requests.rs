//! An operator asks the leader to resign: promises S3 and L2.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use tenure_core::{Elector, Error, LossReason, memory::MemoryStore};

use crate::host::{Host, TTL, UNTIL_STOP, endless_work, sleep, until, within};

/// Work that ignores cancellation runs until the deadline, and no other candidate leads meanwhile.
#[tokio::test(start_paused = true)]
async fn a_leader_asked_to_resign_leaves_once_its_work_has_stopped() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.enter_queue(&store).await;
    let (is_running, work) = endless_work(&first);
    // Simulated time advances once all tasks wait: the work has begun.
    sleep(Duration::from_millis(1)).await;
    let leader = b.elector.request_resign("e").await.unwrap();
    assert_eq!(leader.unwrap().id, "a");
    assert_eq!(within(Duration::from_secs(1), first.lost()).await, LossReason::ResignRequested);
    assert!(!first.is_leader() && is_running.load(SeqCst));
    // A second request has no further effect.
    b.elector.request_resign("e").await.unwrap();
    sleep(UNTIL_STOP - Duration::from_secs(1)).await;
    assert!(is_running.load(SeqCst) && !next.is_finished(), "another candidate leads beside the work");
    let second = within(TTL, next).await.unwrap();
    assert!(!is_running.load(SeqCst) && second.is_leader());
    assert_eq!(work.await.unwrap().unwrap_err().reason, LossReason::ResignRequested);
    let error = first.resign().await.unwrap_err();
    assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::ResignRequested), "{error}");
}

/// Hazard G12: the entry is still watched while the work stops.
#[tokio::test(start_paused = true)]
async fn work_that_is_stopping_is_dropped_when_the_entry_goes() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let (is_running, _) = endless_work(&leadership);
    // Simulated time advances once all tasks wait: the work has begun.
    sleep(Duration::from_millis(1)).await;
    host.elector.request_resign("e").await.unwrap();
    within(Duration::from_secs(1), leadership.lost()).await;
    sleep(Duration::from_secs(1)).await;
    assert!(is_running.load(SeqCst));
    assert!(store.delete_entry("e", leadership.fencing_token().get()));
    until("the work was dropped", || !is_running.load(SeqCst)).await;
    assert_eq!(leadership.loss(), Some(LossReason::ResignRequested), "the first reason stays");
}

/// A resign request applies only to the term in which it was made.
#[tokio::test(start_paused = true)]
async fn a_resign_request_ends_with_its_term() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    assert_eq!(host.elector.request_resign("e").await.unwrap(), None);
    let first = host.lead().await;
    host.elector.request_resign("e").await.unwrap();
    within(Duration::from_secs(1), first.lost()).await;
    drop(first);
    let second = host.lead().await;
    sleep(TTL * 3).await;
    assert!(second.is_leader());
    assert!(host.elector.request_resign("no/name").await.is_err());
}
