//! Electors that share an engine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use tenure_core::{
    Candidate, Config, ElectionName, Elector, Engine, LossReason, OnOverrun, SimClock, StoreElector,
    memory::{Link, MemoryBackend, MemoryStore},
    spi::{
        Backend, BackendError, BackendSession, Capabilities, Entered, Entry, EntryRequest, EntryWatcher,
        Heartbeat, HeartbeatProof, Observation, QueuePosition, SessionOptions, Won,
    },
};

use crate::harness::{
    CHILD, TEST_TIMEOUT, TTL, child_process, current_thread_runtime, elector_with, in_time, signal_of,
    thread_count, until,
};

fn elector_on(engine: &Engine, store: &MemoryStore) -> (Arc<StoreElector>, Link) {
    elector_with(store, |config| config.with_engine(engine.clone()))
}

#[test]
fn electors_on_one_engine_share_its_threads() {
    let engine = Engine::start().unwrap();
    let store = MemoryStore::new();
    let electors: Vec<_> = (0..8).map(|_| elector_on(&engine, &store).0).collect();
    let runtime = current_thread_runtime();
    let held: Vec<_> = electors
        .iter()
        .enumerate()
        .map(|(n, elector)| runtime.block_on(in_time(elector.campaign(&format!("e{n}")))).unwrap())
        .collect();
    assert!(held.iter().all(|leadership| leadership.is_leader()));
    assert_eq!((thread_count("tenure-engine"), thread_count("tenure-watchdog")), (1, 1));
    assert_eq!(store.sessions().len(), 8, "each elector has a session of its own");
    // An elector's engine can be shared, too.
    let config = Config::new().with_engine(electors[0].engine().unwrap());
    let ninth = StoreElector::new(Arc::new(store.backend()), config).unwrap();
    assert!(runtime.block_on(in_time(ninth.campaign("e9"))).unwrap().is_leader());
    assert_eq!(thread_count("tenure-engine"), 1);
    // One more elector has an engine of its own.
    let (_alone, _) = elector_with(&store, |config| config);
    let threads = || (thread_count("tenure-engine"), thread_count("tenure-watchdog"));
    until("it has started", || threads() == (2, 2));
}

/// Closing or dropping an elector affects no other, and the threads end after the last one.
#[test]
fn the_end_of_an_elector_affects_no_other_on_its_engine() {
    let engine = Engine::start().unwrap();
    let store = MemoryStore::new();
    let [closed, dropped, stays] = [(); 3].map(|()| elector_on(&engine, &store).0);
    // The electors keep the threads running.
    drop(engine);
    let runtime = current_thread_runtime();
    let lead =
        |elector: &StoreElector, election| runtime.block_on(in_time(elector.campaign(election))).unwrap();
    let (first, second, third) = (lead(&closed, "a"), lead(&dropped, "b"), lead(&stays, "c"));
    runtime.block_on(in_time(closed.close()));
    assert_eq!(first.loss(), Some(LossReason::Closed));
    drop(dropped);
    assert!(second.is_leader(), "a leadership outlives its elector");
    drop(second);
    until("two sessions are closed", || store.sessions().len() == 1);
    assert!(third.is_leader());
    // Its heartbeats continue.
    let begun = third.deadline();
    until("a heartbeat", || third.deadline() > begun);
    runtime.block_on(in_time(third.resign())).unwrap();
    assert!(lead(&stays, "a").is_leader());
    drop((closed, first, stays));
    until("the threads have ended", || thread_count("tenure-engine") == 0);
    until("the watchdog has ended", || thread_count("tenure-watchdog") == 0);
}

/// The deadlines of each elector are enforced: the one whose link is cut loses, and the other one leads.
#[test]
fn a_cut_link_ends_only_its_own_elector_s_leadership() {
    let engine = Engine::start().unwrap();
    let store = MemoryStore::new();
    let ((cut, link), (whole, _)) = (elector_on(&engine, &store), elector_on(&engine, &store));
    current_thread_runtime().block_on(async {
        let (lost, kept) =
            (in_time(cut.campaign("a")).await.unwrap(), in_time(whole.campaign("b")).await.unwrap());
        link.cut();
        assert_eq!(in_time(lost.lost()).await, LossReason::Deadline);
        assert!(kept.is_leader());
        // It takes over what the other one has lost.
        assert!(in_time(whole.campaign("a")).await.unwrap().is_leader());
    });
}

/// A backend whose heartbeats, observations and `close` panic once the flag is set.
#[derive(Debug)]
struct Panicking {
    inner: MemoryBackend,
    panics: Arc<AtomicBool>,
}

impl Panicking {
    fn check(panics: &AtomicBool) {
        assert!(!panics.load(SeqCst), "a bug in the backend");
    }
}

