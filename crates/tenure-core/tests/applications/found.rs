//! What reviews have found: code of an application that broke a promise, and does no longer.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
    thread,
    time::Duration,
};

use tenure_core::{
    BootClock, Candidate, CandidateId, Clock, Config, ElectionName, Elector, ElectorExt, Error, Hierarchy,
    Leadership, LossReason, OnOverrun, SimClock, StoreElector,
    memory::{Delivery, Direction, Link, MemoryBackend, MemoryStore, Op},
    spi::{Backend, BackendError, BackendSession, Capabilities, Observation},
};

use crate::stage::{
    CHILD, Gate, PATIENCE, TTL, again, elector, one_thread, poll_with, several_threads, signal_of, soon,
    until, waker, with,
};

/// A guard that is dropped where somebody waits with a waker that panics is still given back.
#[test]
fn a_waker_that_panics_keeps_no_entry_when_the_guard_is_dropped() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    let handle = leadership.handle();
    let mut lost = pin!(handle.lost());
    assert!(poll_with(lost.as_mut(), &waker(|| panic!("a waker with a bug"))).is_pending());
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(leadership)));
    until("the entry is gone", || store.entries("e").is_empty());
    assert!(dropped.is_ok(), "drop panicked");
}

/// Hazard G26: `drop` never blocks.
#[test]
fn a_waker_that_blocks_does_not_block_the_drop_of_a_guard() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    let handle = leadership.handle();
    let gate = Gate::default();
    let mut lost = pin!(handle.lost());
    let waits = gate.clone();
    assert!(poll_with(lost.as_mut(), &waker(move || waits.pass())).is_pending());
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    thread::spawn(move || {
        drop(leadership);
        is_done.store(true, SeqCst);
    });
    until("the guard is dropped", || done.load(SeqCst));
    gate.open();
}

/// One listener's waker that panics takes the news from no other.
#[test]
fn a_waker_that_panics_silences_no_other_listener() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    let token = leadership.cancellation_token();
    let mut bad = pin!(token.cancelled());
    assert!(poll_with(bad.as_mut(), &waker(|| panic!("a waker with a bug"))).is_pending());
    let handle = leadership.handle();
    let waits = Arc::new(AtomicBool::new(false));
    let is_waiting = Arc::clone(&waits);
    let lost = runtime.spawn(async move {
        let mut lost = pin!(handle.lost());
        assert!(futures::poll!(lost.as_mut()).is_pending());
        is_waiting.store(true, SeqCst);
        lost.await
    });
    until("somebody waits", || waits.load(SeqCst));
    link.cut();
    let lost = runtime.block_on(async { tokio::time::timeout(PATIENCE, lost).await });
    assert!(lost.is_ok(), "nobody told the other listener");
}

/// Hazard G26: the same for `run`: other work of the same leadership is dropped.
#[test]
fn a_waker_that_panics_keeps_no_other_work() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    let mut bad = pin!(leadership.run(std::future::pending::<()>()));
    assert!(poll_with(bad.as_mut(), &waker(|| panic!("a waker with a bug"))).is_pending());
    let handle = leadership.handle();
    let works = Arc::new(AtomicBool::new(false));
    let is_working = Arc::clone(&works);
    let work = async move {
        is_working.store(true, SeqCst);
        std::future::pending::<()>().await;
    };
    let work = runtime.spawn(async move { handle.run(work).await });
    until("it works", || works.load(SeqCst));
    link.cut();
    let work = runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await });
    assert!(work.is_ok(), "run never returned");
}

