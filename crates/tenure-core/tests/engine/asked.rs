//! An operator asks the leader to resign: promises S3 and L2.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use tenure_core::{Elector, Error, LossReason, memory::MemoryStore};

use crate::host::{Host, TTL, UNTIL_STOP, endless_work, pass, until, within};

/// Work that listens to nothing goes on until the deadline, and nobody leads beside it.
#[tokio::test(start_paused = true)]
async fn who_is_asked_to_resign_leaves_once_its_work_has_stopped() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.wait_in_line(&store).await;
    let (works, work) = endless_work(&first);
    // Time passes once everybody waits: the work has begun.
    pass(Duration::from_millis(1)).await;
    let asked = b.elector.request_resign("e").await.unwrap();
    assert_eq!(asked.unwrap().id, "a");
    assert_eq!(within(Duration::from_secs(1), first.lost()).await, LossReason::ResignRequested);
    assert!(!first.is_leader() && works.load(SeqCst));
    // It may be asked as often as anybody likes.
    b.elector.request_resign("e").await.unwrap();
    pass(UNTIL_STOP - Duration::from_secs(1)).await;
    assert!(works.load(SeqCst) && !next.is_finished(), "nobody leads beside the work");
    let second = within(TTL, next).await.unwrap();
    assert!(!works.load(SeqCst) && second.is_leader());
    assert_eq!(work.await.unwrap().unwrap_err().reason, LossReason::ResignRequested);
    let error = first.resign().await.unwrap_err();
    assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::ResignRequested), "{error}");
}

/// Hazard G12: its entry is watched on while its work stops.
#[tokio::test(start_paused = true)]
async fn work_that_is_stopping_is_dropped_when_the_entry_goes() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let (works, _) = endless_work(&leadership);
    // Time passes once everybody waits: the work has begun.
    pass(Duration::from_millis(1)).await;
    host.elector.request_resign("e").await.unwrap();
    within(Duration::from_secs(1), leadership.lost()).await;
    pass(Duration::from_secs(1)).await;
    assert!(works.load(SeqCst));
    assert!(store.delete_entry("e", leadership.fencing_token().get()));
    until("the work was dropped", || !works.load(SeqCst)).await;
    assert_eq!(leadership.loss(), Some(LossReason::ResignRequested), "the first reason stays");
}

/// A wish concerns the term that it was made in.
#[tokio::test(start_paused = true)]
async fn a_wish_is_forgotten_with_its_term() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    assert_eq!(host.elector.request_resign("e").await.unwrap(), None);
    let first = host.lead().await;
    host.elector.request_resign("e").await.unwrap();
    within(Duration::from_secs(1), first.lost()).await;
    drop(first);
    let second = host.lead().await;
    pass(TTL * 3).await;
    assert!(second.is_leader());
    assert!(host.elector.request_resign("no/name").await.is_err());
}
