//! Subscribers that filter, block or are set late, and what the engine logs.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use tenure_core::{Elector, memory::MemoryStore};

use crate::harness::{
    CapturedLog, Gate, TEST_TIMEOUT, elector, in_time, multi_thread_runtime, run_endless_work, until,
};

/// Each of two layers with different filters logs what its filter admits, and no more.
#[test]
fn filters_of_layers_apply_to_the_events_of_the_engine() {
    use tracing_subscriber::{Layer as _, filter::LevelFilter, layer::SubscriberExt as _};
    let (warnings, all) = (CapturedLog::default(), CapturedLog::default());
    let (warnings_writer, all_writer) = (warnings.clone(), all.clone());
    let subscriber = tracing_subscriber::registry()
        .with(
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(move || warnings_writer.clone())
                .with_filter(LevelFilter::WARN),
        )
        .with(
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(move || all_writer.clone())
                .with_filter(LevelFilter::DEBUG),
        );
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    link.cut();
    runtime.block_on(in_time(leadership.lost()));
    let is_logged = |log: &CapturedLog| log.text().contains("session ends");
    until("the loss is logged", || is_logged(&warnings) && is_logged(&all));
    link.heal();
    runtime.block_on(in_time(elector.close()));
    let (warnings, all) = (warnings.text(), all.text());
    let wrong: Vec<_> =
        warnings.lines().filter(|line| !line.contains(" WARN ") && !line.contains(" ERROR ")).collect();
    assert!(wrong.is_empty(), "the layer for warnings has {wrong:#?}");
    let count = |text: &str| text.lines().filter(|line| line.contains(" WARN ")).count();
    assert_eq!(count(&warnings), count(&all), "{warnings}\n---\n{all}");
}

/// A subscriber that blocks while changed certificates are logged does not block new connections.
#[cfg(feature = "tls")]
#[test]
fn a_log_that_blocks_does_not_block_the_reading_of_certificates() {
    let gate = Gate::default();
    let blocking = gate.clone();
    crate::harness::subscribe(move |_| blocking.wait());
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let pem = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    std::fs::write(&ca, pem).unwrap();
    let tls = tenure_core::Tls::from_files(&ca, None).unwrap();
    std::fs::write(&ca, "nothing").unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    // Like the thread of the engine.
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            // Files are read again after 5 s.
            tokio::time::advance(Duration::from_secs(6)).await;
            tokio::time::resume();
            tls.current().await
        });
        is_done.store(true, SeqCst);
        runtime.shutdown_background();
    });
    until("the log blocks", || gate.waiters() > 0);
    let begun = std::time::Instant::now();
    while !done.load(SeqCst) && begun.elapsed() < TEST_TIMEOUT {
        thread::sleep(Duration::from_millis(5));
    }
    let done = done.load(SeqCst);
    gate.open();
    assert!(done, "the thread that makes connections is blocked by the log");
}

/// Events of one elector, logged by a thread of another elector, are in no span of the other.
#[test]
fn an_event_of_one_elector_is_in_no_span_of_another() {
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let (store, parents) = (MemoryStore::new(), MemoryStore::new());
    let (a, _) = elector(&store);
    let (b, _) = elector(&parents);
    let (rival, _) = elector(&store);
    let runtime = multi_thread_runtime();
    let is_loss_of_child =
        |line: &str| line.contains("leads no more") && line.contains("\"election\":\"child\"");
    runtime.block_on(async {
        let mut leads = Vec::new();
        for n in 0..6 {
            leads.push(in_time(rival.campaign(&format!("other{n}"))).await.unwrap());
        }
        let child = in_time(a.campaign("child")).await.unwrap();
        let waits = Arc::clone(&a);
        let waiting: Vec<_> = (0..6)
            .map(|n| {
                let waits = Arc::clone(&waits);
                tokio::spawn(async move { waits.campaign(&format!("other{n}")).await })
            })
            .collect();
        until("they wait", || (0..6).all(|n| store.entries(&format!("other{n}")).len() == 2));
        // In the second session, the number of its span is that of a waiting candidate's span in the other elector.
        let first = in_time(b.campaign("parent")).await.unwrap();
        parents.expire_session(parents.sessions()[0]);
        in_time(first.lost()).await;
        let _ = first.resign().await;
        let parent = in_time(b.campaign("parent")).await.unwrap();
        let child = child.with_parent(parent);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let revision = parents.entries("parent")[0].revision;
        parents.delete_entry("parent", revision);
        in_time(child.lost()).await;
        until("the loss is logged", || log.text().lines().any(is_loss_of_child));
        drop(waiting);
    });
    let text = log.text();
    let line = text.lines().find(|line| is_loss_of_child(line)).unwrap();
    assert!(!line.contains("\"election\":\"other"), "{line}");
}

