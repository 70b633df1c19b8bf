//! The one clock that every deadline is measured with.
//!
//! `std::time::Instant` stands still while a Linux machine is suspended
//! (rust-lang/rust#87906); a leader that sleeps through its own deadline must not
//! wake up believing in it. The clock here is `CLOCK_BOOTTIME`.

use std::{
    fmt,
    ops::{Add, Sub},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rustix::time::{ClockId, clock_gettime};

/// An instant of a [`Clock`], in nanoseconds since an arbitrary origin.
///
/// Moments of one clock compare with each other; those of two machines never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootInstant(u64);

impl BootInstant {
    /// The moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// A moment from nanoseconds since the clock's origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for BootInstant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rhs)))
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        if self == Self::NEVER { self } else { Self(self.0.saturating_sub(nanos(rhs))) }
    }
}

/// Where the engine reads the time.
///
/// Only differences of its readings are ever used, so that no two machines need
/// agree on the time of day.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Now, on a clock that goes on while the machine is suspended and is never set.
    fn now(&self) -> BootInstant;

    /// The time of day, since any fixed origin. Only used to notice that it ran
    /// ahead of [`now`](Self::now), as it does after a virtual machine was paused.
    fn wall(&self) -> Duration;

    /// Waits until `moment`. May return late, never early.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    async fn sleep_until(&self, moment: BootInstant);
}

/// The machine's suspend-aware clock: `CLOCK_BOOTTIME` on Linux.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

#[async_trait]
impl Clock for BootClock {
    fn now(&self) -> BootInstant {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = ClockId::Monotonic;
        let time = clock_gettime(id);
        BootInstant((time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64))
    }

    /// To a tick of the kernel, a few milliseconds: read on every check, and a jump is far longer.
    fn wall(&self) -> Duration {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = ClockId::RealtimeCoarse;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = ClockId::Realtime;
        let time = clock_gettime(id);
        Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
    }

    async fn sleep_until(&self, moment: BootInstant) {
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A clock over tokio's, for runs under `tokio::time::pause`: one for each simulated host.
///
/// It can run fast or slow, be set ahead as a suspended machine's is on waking, and have
/// its time of day moved.
#[derive(Clone, Debug)]
pub struct SimClock(Arc<SimState>);

#[derive(Debug)]
struct SimState {
    origin: tokio::time::Instant,
    rate: f64,
    ahead: std::sync::Mutex<(Duration, Duration)>,
}

impl SimClock {
    /// A clock that runs at `rate` times the simulation's.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when `rate` is not positive.
    pub fn with_rate(rate: f64) -> Self {
        assert!(rate > 0.0 && rate.is_finite(), "a clock's rate must be positive");
        Self(Arc::new(SimState {
            origin: tokio::time::Instant::now(),
            rate,
            ahead: std::sync::Mutex::default(),
        }))
    }

    /// A clock that runs with the simulation's.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> Self {
        Self::with_rate(1.0)
    }

    /// Lets `now` and the time of day jump ahead, as they do for a process that was stopped.
    pub fn jump(&self, by: Duration) {
        let mut ahead = self.ahead();
        ahead.0 += by;
        ahead.1 += by;
    }

    /// Lets only the time of day jump ahead, as it does in a virtual machine that was paused.
    pub fn jump_wall(&self, by: Duration) {
        self.ahead().1 += by;
    }

    fn ahead(&self) -> std::sync::MutexGuard<'_, (Duration, Duration)> {
        self.0.ahead.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn elapsed(&self) -> Duration {
        self.0.origin.elapsed().mul_f64(self.0.rate)
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> BootInstant {
        // Not zero at the start: subtracting a budget must not saturate.
        BootInstant(nanos(Duration::from_secs(1_000) + self.elapsed() + self.ahead().0))
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(2_000) + self.elapsed() + self.ahead().1
    }

    async fn sleep_until(&self, moment: BootInstant) {
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            let left = left.div_f64(self.0.rate).max(Duration::from_millis(1));
            tokio::time::sleep(left).await;
        }
    }
}
