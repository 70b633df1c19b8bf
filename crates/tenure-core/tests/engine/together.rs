//! Who leads under one session is looked after by one task: what happens to one does not keep the others from being looked after.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};

use tenure_core::{
    Config, Elector, Leadership, LossReason, StoreElector,
    memory::MemoryStore,
    spi::{BackendError, BackendErrorKind},
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};

use crate::{
    faulty::{self, Call},
    host::{Host, TTL, endless_work, pass, until, within},
};

const SECOND: Duration = Duration::from_secs(1);

async fn lead(host: &Host, election: &str) -> Leadership {
    within(TTL, host.elector.campaign(election)).await.unwrap()
}

fn delete(store: &MemoryStore, election: &str) {
    assert!(store.delete_entry(election, store.entries(election)[0].revision));
}

/// Hazard G12: also when the leadership was over before anybody had begun to watch its entry.
#[tokio::test(start_paused = true)]
async fn who_stops_at_once_is_watched_while_stopping() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.elector.campaign("e").await.unwrap();
    let mut work = Box::pin(leadership.run(std::future::pending::<()>()));
    assert!(futures::poll!(&mut work).is_pending());
    leadership.begin_resign();
    pass(SECOND).await;
    delete(&store, "e");
    within(SECOND, work).await.unwrap_err();
}

/// Hazard G12: of many who lead at once the last are watched a moment later; who stops in between is, too.
#[tokio::test(start_paused = true)]
async fn who_stops_among_many_is_watched_while_stopping() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let mut others = Vec::new();
    for n in 0..40 {
        others.push(lead(&host, &format!("other-{n}")).await);
    }
    let leadership = host.elector.campaign("e").await.unwrap();
    let (works, work) = endless_work(&leadership);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    leadership.begin_resign();
    pass(SECOND).await;
    assert!(works.load(SeqCst));
    delete(&store, "e");
    within(SECOND, work).await.unwrap().unwrap_err();
}

/// Hazard G12: of many that are led at once every entry is watched.
#[tokio::test(start_paused = true)]
async fn each_of_many_hears_of_its_entry() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let names: Vec<_> = (0..200).map(|n| format!("e-{n}")).collect();
    let all = futures::future::join_all(names.iter().map(|name| lead(&host, name))).await;
    pass(SECOND).await;
    for (name, leadership) in names.iter().zip(&all) {
        delete(&store, name);
        assert_eq!(within(SECOND, leadership.lost()).await, LossReason::EntryGone);
    }
}

/// Work that is stopping is dropped when the store says that its session is gone, whatever ended that here.
#[tokio::test(start_paused = true)]
async fn who_is_stopping_is_dropped_when_the_store_has_no_such_session() {
    let store = MemoryStore::new();
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let host = faulty::host(&store, "a", move |call| match (call, is_gone.load(SeqCst)) {
        (Call::WaitGone, false) => Err(BackendError::new(BackendErrorKind::Unavailable, "later")),
        (Call::WaitGone, true) => Err(BackendError::new(BackendErrorKind::SessionGone, "gone")),
        _ => Ok(()),
    });
    let leadership = lead(&host, "e").await;
    let (works, work) = endless_work(&leadership);
    pass(SECOND / 10).await;
    let elector = Arc::clone(&host.elector);
    let closing = tokio::spawn(async move { elector.close().await });
    pass(SECOND).await;
    assert!(works.load(SeqCst));
    gone.store(true, SeqCst);
    // The watch is taken up again after two seconds at most.
    within(SECOND * 4, work).await.unwrap().unwrap_err();
    drop(leadership);
    within(TTL, closing).await.unwrap();
}

/// Panics when somebody leads election `broken` no more.
struct Panics;

impl<S: Subscriber> Layer<S> for Panics {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        #[derive(Default)]
        struct Seen {
            is_broken: bool,
            is_over: bool,
        }
        impl Visit for Seen {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                let text = format!("{value:?}");
                self.is_broken |= field.name() == "election" && text.contains("broken");
                self.is_over |= text.contains("leads no more");
            }
        }
        let mut seen = Seen::default();
        event.record(&mut seen);
        assert!(!(seen.is_broken && seen.is_over), "a bug in what listens");
    }
}

/// Hazard G14: what listens to events panics; no entry is removed beside its work.
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_leaves_no_work_without_an_entry() {
    let store = MemoryStore::new();
    let _listens = tracing::subscriber::set_default(tracing_subscriber::registry().with(Panics));
    let host = Host::new(&store, "a");
    let (_broken, other) = (lead(&host, "broken").await, lead(&host, "other").await);
    let (works, work) = endless_work(&other);
    pass(SECOND / 10).await;
    delete(&store, "broken");
    assert_eq!(within(SECOND, other.lost()).await, LossReason::SessionGivenUp);
    until("the work or its entry has gone", || !works.load(SeqCst) || store.entries("other").is_empty())
        .await;
    assert!(!works.load(SeqCst), "the entry was removed beside its work");
    within(TTL, work).await.unwrap().unwrap_err();
}

/// Hazard G4: a thread that drops a guard and blocks keeps nobody else's loss from being noticed.
#[test]
fn a_worker_that_blocks_keeps_nobody_from_hearing() {
    let store = MemoryStore::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let elector = Arc::new(StoreElector::new(Arc::new(store.backend()), Config::new()).unwrap());
    let (unblock, blocked) = mpsc::channel::<()>();
    let is_dropped = Arc::new(AtomicBool::new(false));
    let test = runtime.spawn(async move {
        let (one, other) = (elector.campaign("one").await.unwrap(), elector.campaign("other").await.unwrap());
        let dropped = Arc::clone(&is_dropped);
        tokio::spawn(async move {
            drop(one);
            // Not told by a waker: what a worker wakes may wait until that worker goes on.
            dropped.store(true, SeqCst);
            // For as long as this test likes.
            let _ = blocked.recv();
        });
        while !is_dropped.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        delete(&store, "other");
        let begun = Instant::now();
        let lost = tokio::time::timeout(Duration::from_secs(10), other.lost()).await;
        assert_eq!(lost.ok(), Some(LossReason::EntryGone), "after {:?}", begun.elapsed());
        let gone = async {
            while store.entries("one").iter().len() > 0 {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), gone).await.is_ok(), "the guard was dropped");
    });
    let outcome = runtime.block_on(test);
    drop(unblock);
    outcome.unwrap();
}
