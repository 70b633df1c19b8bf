//! Shared helpers: electors with the in-memory store in real time, and wakers, subscribers and gates for misbehaving
//! applications.

use std::{
    future::Future,
    io,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use tenure_core::{
    BootClock, Clock, Config, Leadership, Lost, StoreElector,
    memory::{Link, MemoryStore},
};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

pub(crate) const TTL: Duration = Duration::from_secs(2);
/// The time that a busy machine may add to a deadline that is met.
pub(crate) const SLACK: Duration = Duration::from_millis(500);
/// The time after which an expected event counts as missing. It is shorter in builds with disabled safety rules, where
/// expected events do not happen.
pub(crate) const TEST_TIMEOUT: Duration =
    if cfg!(tenure_mutants) { Duration::from_secs(8) } else { Duration::from_secs(30) };

pub(crate) fn elector(store: &MemoryStore) -> (Arc<StoreElector>, Link) {
    elector_with(store, |config| config)
}

pub(crate) fn elector_with(
    store: &MemoryStore,
    settings: impl FnOnce(Config) -> Config,
) -> (Arc<StoreElector>, Link) {
    let backend = store.backend();
    let link = backend.link().clone();
    let config = settings(Config::new().with_ttl(TTL));
    (Arc::new(StoreElector::new(Arc::new(backend), config).unwrap()), link)
}

pub(crate) fn multi_thread_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

pub(crate) fn current_thread_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits, without any runtime, until `condition` holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TEST_TIMEOUT, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The output of `future`, which has to complete within [`TEST_TIMEOUT`].
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, future).await.expect("not in time")
}

/// Runs work that never ends under `leadership`, and waits until it has begun.
pub(crate) fn run_endless_work(runtime: &Runtime, leadership: &Leadership) -> JoinHandle<Result<(), Lost>> {
    let handle = leadership.handle();
    let has_begun = Arc::new(AtomicBool::new(false));
    let begins = Arc::clone(&has_begun);
    let work = async move {
        begins.store(true, SeqCst);
        std::future::pending::<()>().await;
    };
    let work = runtime.spawn(async move { handle.run(work).await });
    until("the work has begun", || has_begun.load(SeqCst));
    work
}

/// A subscriber that calls a function for each event of this library.
pub(crate) struct CallbackSubscriber<F>(F);

impl<F: Fn(Level) + Send + Sync + 'static> Subscriber for CallbackSubscriber<F> {
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

/// Sets the subscriber of this process, which calls `on_event` for each event.
pub(crate) fn subscribe(on_event: impl Fn(Level) + Send + Sync + 'static) {
    tracing::subscriber::set_global_default(CallbackSubscriber(on_event))
        .expect("run this with cargo-nextest, which starts a process for each test");
}

/// A log in memory; clones are the same log.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    /// Sets the subscriber of this process, which writes plain text to a new log.
    pub(crate) fn install() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks all callers of [`wait`](Self::wait) until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>, Arc<AtomicUsize>);

impl Gate {
    pub(crate) fn wait(&self) {
        self.1.fetch_add(1, SeqCst);
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }

    /// The number of calls of [`wait`](Self::wait) so far.
    pub(crate) fn waiters(&self) -> usize {
        self.1.load(SeqCst)
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// When work was polled last, by the clock that deadlines are measured with.
#[derive(Clone, Default)]
pub(crate) struct LastPoll(Arc<Mutex<Option<u64>>>);

impl LastPoll {
    /// Work that ignores cancellation.
    pub(crate) async fn work(self) {
        loop {
            *self.0.lock().unwrap() = Some(BootClock.now().as_nanos());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn nanos(&self) -> u64 {
        self.0.lock().unwrap().expect("the work was polled")
    }
}

pub(crate) fn now_nanos() -> u64 {
    BootClock.now().as_nanos()
}

/// Set in the environment of a child process.
pub(crate) const CHILD: &str = "TENURE_TEST_CHILD";

/// The command that runs the test with this path in a child process.
pub(crate) fn child_process(test: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child
}

pub(crate) fn signal_of(status: &std::process::ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(status)
}

/// A waker that calls a function, as a custom executor may.
pub(crate) struct CallbackWaker<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for CallbackWaker<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

pub(crate) fn waker(on_wake: impl Fn() + Send + Sync + 'static) -> Waker {
    Waker::from(Arc::new(CallbackWaker(on_wake)))
}

pub(crate) fn poll_with<F: Future + ?Sized>(future: std::pin::Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

/// The number of threads of this process whose names begin with `prefix`.
pub(crate) fn thread_count(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}
