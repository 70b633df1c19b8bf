//! The whole async interface under every kind of executor. None of them has timers or I/O of tokio.
#![cfg(all(feature = "local", feature = "memory", target_os = "linux"))]
#![allow(missing_docs)]

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, channel::oneshot, executor::LocalPool, join};
use tenure::{
    Backoff, Config, Elector, ElectorExt, Engine, Error, Hierarchy, LossReason, StatusHandle, StoreElector,
    memory::{Link, MemoryStore},
};

const TTL: Duration = Duration::from_secs(2);
/// Work that ignores a shutdown is dropped after four fifths of this.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);
const BACKOFF: Backoff = Backoff { min: Duration::from_millis(1), max: Duration::from_millis(10) };

fn elector(store: &MemoryStore) -> (Arc<dyn Elector>, Link) {
    let backend = store.backend();
    let link = backend.link().clone();
    let config = Config::new()
        .with_ttl(TTL)
        .with_work_backoff(BACKOFF)
        .with_retry(BACKOFF)
        .with_shutdown_timeout(SHUTDOWN_TIMEOUT);
    (Arc::new(StoreElector::new(Arc::new(backend), config).unwrap()), link)
}

async fn scenario() {
    connect().await;
    campaigns_and_handovers().await;
    loss().await;
    run_while_leader().await;
    observing().await;
    hierarchy().await;
}

async fn connect() {
    let directory = tempfile::tempdir().unwrap();
    for url in ["memory:executors".to_owned(), format!("local:{}", directory.path().display())] {
        let elector = tenure::connect(&url).await.unwrap();
        let leadership = elector.campaign("e").await.unwrap();
        assert_eq!(leadership.run(async { 7 }).await.unwrap(), 7);
        leadership.set_value("10.0.0.1").await.unwrap();
        assert_eq!(elector.leader("e").await.unwrap().unwrap().value, b"10.0.0.1");
        leadership.resign().await.unwrap();
        elector.close().await;
        assert!(matches!(elector.campaign("e").await, Err(Error::Closed)));
    }
}

/// A candidate waits, is elected when the leader resigns, and one that gives up leaves no entry.
async fn campaigns_and_handovers() {
    let store = MemoryStore::new();
    let ((first, _), (second, _)) = (elector(&store), elector(&store));
    let leadership = first.campaign("e").await.unwrap();
    assert!(second.try_campaign("e").await.unwrap().is_none());
    let (give_up, given_up) = oneshot::channel::<()>();
    let waiting = second.campaign_until("e", given_up.map(drop).boxed());
    let giving_up = async {
        while first.candidates("e").await.unwrap().len() < 2 {}
        drop(give_up);
    };
    assert!(join!(waiting, giving_up).0.unwrap().is_none());
    assert_eq!(store.entries("e").len(), 1);
    let resigning = async {
        while first.candidates("e").await.unwrap().len() < 2 {}
        second.request_resign("e").await.unwrap();
        assert_eq!(leadership.lost().await, LossReason::ResignRequested);
        assert!(matches!(leadership.resign().await, Err(Error::Lost(_))));
    };
    let (next, ()) = join!(second.campaign("e"), resigning);
    next.unwrap().resign().await.unwrap();
}

/// The link of a leader is cut: its work is dropped before the deadline.
async fn loss() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let leadership = elector.campaign("e").await.unwrap();
    let cancelled = leadership.cancellation_token();
    link.cut();
    let lost = leadership.run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(lost.reason, LossReason::Deadline);
    assert!(cancelled.is_cancelled() && !leadership.is_leader());
}

/// Work fails, campaigns again after a pause, and then ignores the shutdown: it is dropped after a time.
async fn run_while_leader() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let (shut_down, shutdown) = oneshot::channel::<()>();
    let (terms, shut_down) = (AtomicUsize::new(0), Mutex::new(Some(shut_down)));
    let work = |leadership: tenure::LeadershipHandle| {
        let (term, shut_down) = (terms.fetch_add(1, SeqCst) + 1, &shut_down);
        async move {
            leadership.ensure()?;
            if term < 3 {
                return Err("it failed".into());
            }
            drop(shut_down.lock().unwrap().take());
            std::future::pending().await
        }
    };
    elector.run_while_leader("e", shutdown.map(drop), work).await.unwrap();
    assert_eq!(terms.load(SeqCst), 3);
    assert!(store.entries("e").is_empty(), "it has resigned");
}

