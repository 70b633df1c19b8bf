//! From opening a session to winning: an expired session or a deleted entry is not relied upon.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenure_core::{
    Backoff, Elector, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op},
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, UNTIL_STOP, sleep, until, within},
};

/// Hazard G1: opening took nearly as long as the TTL. The session is closed, not used.
#[tokio::test(start_paused = true)]
async fn a_session_that_was_opened_too_late_is_closed_and_not_used() {
    let store = MemoryStore::new();
    let later = Backoff { min: TTL, max: TTL };
    let host =
        Host::with(&store, "a", SimClock::new(), |c| c.with_ttl(Duration::from_secs(5)).with_retry(later));
    host.link.set(&[Op::Open], Direction::Response, Delivery::Delay(Duration::from_millis(4_500)));
    let elector = Arc::clone(&host.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
    sleep(Duration::from_millis(4_400)).await;
    assert_eq!(store.sessions().len(), 1);
    sleep(Duration::from_millis(200)).await;
    assert!(store.sessions().is_empty(), "it would have lived for 400 ms more");
    assert!(!campaign.is_finished() && store.entries("e").is_empty());
    assert!(host.elector.status().last_error.unwrap().contains("nearly as long"));
    host.link.heal();
    assert!(within(TTL * 3, campaign).await.unwrap().is_leader());
}

/// Hazard G1: a candidate whose answer arrives after its window has closed does not become leader.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_won_too_late_enters_again_and_leads() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Response, Delivery::Delay(Duration::from_secs(1)));
    let elector = Arc::clone(&host.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap().is_leader() });
    sleep(Duration::from_millis(500)).await;
    // The process is stopped here. Its watchdog has not run yet when the answer arrives.
    host.clock.jump(UNTIL_STOP);
    assert!(within(TTL * 2, campaign).await.unwrap(), "the guard was lost from the start");
}

/// Hazard G14: a new entry has a new request, so that late answers and removals of the old one do not apply to it.
#[tokio::test(start_paused = true)]
async fn a_new_entry_has_a_new_nonce() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _first = a.lead().await;
    let _next = b.enter_queue(&store).await;
    let old = store.entries("e")[1].clone();
    store.delete_entry("e", old.revision);
    until("it has entered again", || store.entries("e").len() == 2).await;
    assert_ne!(store.entries("e")[1].nonce, old.nonce);
}

/// A candidate whose entries disappear repeatedly does not flood the store with new ones.
#[tokio::test(start_paused = true)]
async fn entering_again_and_again_backs_off() {
    let store = MemoryStore::new();
    let other = Host::new(&store, "other");
    let _leader = other.lead().await;
    let entered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&entered);
    let host = faulty_backend::host(&store, "a", move |call| match call {
        Call::Enter => {
            assert!(counted.fetch_add(1, Ordering::SeqCst) < 10_000, "a busy loop");
            Ok(())
        }
        Call::WaitTurn => Err(BackendError::new(BackendErrorKind::EntryGone, "not of this session")),
        _ => Ok(()),
    });
    assert!(tokio::time::timeout(Duration::from_secs(10), host.elector.campaign("e")).await.is_err());
    let entered = entered.load(Ordering::SeqCst);
    assert!((3..100).contains(&entered), "{entered} entries in 10 s");
    until("the last one is gone", || store.entries("e").len() == 1).await;
}
