//! What the models share: counted schedules, and a clock that moves only when a test advances it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64 as Counter, Ordering as Order},
    },
    task::{Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    BootInstant, Clock,
    failpoints::{SafetyRule, disable},
    sync::atomic::{AtomicU64, Ordering},
};

/// The code that runs in each schedule.
pub(super) type Model = Arc<dyn Fn() + Send + Sync>;

/// Runs `model` in the schedules of `explore`, and prints their number for `cargo xtask races`.
pub(super) fn explore(name: &str, schedules: impl FnOnce(Model), model: impl Fn() + Send + Sync + 'static) {
    let count = Arc::new(Counter::new(0));
    let counter = Arc::clone(&count);
    schedules(Arc::new(move || {
        counter.fetch_add(1, Order::Relaxed);
        model();
    }));
    println!("races: {name}: {} schedules", count.load(Order::Relaxed));
}

/// Runs `check` with `rule` disabled, and expects it to panic.
///
/// # Panics
/// When `check` does not.
pub(super) fn fails_without(rule: SafetyRule, check: impl FnOnce()) {
    disable(Some(rule));
    let outcome = catch_unwind(AssertUnwindSafe(check));
    disable(None);
    assert!(outcome.is_err(), "no check failed with {rule:?} disabled");
}

/// A clock that stands still until a test advances it. Reading it orders nothing between threads.
pub(super) struct ModelClock {
    nanos: AtomicU64,
    sleepers: Mutex<Vec<(BootInstant, Waker)>>,
}

impl std::fmt::Debug for ModelClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelClock")
    }
}

impl ModelClock {
    pub(super) fn new() -> Arc<Self> {
        let nanos = AtomicU64::new(Duration::from_secs(1_000).as_nanos() as u64);
        Arc::new(Self { nanos, sleepers: Mutex::default() })
    }

    /// Advances the clock, and wakes the futures that waited for the new time.
    pub(super) fn advance(&self, by: Duration) {
        let nanos = by.as_nanos() as u64;
        let now = BootInstant::from_nanos(self.nanos.fetch_add(nanos, Ordering::Relaxed) + nanos);
        let due: Vec<_> = self.sleepers().extract_if(.., |(until, _)| *until <= now).collect();
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn sleepers(&self) -> std::sync::MutexGuard<'_, Vec<(BootInstant, Waker)>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Clock for ModelClock {
    fn now(&self) -> BootInstant {
        // Not a load: it could return an older time than another thread has read, which clocks do not.
        BootInstant::from_nanos(self.nanos.fetch_add(0, Ordering::Relaxed))
    }

    /// Never runs ahead of `now`.
    fn wall(&self) -> Duration {
        Duration::from_nanos(self.now().as_nanos())
    }

    async fn sleep_until(&self, instant: BootInstant) {
        std::future::poll_fn(|context| {
            // Registered first: a thread that advances the clock in between finds the sleeper.
            self.sleepers().push((instant, context.waker().clone()));
            if self.now() >= instant { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