#[async_trait::async_trait]
impl Backend for Panicking {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let inner = self.inner.open_session(options).await?;
        Ok(Box::new(PanickingSession { inner, panics: Arc::clone(&self.panics) }))
    }
    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.inner.candidates(election).await
    }
    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        Self::check(&self.panics);
        self.inner.observe(election).await
    }
    async fn close(&self) {
        Self::check(&self.panics);
    }
}

#[derive(Debug)]
struct PanickingSession {
    inner: Box<dyn BackendSession>,
    panics: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl BackendSession for PanickingSession {
    fn id(&self) -> String {
        self.inner.id()
    }
    fn granted_ttl(&self) -> Duration {
        self.inner.granted_ttl()
    }

    fn only_heartbeats_extend(&self) -> bool {
        self.inner.only_heartbeats_extend()
    }
    fn proof(&self) -> HeartbeatProof {
        self.inner.proof()
    }
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        Panicking::check(&self.panics);
        self.inner.heartbeat().await
    }
    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        self.inner.enter(request).await
    }
    async fn wait_turn(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        self.inner.wait_turn(request, entry, position).await
    }
    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        self.inner.entry_watcher()
    }
    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.inner.update(entry, request).await
    }
    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        self.inner.leave(request, entry).await
    }
    async fn close(&self) -> Result<(), BackendError> {
        self.inner.close().await
    }
}

/// A backend that panics ends its own session. The other elector leads on, and the threads end in the end.
#[test]
fn a_backend_that_panics_ends_only_its_own_sessions() {
    let engine = Engine::start().unwrap();
    let (store, panics) = (MemoryStore::new(), Arc::new(AtomicBool::new(false)));
    let (good, _) = elector_on(&engine, &store);
    let backend = Panicking { inner: store.backend(), panics: Arc::clone(&panics) };
    let config = Config::new().with_ttl(TTL).with_engine(engine.clone());
    let bad = StoreElector::new(Arc::new(backend), config).unwrap();
    drop(engine);
    current_thread_runtime().block_on(async {
        let (kept, lost) =
            (in_time(good.campaign("a")).await.unwrap(), in_time(bad.campaign("b")).await.unwrap());
        let mut leaders = bad.observe("b");
        panics.store(true, SeqCst);
        in_time(futures::StreamExt::next(&mut leaders)).await.unwrap().unwrap_err();
        assert_eq!(in_time(lost.lost()).await, LossReason::SessionGivenUp);
        let begun = kept.deadline();
        until("a heartbeat", || kept.deadline() > begun);
        assert!(kept.is_leader());
    });
    drop((good, bad));
    until("the threads have ended", || thread_count("tenure-engine") == 0);
}

/// Work that blocks its thread for longer than its leadership lasts, under an elector with this policy.
fn overrun(engine: &Engine, policy: OnOverrun) {
    let store = MemoryStore::new();
    let (elector, link) =
        elector_with(&store, |config| config.with_engine(engine.clone()).with_on_overrun(policy));
    current_thread_runtime().block_on(async {
        let leadership = in_time(elector.campaign("e")).await.unwrap();
        link.cut();
        let begun = Instant::now();
        let work = async {
            // It watches the deadline itself, to stop soon after it.
            while leadership.remaining() > Duration::ZERO && begun.elapsed() < TEST_TIMEOUT {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(TTL / 4);
        };
        let _ = leadership.run(work).await;
    });
}

/// `OnOverrun` belongs to the elector: on one engine, one elector logs an overrun, and another one aborts.
#[test]
fn each_elector_of_an_engine_has_its_own_overrun_policy() {
    if std::env::var_os(CHILD).is_some() {
        let engine = Engine::start().unwrap();
        let aborting = |config: Config| config.with_engine(engine.clone()).with_on_overrun(OnOverrun::Abort);
        let (aborts, _) = elector_with(&MemoryStore::new(), aborting);
        overrun(&engine, OnOverrun::Log);
        println!("\nonly logged; {} timer", thread_count("tenure-abort"));
        drop(aborts);
        until("the timer has ended", || thread_count("tenure-abort") == 0);
        overrun(&engine, OnOverrun::Abort);
        std::process::exit(0);
    }
    let child = child_process("shared_engine::each_elector_of_an_engine_has_its_own_overrun_policy")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(output.contains("only logged; 1 timer"), "{output}{}", String::from_utf8_lossy(&child.stderr));
    assert_eq!(signal_of(&child.status), Some(6), "the process was not aborted: {:?}", child.status);
}

#[tokio::test(start_paused = true)]
async fn an_engine_and_a_clock_are_refused() {
    let config = Config::new().with_engine(Engine::start().unwrap());
    let backend = Arc::new(MemoryStore::new().backend());
    let error = StoreElector::with_clock(backend, config, Arc::new(SimClock::new())).unwrap_err();
    assert!(error.to_string().contains("an elector with a clock runs in the current runtime"), "{error}");
}