async fn observing() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let mut leaders = elector.observe("e");
    assert!(leaders.next().await.unwrap().unwrap().is_none());
    let mut status =
        StatusHandle::with_refresh(Arc::clone(&elector), "e", Duration::from_millis(100)).unwrap();
    let leadership = elector.campaign("e").await.unwrap();
    let leader = leaders.next().await.unwrap().unwrap().unwrap();
    assert_eq!(leader.token, Some(leadership.fencing_token()));
    while status.get().leader.is_none() || status.get().queue_position != Some(1) {
        assert!(status.changed().await);
    }
    elector.close().await;
    while status.changed().await {}
    while leaders.next().await.is_some() {}
}

/// The leader of a group waits at the top, loses its group and leads it again, and gives up.
async fn hierarchy() {
    let store = MemoryStore::new();
    let ((other, _), (elector, _)) = (elector(&store), elector(&store));
    let hierarchy = Hierarchy::new(elector, "berlin").unwrap();
    let first = hierarchy.campaign("e").await.unwrap();
    first.resign().await.unwrap();
    let top = other.campaign("e").await.unwrap();
    let (give_up, given_up) = oneshot::channel::<()>();
    let waiting = hierarchy.campaign_until("e", given_up.map(drop).boxed());
    let losing = async {
        let waits = |above: u64| {
            let (store, other) = (&store, &other);
            async move {
                loop {
                    let waits_at_top = other.candidates("e").await.unwrap().len() == 2;
                    match store.entries("e.berlin").first() {
                        Some(entry) if waits_at_top && entry.revision > above => return entry.revision,
                        _ => {}
                    }
                }
            }
        };
        let group = waits(0).await;
        store.delete_entry("e.berlin", group);
        waits(group).await;
        drop(give_up);
    };
    assert!(join!(waiting, losing).0.unwrap().is_none());
    assert!(store.entries("e.berlin").is_empty());
    top.resign().await.unwrap();
}

/// The scenario is one task, and so are its parts that wait for each other.
fn task() -> impl Future<Output = ()> + Send + 'static {
    scenario()
}

#[test]
fn tokio_with_several_threads() {
    // Without timers and I/O.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async { tokio::spawn(task()).await }).unwrap();
}

#[test]
fn tokio_with_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { tokio::spawn(task()).await }).unwrap();
}

#[test]
fn smol_on_one_thread_and_on_several() {
    smol::block_on(scenario());
    smol::block_on(smol::spawn(task()));
}

#[test]
fn futures_executor() {
    futures::executor::block_on(scenario());
    let mut pool = LocalPool::new();
    pool.run_until(scenario());
}

/// Polled again and again on one thread, without an executor.
#[test]
fn no_executor() {
    let mut scenario = Box::pin(scenario());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while scenario.as_mut().poll(&mut context).is_pending() {
        std::thread::yield_now();
    }
}

/// The number of inotify instances of this process.
fn inotify_instances() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("inotify")).count()
}

/// Electors on several stores share an engine. One that is dropped leaves no connection behind, and affects no other.
#[test]
fn stores_share_an_engine() {
    let engine = Engine::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("local:{}", directory.path().display());
    futures::executor::block_on(async {
        let config = || Config::new().with_engine(engine.clone());
        let local = tenure::connect_with(&url, config()).await.unwrap();
        let memory = tenure::connect_with("memory:shared", config()).await.unwrap();
        let leadership = memory.campaign("e").await.unwrap();
        let mut leaders = local.observe("e");
        assert!(leaders.next().await.unwrap().unwrap().is_none());
        local.campaign("e").await.unwrap().resign().await.unwrap();
        while inotify_instances() == 0 {
            std::thread::yield_now();
        }
        drop((leaders, local));
        while inotify_instances() > 0 {
            std::thread::yield_now();
        }
        assert!(leadership.is_leader());
        leadership.resign().await.unwrap();
        memory.close().await;
    });
}
