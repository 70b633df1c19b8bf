//! What these tests share: electors over the in-memory store in real time, and things that block or act.

use std::{
    future::Future,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use tenure_core::{
    BootClock, Clock, Config, StoreElector,
    memory::{Link, MemoryStore},
};
use tokio::runtime::{Builder, Runtime};
use tracing::{
    Event, Level, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

pub(crate) const TTL: Duration = Duration::from_secs(2);
/// What a busy machine may add to a deadline that is met.
pub(crate) const SLACK: Duration = Duration::from_millis(500);
/// How long to wait for what has to happen. Where a rule is broken on purpose, it does not.
pub(crate) const PATIENCE: Duration =
    if cfg!(tenure_mutants) { Duration::from_secs(8) } else { Duration::from_secs(30) };

pub(crate) fn elector(store: &MemoryStore) -> (Arc<StoreElector>, Link) {
    with(store, |config| config)
}

pub(crate) fn with(
    store: &MemoryStore,
    settings: impl FnOnce(Config) -> Config,
) -> (Arc<StoreElector>, Link) {
    let backend = store.backend();
    let link = backend.link().clone();
    let config = settings(Config::new().with_ttl(TTL));
    (Arc::new(StoreElector::new(Arc::new(backend), config).unwrap()), link)
}

pub(crate) fn several_threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

pub(crate) fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits, without any runtime, until `condition` holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The outcome of `future`, which has to come soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("not in time")
}

/// A subscriber that does something with each event of this library.
pub(crate) struct Acts<F>(F);

impl<F: Fn(Level) + Send + Sync + 'static> Subscriber for Acts<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tenure") && *metadata.level() <= Level::INFO
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        (self.0)(*event.metadata().level());
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

pub(crate) fn listen(act: impl Fn(Level) + Send + Sync + 'static) {
    tracing::subscriber::set_global_default(Acts(act))
        .expect("a process for each test: run this with cargo-nextest");
}

/// Something that blocks whoever comes, until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>, Arc<AtomicUsize>);

impl Gate {
    pub(crate) fn pass(&self) {
        self.1.fetch_add(1, SeqCst);
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }

    /// How many have come.
    pub(crate) fn blocked(&self) -> usize {
        self.1.load(SeqCst)
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// When work was polled last, by the clock that deadlines are measured with.
#[derive(Clone, Default)]
pub(crate) struct Ticks(Arc<Mutex<Option<u64>>>);

impl Ticks {
    /// Work that listens to nothing.
    pub(crate) async fn work(self) {
        loop {
            *self.0.lock().unwrap() = Some(BootClock.now().as_nanos());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.0.lock().unwrap().expect("it has worked")
    }
}

pub(crate) fn now() -> u64 {
    BootClock.now().as_nanos()
}

pub(crate) const CHILD: &str = "TENURE_TEST_CHILD";

/// This test in a process of its own.
pub(crate) fn again(test: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child
}

pub(crate) fn signal_of(status: &std::process::ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(status)
}

/// Wakes by doing something, as an executor of somebody's own may.
pub(crate) struct Does<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for Does<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

pub(crate) fn waker(act: impl Fn() + Send + Sync + 'static) -> Waker {
    Waker::from(Arc::new(Does(act)))
}

pub(crate) fn poll_with<F: Future + ?Sized>(future: std::pin::Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}