/// Hazard G26: wakers that block, more than there are threads: the work of another leadership is dropped all the same.
#[test]
fn many_wakers_that_block_delay_no_other_leadership() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let gate = Gate::default();
    let waits = gate.clone();
    let blocks = waker(move || waits.pass());
    let good = runtime.block_on(soon(elector.campaign("good"))).unwrap();
    let mut asking: Vec<_> = (0..9).map(|_| elector.leader("good")).collect();
    for question in &mut asking {
        let _ = poll_with(question.as_mut(), &blocks);
    }
    until("all callback threads block", || gate.blocked() >= 8);
    let (handle, token) = (good.handle(), good.cancellation_token());
    let works = Arc::new(AtomicBool::new(false));
    let is_working = Arc::clone(&works);
    let work = async move {
        is_working.store(true, SeqCst);
        std::future::pending::<()>().await;
    };
    let work = runtime.spawn(async move { handle.run(work).await });
    until("it works", || works.load(SeqCst));
    link.cut();
    let deadline = good.deadline();
    let work = runtime.block_on(async { tokio::time::timeout(TTL * 3, work).await });
    let late = BootClock.now().since(deadline);
    let cancelled = token.is_cancelled();
    gate.open();
    assert!(
        work.is_ok() && cancelled,
        "{late:?} after the deadline: run returned {}, token cancelled {cancelled}",
        work.is_ok()
    );
}

/// A task of a `LocalSet` has a waker of tokio's, which calls the waker of whoever polls the set.
#[test]
fn the_waker_behind_a_local_set_is_not_called_by_the_engine() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = several_threads();
    let held = runtime.block_on(soon(elector.campaign("held"))).unwrap();
    let gate = Gate::default();
    let names = Arc::new(Mutex::new(Vec::new()));
    let (waits, named) = (gate.clone(), Arc::clone(&names));
    let (asking, store2) = (Arc::clone(&elector), store.clone());
    thread::spawn(move || {
        let blocks = waker(move || {
            named.lock().unwrap().push(thread::current().name().unwrap_or("?").to_owned());
            waits.pass();
        });
        let set = tokio::task::LocalSet::new();
        set.spawn_local(async move {
            let _ = asking.campaign("other").await;
        });
        let mut set = pin!(set);
        let _ = poll_with(set.as_mut(), &blocks);
        until("ever", || store2.entries("never").len() == 1);
    });
    until("the waker is called", || gate.blocked() > 0);
    let beats = BootClock.now() + TTL * 2;
    runtime.block_on(BootClock.sleep_until(beats));
    let leads = held.is_leader();
    gate.open();
    assert!(
        leads,
        "the engine was kept from its heartbeats; the waker was called on {:?}",
        names.lock().unwrap()
    );
}

/// Hazard G26: work is aborted at its deadline, however many other leaderships somebody only listens to.
#[test]
fn an_overrun_aborts_beside_many_leaderships_without_work() {
    if std::env::var_os(CHILD).is_some() {
        let store = MemoryStore::new();
        let (elector, link) = with(&store, |config| config.with_on_overrun(OnOverrun::Abort));
        one_thread().block_on(async {
            let mut held = Vec::new();
            for n in 0..64 {
                let leadership = elector.campaign(&format!("e{n}")).await.unwrap();
                let token = leadership.cancellation_token();
                held.push((leadership, token));
            }
            let leadership = elector.campaign("worked").await.unwrap();
            link.cut();
            let _ = leadership
                .run(async {
                    thread::sleep(TTL * 4);
                })
                .await;
        });
        std::process::exit(0);
    }
    let child = again("found::an_overrun_aborts_beside_many_leaderships_without_work").output().unwrap();
    assert_eq!(signal_of(&child.status), Some(6), "nobody aborted: {:?}", child.status);
}

/// A future that a thread keeps in a variable of its own is dropped when the thread ends.
#[test]
fn work_kept_by_a_thread_does_not_abort_the_process_when_that_ends() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>> = const { std::cell::RefCell::new(None) };
    }
    if std::env::var_os(CHILD).is_some() {
        let store = MemoryStore::new();
        let (elector, _) = elector(&store);
        let leadership = one_thread().block_on(soon(elector.campaign("e"))).unwrap();
        let handle = leadership.handle();
        thread::spawn(move || {
            KEPT.with_borrow_mut(|kept| *kept = None);
            let mut work: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                let _ = handle.run(std::future::pending::<()>()).await;
            });
            assert!(poll_with(work.as_mut(), Waker::noop()).is_pending());
            KEPT.with_borrow_mut(|kept| *kept = Some(work));
        })
        .join()
        .unwrap();
        std::process::exit(0);
    }
    let child =
        again("found::work_kept_by_a_thread_does_not_abort_the_process_when_that_ends").output().unwrap();
    assert!(child.status.success(), "{:?}: {}", child.status, String::from_utf8_lossy(&child.stderr));
}

