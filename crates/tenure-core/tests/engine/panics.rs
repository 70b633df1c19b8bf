//! Backends that panic and runtimes that are dropped: no call hangs, and no entry is left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tenure_core::{Config, Elector, Error, LossReason, SimClock, StoreElector, memory::MemoryStore};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, until, within},
};

/// A host whose backend panics at the first call of this kind.
fn panics_once(store: &MemoryStore, at: Call) -> Host {
    let armed = AtomicBool::new(true);
    faulty_backend::host(store, "a", move |call| {
        assert!(call != at || !armed.swap(false, Ordering::SeqCst), "a bug in the backend's {call:?}");
        Ok(())
    })
}

/// A panic while the session is opened reaches the campaign. The next campaign opens another session.
#[tokio::test(start_paused = true)]
async fn a_panic_while_opening_reaches_the_campaign() {
    let store = MemoryStore::new();
    let host = panics_once(&store, Call::Open);
    let error = within(TTL, host.elector.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::TaskEnded(_)), "{error}");
    assert!(within(TTL, host.lead()).await.is_leader());
}

/// A panic while entering reaches the campaign. The next campaign leads.
#[tokio::test(start_paused = true)]
async fn a_panic_while_entering_reaches_the_campaign() {
    let store = MemoryStore::new();
    let host = panics_once(&store, Call::Enter);
    let error = within(TTL, host.elector.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::TaskEnded(_)), "{error}");
    assert!(within(TTL, host.lead()).await.is_leader());
}

/// Hazards G10, G16: a panic in the watch on the own entry ends the leadership, and the entry is removed.
#[tokio::test(start_paused = true)]
async fn a_panic_of_the_watch_ends_the_leadership() {
    let store = MemoryStore::new();
    let host = panics_once(&store, Call::Watch);
    let leadership = host.lead().await;
    assert_eq!(within(TTL, leadership.lost()).await, LossReason::SessionGivenUp);
    until("the entry is gone although its guard is held", || store.entries("e").is_empty()).await;
    let error = within(TTL, leadership.resign()).await.unwrap_err();
    assert!(matches!(error, Error::Lost(lost) if lost.reason == LossReason::SessionGivenUp), "{error}");
    assert!(within(TTL, host.lead()).await.is_leader());
}

/// Hazard G10: a panic while the entry is removed ends the session, which removes the entry.
#[tokio::test(start_paused = true)]
async fn a_panic_while_leaving_leaves_nothing() {
    let store = MemoryStore::new();
    let host = panics_once(&store, Call::Leave);
    let leadership = host.lead().await;
    within(TTL, leadership.resign()).await.unwrap();
    assert!(store.entries("e").is_empty());
    assert!(within(TTL, host.lead()).await.is_leader());
}

/// Hazard G10: the same when the guard is dropped instead of resigned.
#[tokio::test(start_paused = true)]
async fn a_panic_after_the_guard_was_dropped_leaves_nothing() {
    let store = MemoryStore::new();
    for call in [Call::Watch, Call::Leave] {
        let host = panics_once(&store, call);
        drop(host.lead().await);
        until("the entry is gone", || store.entries("e").is_empty()).await;
        within(TTL, host.elector.close()).await;
        assert_nothing_left(&store).await;
    }
}

/// A panic in a heartbeat ends the session. `resign` and `close` return.
#[tokio::test(start_paused = true)]
async fn a_panic_of_a_heartbeat_ends_the_session() {
    let store = MemoryStore::new();
    let host = panics_once(&store, Call::Heartbeat);
    let leadership = host.lead().await;
    assert_eq!(within(TTL, leadership.lost()).await, LossReason::SessionGivenUp);
    let _ = within(TTL, leadership.resign()).await;
    assert!(within(TTL, host.lead()).await.is_leader());
    within(TTL, host.elector.close()).await;
    assert_eq!(host.elector.status().session, None);
    assert_nothing_left(&store).await;
}

/// After a panic while the session is closed, `close` returns and the status shows no session.
#[tokio::test(start_paused = true)]
async fn a_panic_while_closing_does_not_hang() {
    let store = MemoryStore::new();
    let host = panics_once(&store, Call::Close);
    drop(host.lead().await);
    within(TTL, host.elector.close()).await;
    assert_eq!(host.elector.status().session, None);
    assert_nothing_left(&store).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// The runtime of the engine was dropped: on another one, `resign` and `close` return.
#[test]
fn a_resignation_outlives_its_runtime() {
    let store = MemoryStore::new();
    let first = runtime();
    let (elector, leadership) = first.block_on(async {
        let clock = Arc::new(SimClock::new());
        let elector = StoreElector::with_clock(Arc::new(store.backend()), Config::new(), clock).unwrap();
        let leadership = elector.campaign("e").await.unwrap();
        (elector, leadership)
    });
    drop(first);
    assert_eq!(leadership.loss(), Some(LossReason::SessionGivenUp));
    runtime().block_on(async move {
        within(TTL, leadership.resign()).await.unwrap_err();
        within(TTL, elector.close()).await;
    });
}

/// The runtime that was opening a session was dropped: a campaign on another one opens one itself.
#[test]
fn an_interrupted_opening_is_repeated() {
    let backend = MemoryStore::new().backend();
    let link = backend.link().clone();
    link.cut();
    let config = Config::new().with_request_timeout(Duration::from_millis(100));
    let elector = StoreElector::new(Arc::new(backend), config).unwrap();
    let real = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = real();
    first.block_on(async {
        assert!(tokio::time::timeout(Duration::from_millis(50), elector.campaign("e")).await.is_err());
    });
    drop(first);
    link.heal();
    real().block_on(async move {
        assert!(within(TTL, elector.campaign("e")).await.unwrap().is_leader());
    });
}
