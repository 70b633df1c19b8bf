//! One task serves all leaderships of a session: an event of one leadership does not delay the others.

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
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, endless_work, sleep, until, within},
};

const SECOND: Duration = Duration::from_secs(1);

async fn lead(host: &Host, election: &str) -> Leadership {
    within(TTL, host.elector.campaign(election)).await.unwrap()
}

fn delete(store: &MemoryStore, election: &str) {
    assert!(store.delete_entry(election, store.entries(election)[0].revision));
}

/// Hazard G12: also when the leadership was over before its entry was watched.
#[tokio::test(start_paused = true)]
async fn an_entry_is_watched_while_work_stops_at_once() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.elector.campaign("e").await.unwrap();
    let mut work = Box::pin(leadership.run(std::future::pending::<()>()));
    assert!(futures::poll!(&mut work).is_pending());
    leadership.request_resign();
    sleep(SECOND).await;
    delete(&store, "e");
    within(SECOND, work).await.unwrap_err();
}

/// Hazard G12: among many leaderships, some entries are watched later. An entry whose work is cancelled before that is watched
/// too.
#[tokio::test(start_paused = true)]
async fn an_entry_is_watched_while_work_stops_among_many() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let mut others = Vec::new();
    for n in 0..40 {
        others.push(lead(&host, &format!("other-{n}")).await);
    }
    let leadership = host.elector.campaign("e").await.unwrap();
    let (is_running, work) = endless_work(&leadership);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    leadership.request_resign();
    sleep(SECOND).await;
    assert!(is_running.load(SeqCst));
    delete(&store, "e");
    within(SECOND, work).await.unwrap().unwrap_err();
}

/// Hazard G12: every entry of many leaderships is watched.
#[tokio::test(start_paused = true)]
async fn each_of_many_leaderships_ends_when_its_entry_is_deleted() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let names: Vec<_> = (0..200).map(|n| format!("e-{n}")).collect();
    let all = futures::future::join_all(names.iter().map(|name| lead(&host, name))).await;
    sleep(SECOND).await;
    for (name, leadership) in names.iter().zip(&all) {
        delete(&store, name);
        assert_eq!(within(SECOND, leadership.lost()).await, LossReason::EntryGone);
    }
}

/// Work that is stopping is dropped when the store says that its session is gone, even if the elector is being closed.
#[tokio::test(start_paused = true)]
async fn work_that_is_stopping_is_dropped_when_the_session_is_gone() {
    let store = MemoryStore::new();
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let host = faulty_backend::host(&store, "a", move |call| match (call, is_gone.load(SeqCst)) {
        (Call::Watch, false) => Err(BackendError::new(BackendErrorKind::Unavailable, "later")),
        (Call::Watch, true) => Err(BackendError::new(BackendErrorKind::SessionGone, "gone")),
        _ => Ok(()),
    });
    let leadership = lead(&host, "e").await;
    let (is_running, work) = endless_work(&leadership);
    sleep(SECOND / 10).await;
    let elector = Arc::clone(&host.elector);
    let closing = tokio::spawn(async move { elector.close().await });
    sleep(SECOND).await;
    assert!(is_running.load(SeqCst));
    gone.store(true, SeqCst);
    // The watch is restarted after at most 2 s.
    within(SECOND * 4, work).await.unwrap().unwrap_err();
    drop(leadership);
    within(TTL, closing).await.unwrap();
}

/// A subscriber that panics when the leadership of the election `broken` ends.
struct PanicsOnLoss;

impl<S: Subscriber> Layer<S> for PanicsOnLoss {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        #[derive(Default)]
        struct EventFields {
            is_broken: bool,
            is_over: bool,
        }
        impl Visit for EventFields {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                let text = format!("{value:?}");
                self.is_broken |= field.name() == "election" && text.contains("broken");
                self.is_over |= text.contains("leads no more");
            }
        }
        let mut fields = EventFields::default();
        event.record(&mut fields);
        assert!(!(fields.is_broken && fields.is_over), "a bug in the subscriber");
    }
}

/// Hazard G14: a subscriber panics. No entry is removed while its work runs.
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_leaves_no_work_without_an_entry() {
    let store = MemoryStore::new();
    let _listens = tracing::subscriber::set_default(tracing_subscriber::registry().with(PanicsOnLoss));
    let host = Host::new(&store, "a");
    let (_broken, other) = (lead(&host, "broken").await, lead(&host, "other").await);
    let (is_running, work) = endless_work(&other);
    sleep(SECOND / 10).await;
    delete(&store, "broken");
    assert_eq!(within(SECOND, other.lost()).await, LossReason::SessionGivenUp);
    until("the work or its entry has gone", || !is_running.load(SeqCst) || store.entries("other").is_empty())
        .await;
    assert!(!is_running.load(SeqCst), "the entry was removed while its work ran");
    within(TTL, work).await.unwrap().unwrap_err();
}

/// Hazard G4: a thread that drops a guard and blocks does not delay the loss of another leadership.
#[test]
fn a_blocked_worker_does_not_delay_the_loss_of_another_leadership() {
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
            // Not signalled by a waker: a task that is woken by a worker may have to wait for that worker.
            dropped.store(true, SeqCst);
            // Blocks until the test ends.
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
        assert!(
            tokio::time::timeout(Duration::from_secs(10), gone).await.is_ok(),
            "the entry of the dropped guard is still there"
        );
    });
    let outcome = runtime.block_on(test);
    drop(unblock);
    outcome.unwrap();
}

/// Hazard E18: the entries of many elections are spread over several sessions, and sessions without an entry are closed.
#[tokio::test(start_paused = true)]
async fn a_session_has_a_limited_number_of_entries() {
    let store = MemoryStore::new();
    let host = faulty_backend::host_with_entries_per_session(&store, "a", 10);
    let names: Vec<_> = (0..25).map(|n| format!("e{n}")).collect();
    let campaigns = names.iter().map(|name| host.elector.campaign(name));
    let mut leaderships = within(TTL, futures::future::try_join_all(campaigns)).await.unwrap();
    assert_eq!(store.sessions().len(), 3);
    sleep(TTL * 3).await;
    assert!(leaderships.iter().all(|leadership| leadership.is_leader()));

    // There is room under the third session.
    leaderships.push(lead(&host, "another").await);
    assert_eq!(store.sessions().len(), 3);

    for leadership in leaderships {
        leadership.resign().await.unwrap();
    }
    until("the sessions without entries are closed", || store.sessions().len() == 1).await;
    let leadership = lead(&host, "e0").await;
    assert!(leadership.is_leader() && store.sessions().len() == 1);
    drop(leadership);
    host.elector.close().await;
    assert_nothing_left(&store).await;
}