/// The same for a guard.
#[test]
fn a_guard_kept_by_a_thread_does_not_abort_the_process_when_that_ends() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Leadership>> = const { std::cell::RefCell::new(None) };
    }
    if std::env::var_os(CHILD).is_some() {
        let store = MemoryStore::new();
        let (elector, _) = elector(&store);
        thread::spawn(move || {
            KEPT.with_borrow_mut(|kept| *kept = None);
            let leadership = one_thread().block_on(soon(elector.campaign("e"))).unwrap();
            KEPT.with_borrow_mut(|kept| *kept = Some(leadership));
        })
        .join()
        .unwrap();
        std::process::exit(0);
    }
    let child =
        again("found::a_guard_kept_by_a_thread_does_not_abort_the_process_when_that_ends").output().unwrap();
    assert!(child.status.success(), "{:?}: {}", child.status, String::from_utf8_lossy(&child.stderr));
}

/// A leadership that was lost, and whose elector is gone, says why.
#[test]
fn a_resignation_after_the_engine_has_ended_says_why_leadership_was_lost() {
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    runtime.block_on(soon(elector.close()));
    assert!(store.sessions().is_empty());
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    drop(elector);
    thread::sleep(Duration::from_millis(300));
    let outcome = runtime.block_on(soon(leadership.resign()));
    assert!(matches!(&outcome, Err(Error::Lost(lost)) if lost.reason == LossReason::Closed), "{outcome:?}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log with two layers, each with a filter of its own, has in each what its filter lets through, and no more.
#[test]
fn filters_of_layers_hold_for_what_the_engine_logs() {
    use tracing_subscriber::{Layer as _, filter::LevelFilter, layer::SubscriberExt as _};
    let (few, many) = (Lines::default(), Lines::default());
    let (few_writer, many_writer) = (few.clone(), many.clone());
    let subscriber = tracing_subscriber::registry()
        .with(
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(move || few_writer.clone())
                .with_filter(LevelFilter::WARN),
        )
        .with(
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(move || many_writer.clone())
                .with_filter(LevelFilter::DEBUG),
        );
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    link.cut();
    runtime.block_on(soon(leadership.lost()));
    thread::sleep(Duration::from_millis(300));
    link.heal();
    runtime.block_on(soon(elector.close()));
    let text = |lines: &Lines| String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let (few, many) = (text(&few), text(&many));
    let wrong: Vec<_> =
        few.lines().filter(|line| !line.contains(" WARN ") && !line.contains(" ERROR ")).collect();
    assert!(wrong.is_empty(), "the layer for warnings has {wrong:#?}");
    let warnings = |text: &str| text.lines().filter(|line| line.contains(" WARN ")).count();
    assert_eq!(warnings(&few), warnings(&many), "{few}\n---\n{many}");
}

const SIM_TTL: Duration = Duration::from_secs(10);

fn host(store: &MemoryStore, id: &str) -> (Arc<StoreElector>, Link) {
    let backend = store.backend();
    let link = backend.link().clone();
    let config = Config::new().with_ttl(SIM_TTL).with_id(CandidateId::new(id).unwrap());
    let elector = StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new())).unwrap();
    (Arc::new(elector), link)
}