/// Everything that happened before `resign` returns is in the log, even if the program exits then.
#[test]
fn a_resignation_is_logged_when_it_returns() {
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || {
            // A slow log.
            thread::sleep(Duration::from_millis(5));
            writer.clone()
        })
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let store = MemoryStore::new();
    let (elector, _) = elector(&store);
    multi_thread_runtime().block_on(async {
        let leadership = in_time(elector.campaign("e")).await.unwrap();
        leadership.resign().await.unwrap();
    });
    let text = log.text();
    assert!(text.contains("leads no more"), "{text}");
}

/// A program that sets its subscriber after its first campaign receives the events from then on.
#[test]
fn a_subscriber_that_is_set_late_is_used() {
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    let log = CapturedLog::install();
    link.cut();
    runtime.block_on(in_time(leadership.lost()));
    until("the loss is logged", || log.text().contains("session ends"));
    drop(leadership);
}

/// A subscriber whose `register_callsite` waits for a lock that a blocked event holds.
struct LockingSubscriber {
    gate: Gate,
    lock: Mutex<()>,
    blocks: Arc<AtomicBool>,
}

impl tracing::Subscriber for LockingSubscriber {
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
            self.gate.wait();
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// A subscriber that blocks delays no deadline, even when an event is logged for the first time.
#[test]
fn a_log_that_blocks_the_registration_of_callsites_delays_no_deadline() {
    let gate = Gate::default();
    let blocks = Arc::new(AtomicBool::new(false));
    let subscriber =
        LockingSubscriber { gate: gate.clone(), lock: Mutex::default(), blocks: Arc::clone(&blocks) };
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let store = MemoryStore::new();
    let (elector, link) = elector(&store);
    let runtime = multi_thread_runtime();
    // The span of work is made on the thread of the caller, whose own subscriber may block it. Its callsite is registered
    // here, before the subscriber blocks.
    let leadership = runtime.block_on(async {
        let warm = in_time(elector.campaign("warm")).await.unwrap();
        warm.run(std::future::ready(())).await.unwrap();
        blocks.store(true, SeqCst);
        in_time(elector.campaign("one")).await.unwrap()
    });
    until("the log blocks", || gate.waiters() > 0);
    let work = run_endless_work(&runtime, &leadership);
    link.cut();
    let ended = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, work).await });
    gate.open();
    assert!(ended.is_ok(), "the deadline was not enforced");
}

/// Metrics are recorded while the log blocks.
#[cfg(feature = "metrics")]
#[test]
fn a_log_that_blocks_delays_no_metrics() {
    let gate = Gate::default();
    tracing::subscriber::set_global_default(LockingSubscriber {
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
    let runtime = multi_thread_runtime();
    let leadership = runtime.block_on(in_time(elector.campaign("e"))).unwrap();
    until("the log blocks", || gate.waiters() > 0);
    let first_deadline = leadership.deadline();
    until("heartbeats extend the deadline", || {
        leadership.deadline() > first_deadline + crate::harness::TTL / 2
    });
    assert!(leadership.is_leader());
    let is_measured = || {
        let snapshot = snapshots.snapshot().into_vec();
        snapshot.iter().any(|(key, ..)| key.key().name().contains("heartbeat"))
    };
    until("a heartbeat is measured", is_measured);
    gate.open();
}
