//! What the models need: schedules, counted, and a clock that moves when it is told to.

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

/// What is tried in each schedule.
pub(super) type Model = Arc<dyn Fn() + Send + Sync>;

/// Runs `model` with `explore`, and says how many schedules there were, for `cargo xtask races`.
pub(super) fn counted(name: &str, explore: impl FnOnce(Model), model: impl Fn() + Send + Sync + 'static) {
    let schedules = Arc::new(Counter::new(0));
    let counter = Arc::clone(&schedules);
    explore(Arc::new(move || {
        counter.fetch_add(1, Order::Relaxed);
        model();
    }));
    println!("races: {name}: {} schedules", schedules.load(Order::Relaxed));
}

/// Runs `check` with `rule` broken, which it has to notice.
///
/// # Panics
/// When it does not.
pub(super) fn notices(rule: SafetyRule, check: impl FnOnce()) {
    disable(Some(rule));
    let outcome = catch_unwind(AssertUnwindSafe(check));
    disable(None);
    assert!(outcome.is_err(), "nobody noticed that {rule:?} is broken");
}

/// A clock that stands still until it is moved. Reading it orders nothing between threads.
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

    /// Lets time pass, and wakes whoever waited for it.
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
        // A load could return an older time than another thread has read: clocks do not.
        BootInstant::from_nanos(self.nanos.fetch_add(0, Ordering::Relaxed))
    }

    /// Never ahead of the clock.
    fn wall(&self) -> Duration {
        Duration::from_nanos(self.now().as_nanos())
    }

    async fn sleep_until(&self, moment: BootInstant) {
        std::future::poll_fn(|context| {
            // In this order: whoever moves the clock in between finds the sleeper.
            self.sleepers().push((moment, context.waker().clone()));
            if self.now() >= moment { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