/// Hazard G29: `campaign_until` has withdrawn when it returns `None`, or has waited for the shutdown timeout; also when the session ended
/// just before it was given up.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_after_its_session_ended_has_left() {
    let store = MemoryStore::new();
    let ((a, _), (b, link)) = (host(&store, "a"), host(&store, "b"));
    let _leads = a.campaign("e").await.unwrap();
    let given_up = async {
        while store.entries("e").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        link.cut();
        // The session's window closes after 8 s at most; the store keeps it for 10.
        tokio::time::sleep(Duration::from_millis(8_200)).await;
    };
    let from = tokio::time::Instant::now();
    let outcome = b.campaign_until("e", Box::pin(given_up)).await.unwrap();
    assert!(outcome.is_none());
    let waited = from.elapsed();
    assert!(
        store.entries("e").len() == 1 || waited > Duration::from_secs(13),
        "its entry stands yet, after {waited:?}"
    );
}

/// Hazard G29: the same when the session ends while the candidate withdraws.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_before_its_session_ends_has_left() {
    let store = MemoryStore::new();
    let ((a, _), (b, link)) = (host(&store, "a"), host(&store, "b"));
    let _leads = a.campaign("e").await.unwrap();
    let given_up = async {
        while store.entries("e").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        link.cut();
        tokio::time::sleep(Duration::from_millis(7_000)).await;
    };
    let from = tokio::time::Instant::now();
    assert!(b.campaign_until("e", Box::pin(given_up)).await.unwrap().is_none());
    let waited = from.elapsed();
    assert!(
        store.entries("e").len() == 1 || waited > Duration::from_millis(11_900),
        "its entry stands yet, after {waited:?}"
    );
}

/// Hazard G30: the shutdown of a candidate of a group takes no longer than the shutdown timeout.
#[tokio::test(start_paused = true)]
async fn the_shutdown_of_a_waiting_hierarchy_is_bounded() {
    let store = MemoryStore::new();
    let (a, b) = (host(&store, "a"), host(&store, "b"));
    // A TTL so long that no session ends meanwhile.
    let _leads = a.0.campaign("e").await.unwrap();
    let backend = store.backend();
    let link = backend.link().clone();
    let config = Config::new().with_ttl(Duration::from_secs(120));
    let long =
        Arc::new(StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new())).unwrap());
    drop(b);
    let group = Hierarchy::new(long as Arc<dyn Elector>, "g").unwrap();
    let begun = Mutex::new(None);
    let shutdown = async {
        while store.entries("e").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        link.cut();
        *begun.lock().unwrap() = Some(tokio::time::Instant::now());
    };
    group.run_while_leader("e", shutdown, |_| async { panic!("it never leads") }).await.unwrap();
    let took = begun.lock().unwrap().unwrap().elapsed();
    assert!(took <= Config::DEFAULT_SHUTDOWN_TIMEOUT + Duration::from_millis(500), "{took:?}");
}

/// Hazard G26: work whose drop blocks beyond the deadline is reported, also when nobody polled it at the deadline itself.
#[test]
fn an_overrun_in_a_late_drop_is_reported() {
    struct Blocks;
    impl Drop for Blocks {
        fn drop(&mut self) {
            thread::sleep(Duration::from_secs(2));
        }
    }
    let overruns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&overruns);
    let store = MemoryStore::new();
    let (elector, link) = with(&store, |config| {
        config.with_on_overrun(OnOverrun::Hook(Arc::new(move |_| {
            counted.fetch_add(1, SeqCst);
        })))
    });
    one_thread().block_on(async {
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let blocks = Blocks;
        let work = leadership.run(async move {
            let _blocks = blocks;
            std::future::pending::<()>().await;
        });
        let mut work = pin!(work);
        assert!(futures::poll!(work.as_mut()).is_pending());
        // The runtime is blocked by something else until after the deadline.
        thread::sleep(TTL + Duration::from_millis(300));
        work.await.unwrap_err();
    });
    assert_eq!(overruns.load(SeqCst), 1);
}

/// A backend of somebody's own.
#[derive(Debug)]
struct Own {
    inner: MemoryBackend,
    closed: AtomicUsize,
    observe_panics: bool,
}

