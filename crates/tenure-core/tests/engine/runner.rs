//! `run_while_leader`: a loop that ends only on shutdown or a permanent error.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tenure_core::{
    Candidate, Config, Connection, ElectionName, Elector, ElectorExt, Error, LeadershipHandle, LossReason,
    SimClock, StoreElector,
    memory::MemoryStore,
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Observation, SessionOptions,
    },
};
use tokio::sync::oneshot;

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, sleep, until, within},
};

/// Hazard G7: `run_while_leader` campaigns again after every loss.
#[tokio::test(start_paused = true)]
async fn it_campaigns_again_after_every_loss() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let (stop, stopped) = oneshot::channel::<()>();
    let (elector, seen) = (Arc::clone(&host.elector), Arc::clone(&tokens));
    let runner = tokio::spawn(async move {
        let shutdown = async { stopped.await.unwrap() };
        elector
            .run_while_leader("e", shutdown, |leadership| {
                seen.lock().unwrap().push(leadership.fencing_token());
                async move {
                    leadership.lost().await;
                    leadership.ensure()?;
                    Ok(())
                }
            })
            .await
    });
    for n in 1..=5 {
        until("it leads", || tokens.lock().unwrap().len() == n).await;
        sleep(Duration::from_secs(1)).await;
        match n % 3 {
            0 => assert!(store.expire_session(store.sessions()[0])),
            1 => assert!(store.delete_entry("e", store.entries("e")[0].revision)),
            _ => host.clock.jump(TTL),
        }
    }
    until("it leads again", || tokens.lock().unwrap().len() == 6).await;
    assert!(tokens.lock().unwrap().is_sorted_by(|a, b| a < b));
    stop.send(()).unwrap();
    within(TTL, runner).await.unwrap().unwrap();
    assert!(store.entries("e").is_empty());
}

/// Hazard G15: work that fails at once is restarted with backoff.
#[tokio::test(start_paused = true)]
async fn failed_work_backs_off() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let terms = AtomicUsize::new(0);
    host.elector
        .run_while_leader("e", sleep(Duration::from_secs(600)), |_| {
            terms.fetch_add(1, Ordering::SeqCst);
            async { Err("broken".into()) }
        })
        .await
        .unwrap();
    let terms = terms.into_inner();
    assert!((15..=60).contains(&terms), "{terms} terms in 10 min");
}

/// Hazard G15: terms that are lost at once are restarted with backoff.
#[tokio::test(start_paused = true)]
async fn short_terms_back_off() {
    let store = MemoryStore::new();
    let entered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&entered);
    let host = faulty_backend::host(&store, "a", move |call| match call {
        Call::Enter => {
            assert!(counted.fetch_add(1, Ordering::SeqCst) < 10_000, "a busy loop");
            Ok(())
        }
        Call::Watch => Err(BackendError::new(BackendErrorKind::EntryGone, "not of this session")),
        _ => Ok(()),
    });
    let shutdown = sleep(Duration::from_secs(10));
    let work = |leadership: LeadershipHandle| async move {
        leadership.lost().await;
        Ok(())
    };
    host.elector.run_while_leader("e", shutdown, work).await.unwrap();
    let terms = entered.load(Ordering::SeqCst);
    assert!((3..100).contains(&terms), "{terms} terms in 10 s");
}

/// A leader whose work fails resigns, and its successor leads.
#[tokio::test(start_paused = true)]
async fn failed_work_leads_to_a_handover() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let elector = Arc::clone(&a.elector);
    let runner = tokio::spawn(async move {
        elector
            .run_while_leader("e", std::future::pending(), |_| async {
                sleep(Duration::from_secs(1)).await;
                Err("broken".into())
            })
            .await
    });
    until("it leads", || !store.entries("e").is_empty()).await;
    let next = within(TTL, b.elector.campaign("e")).await.unwrap();
    assert!(next.is_leader());
    runner.abort();
    let _ = runner.await;
    until("the runner has withdrawn", || store.entries("e").len() == 1).await;
}

/// A shutdown cancels the work, waits for it, and only then removes the entry.
#[tokio::test(start_paused = true)]
async fn a_shutdown_stops_the_work_and_resigns() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let cleaned = AtomicUsize::new(0);
    host.elector
        .run_while_leader("e", sleep(Duration::from_secs(5)), |leadership| {
            let (cleaned, store) = (&cleaned, store.clone());
            async move {
                assert_eq!(leadership.lost().await, LossReason::Resigned);
                sleep(Duration::from_secs(2)).await;
                assert_eq!(store.entries("e").len(), 1);
                cleaned.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        })
        .await
        .unwrap();
    assert_eq!(cleaned.into_inner(), 1);
    assert!(store.entries("e").is_empty());
    host.elector.close().await;
    assert_nothing_left(&store).await;
}

/// A shutdown while the candidate waits leaves no entry.
#[tokio::test(start_paused = true)]
async fn a_shutdown_while_waiting_withdraws() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _leadership = a.lead().await;
    b.elector
        .run_while_leader("e", sleep(Duration::from_secs(5)), |_| async { panic!("it never leads") })
        .await
        .unwrap();
    until("the candidate has withdrawn", || store.entries("e").len() == 1).await;
}

/// A store that refuses every request.
#[derive(Debug)]
struct RefusingBackend;

fn permission_denied() -> BackendError {
    BackendError::new(BackendErrorKind::Unauthorized, "permission denied for user \"eve\"")
}

#[async_trait]
impl Backend for RefusingBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }
    async fn open_session(&self, _: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        Err(permission_denied())
    }
    async fn candidates(&self, _: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        Err(permission_denied())
    }
    async fn observe(&self, _: &ElectionName) -> Result<Observation, BackendError> {
        Err(permission_denied())
    }
}

/// Hazard G8: a permanent error is returned to the caller and shown in the status at once.
#[tokio::test(start_paused = true)]
async fn a_refusal_reaches_the_caller() {
    let clock = Arc::new(SimClock::new());
    let elector = StoreElector::with_clock(Arc::new(RefusingBackend), Config::new(), clock).unwrap();
    let outcome = within(
        Duration::from_secs(1),
        elector.run_while_leader("e", std::future::pending(), |_| async { Ok(()) }),
    );
    let error = outcome.await.unwrap_err();
    assert_eq!(error.to_string(), "the store refuses access: permission denied for user \"eve\"");
    assert!(matches!(error, Error::Unauthorized(_)) && !error.is_retryable());
    assert!(matches!(elector.leader("e").await, Err(Error::Unauthorized(_))));
    assert_eq!(elector.status().connection, Connection::Refused);
    assert!(elector.status().last_error.unwrap().contains("permission denied"));
}

#[tokio::test(start_paused = true)]
async fn an_illegal_name_is_refused_at_once() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    for bad in ["", "..", "a/b", "a b"] {
        let error = host.elector.campaign(bad).await.unwrap_err();
        assert!(error.to_string().contains("[A-Za-z0-9._-]"), "{error}");
    }
    assert!(store.sessions().is_empty(), "a request was sent to the store");
}