#[async_trait::async_trait]
impl Backend for Own {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        self.inner.open_session(ttl).await
    }
    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.inner.candidates(election).await
    }
    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        assert!(!self.observe_panics, "a bug in the backend");
        self.inner.observe(election).await
    }
    async fn close(&self) {
        self.closed.fetch_add(1, SeqCst);
    }
}

fn own(store: &MemoryStore, observe_panics: bool) -> Arc<Own> {
    Arc::new(Own { inner: store.backend(), closed: AtomicUsize::new(0), observe_panics })
}

/// `close` that work awaits goes on in the background, to its end.
#[test]
fn close_inside_work_lets_go_of_the_backend() {
    let store = MemoryStore::new();
    let backend = own(&store, false);
    let elector =
        StoreElector::new(Arc::clone(&backend) as Arc<dyn Backend>, Config::new().with_ttl(TTL)).unwrap();
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    runtime.block_on(leadership.run(elector.close())).unwrap();
    drop(leadership);
    until("the session is closed", || store.sessions().is_empty());
    until("the backend is closed", || backend.closed.load(SeqCst) > 0);
}

/// A stream of leaders that ends says why.
#[test]
fn an_observation_that_panics_does_not_end_in_silence() {
    let store = MemoryStore::new();
    let elector = StoreElector::new(own(&store, true), Config::new().with_ttl(TTL)).unwrap();
    let mut leaders = elector.observe("e");
    let first = one_thread().block_on(soon(futures::StreamExt::next(&mut leaders)));
    assert!(first.is_some(), "it ended without a word");
}

/// A log that blocks while changed certificates are taken keeps nobody from connecting.
#[cfg(feature = "tls")]
#[test]
fn a_log_that_blocks_does_not_block_who_asks_for_certificates() {
    struct Blocks(Gate);
    impl tracing::Subscriber for Blocks {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.pass();
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    let gate = Gate::default();
    tracing::subscriber::set_global_default(Blocks(gate.clone())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let pem = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    std::fs::write(&ca, pem).unwrap();
    let tls = tenure_core::Tls::from_files(&ca, None).unwrap();
    std::fs::write(&ca, "nothing").unwrap();
    thread::sleep(Duration::from_millis(5_200));
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    // As the engine's thread.
    thread::spawn(move || {
        let runtime = one_thread();
        runtime.block_on(tls.current());
        is_done.store(true, SeqCst);
        runtime.shutdown_background();
    });
    until("the log blocks", || gate.blocked() > 0);
    let begun = std::time::Instant::now();
    while !done.load(SeqCst) && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    let done = done.load(SeqCst);
    gate.open();
    assert!(done, "the thread that makes connections is blocked by the log");
}

/// What one elector's thread has another's log has none of the other's spans.
#[test]
fn an_event_of_another_elector_is_in_no_span_of_a_stranger() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let (store, groups) = (MemoryStore::new(), MemoryStore::new());
    let (a, _) = elector(&store);
    let (b, _) = elector(&groups);
    let (rival, _) = elector(&store);
    let runtime = several_threads();
    runtime.block_on(async {
        let mut leads = Vec::new();
        for n in 0..6 {
            leads.push(soon(rival.campaign(&format!("other{n}"))).await.unwrap());
        }
        let top = soon(a.campaign("top")).await.unwrap();
        let waits = Arc::clone(&a);
        let waiting: Vec<_> = (0..6)
            .map(|n| {
                let waits = Arc::clone(&waits);
                tokio::spawn(async move { waits.campaign(&format!("other{n}")).await })
            })
            .collect();
        until("they wait", || (0..6).all(|n| store.entries(&format!("other{n}")).len() == 2));
        // Another session: its span has the number that the waiting candidate's has there.
        let first = soon(b.campaign("base")).await.unwrap();
        groups.expire_session(groups.sessions()[0]);
        soon(first.lost()).await;
        let _ = first.resign().await;
        let base = soon(b.campaign("base")).await.unwrap();
        let top = top.with_parent(base);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let revision = groups.entries("base")[0].revision;
        groups.delete_entry("base", revision);
        soon(top.lost()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(waiting);
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains("leads no more") && line.contains("\"election\":\"top\""))
        .unwrap();
    assert!(!line.contains("\"election\":\"other"), "{line}");
}

/// Work of the leadership below that resigns what rests on it does not wait for itself.
#[tokio::test(start_paused = true)]
async fn work_below_does_not_wait_for_itself() {
    let store = MemoryStore::new();
    let (a, _) = host(&store, "a");
    let base = a.campaign("base").await.unwrap();
    let below = base.handle();
    let top = a.campaign("top").await.unwrap().with_parent(base);
    let from = tokio::time::Instant::now();
    let outcome = below.run(top.resign()).await;
    assert!(from.elapsed() < Duration::from_secs(1), "{outcome:?} after {:?}", from.elapsed());
}

/// The same for `close`.
#[tokio::test(start_paused = true)]
async fn closing_a_hierarchy_inside_its_work_waits_for_nothing() {
    let store = MemoryStore::new();
    let ((a, _), (b, _)) = (host(&store, "a"), host(&store, "b"));
    let group = Hierarchy::new(a as Arc<dyn Elector>, "g").unwrap().with_group_elector(b as Arc<dyn Elector>);
    let leadership = group.campaign("e").await.unwrap();
    let from = tokio::time::Instant::now();
    let outcome = leadership.run(group.close()).await;
    assert!(from.elapsed() < Duration::from_secs(1), "{outcome:?} after {:?}", from.elapsed());
}

/// What has happened by the time `resign` returns is in the log of a program that ends then.
#[test]
fn a_resignation_is_logged_when_it_returns() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || {
            thread::sleep(Duration::from_millis(5));
            writer.clone()
        })
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    several_threads().block_on(async {
        let leadership = soon(elector.campaign("e")).await.unwrap();
        leadership.resign().await.unwrap();
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("leads no more"), "{text}");
}

/// A subscriber whose `register_callsite` waits for what a blocked event holds.
struct OneLock {
    gate: Gate,
    lock: Mutex<()>,
    blocks: Arc<AtomicBool>,
}

impl tracing::Subscriber for OneLock {
    fn register_callsite(
        &self,
        metadata: &'static tracing::Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        if metadata.target().starts_with("tenure") {
            drop(self.lock.lock());
        }
        tracing::subscriber::Interest::sometimes()
    }
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("tenure") && *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        let _lock = self.lock.lock();
        if self.blocks.load(SeqCst) {
            self.gate.pass();
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// A log that takes nothing more keeps no deadline, also when an event is logged for the first time.
#[test]
fn a_log_that_blocks_where_places_are_registered_keeps_no_deadline() {
    let gate = Gate::default();
    let blocks = Arc::new(AtomicBool::new(false));
    let log = OneLock { gate: gate.clone(), lock: Mutex::default(), blocks: Arc::clone(&blocks) };
    tracing::subscriber::set_global_default(log).unwrap();
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    // The span of work is made on the caller's thread, where the caller's own subscriber may block: it is registered before.
    let one = runtime.block_on(async {
        let warm = soon(elector.campaign("warm")).await.unwrap();
        warm.run(std::future::ready(())).await.unwrap();
        blocks.store(true, SeqCst);
        soon(elector.campaign("one")).await.unwrap()
    });
    until("the log blocks", || gate.blocked() > 0);
    let handle = one.handle();
    let works = Arc::new(AtomicBool::new(false));
    let is_working = Arc::clone(&works);
    let work = async move {
        is_working.store(true, SeqCst);
        std::future::pending::<()>().await;
    };
    let work = runtime.spawn(async move { handle.run(work).await });
    until("it works", || works.load(SeqCst));
    link.cut();
    let told = runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await });
    gate.open();
    assert!(told.is_ok(), "nobody enforced the deadline");
}

/// Work that is polled when it is dropped, and stops in time, is no overrun.
#[test]
fn work_that_stops_in_time_is_no_overrun() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let store = MemoryStore::new();
    let (elector, link) = with(&store, |config| config.with_on_overrun(OnOverrun::Abort));
    one_thread().block_on(async {
        let leadership = elector.campaign("e").await.unwrap();
        link.cut();
        let deadline = leadership.deadline();
        let work = async {
            loop {
                thread::sleep(Duration::from_millis(5));
                tokio::task::yield_now().await;
            }
        };
        let outcome: Result<(), _> = leadership.run(work).await;
        outcome.unwrap_err();
        assert!(BootClock.now() < deadline);
    });
    thread::sleep(Duration::from_millis(300));
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("aborted"), "{text}");
}

/// A program that sets its log up after its first campaign is told how that ends.
#[test]
fn a_log_that_is_set_late_is_used() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    link.cut();
    runtime.block_on(soon(leadership.lost()));
    thread::sleep(Duration::from_millis(300));
    drop(leadership);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("session ends"), "nothing was logged: {text:?}");
}

/// A callback whose panic panics again ends no thread.
#[test]
fn a_panic_that_panics_when_dropped_ends_no_thread() {
    struct Evil;
    impl Drop for Evil {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("again");
            }
        }
    }
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = several_threads();
    let good = runtime.block_on(soon(elector.campaign("good"))).unwrap();
    let evil = waker(|| std::panic::panic_any(Evil));
    for _ in 0..9 {
        let mut question = elector.leader("good");
        let _ = poll_with(question.as_mut(), &evil);
        thread::sleep(Duration::from_millis(50));
    }
    let handle = good.handle();
    let lost = runtime.spawn(async move { handle.lost().await });
    link.cut();
    assert!(
        runtime.block_on(async { tokio::time::timeout(PATIENCE, lost).await }).is_ok(),
        "no callback thread is left"
    );
}

/// Hazard G30: a campaign that is given up waits no longer than the shutdown timeout, also when it wins late.
#[tokio::test(start_paused = true)]
async fn a_campaign_given_up_that_wins_late_is_bounded() {
    let store = MemoryStore::new();
    let backend = store.backend();
    let link = backend.link().clone();
    let config = Config::new().with_ttl(Duration::from_secs(60));
    let elector = StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new())).unwrap();
    link.set(&[Op::Enter], Direction::Response, Delivery::Delay(Duration::from_millis(4_900)));
    link.set(&[Op::Leave], Direction::Request, Delivery::Drop);
    let from = tokio::time::Instant::now();
    let given_up = tokio::time::sleep(Duration::from_millis(10));
    assert!(elector.campaign_until("e", Box::pin(given_up)).await.unwrap().is_none());
    let took = from.elapsed();
    assert!(took <= Config::DEFAULT_SHUTDOWN_TIMEOUT + Duration::from_millis(500), "{took:?}");
}

/// A log that blocks keeps no measurements.
#[cfg(feature = "metrics")]
#[test]
fn a_log_that_blocks_keeps_no_measurements() {
    let gate = Gate::default();
    tracing::subscriber::set_global_default(OneLock {
        gate: gate.clone(),
        lock: Mutex::default(),
        blocks: Arc::new(AtomicBool::new(true)),
    })
    .unwrap();
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    recorder.install().unwrap();
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    let runtime = several_threads();
    let leadership = runtime.block_on(soon(elector.campaign("e"))).unwrap();
    until("the log blocks", || gate.blocked() > 0);
    thread::sleep(TTL);
    assert!(leadership.is_leader());
    let measured =
        snapshots.snapshot().into_vec().iter().any(|(key, ..)| key.key().name().contains("heartbeat"));
    gate.open();
    assert!(measured, "no heartbeat was measured in {TTL:?}");
}
