//! The clock that all deadlines are measured with: on Linux, `CLOCK_BOOTTIME`.
//!
//! `std::time::Instant` does not advance while a Linux machine is suspended (rust-lang/rust#87906). A leader whose machine
//! was suspended past its deadline must not consider itself leader afterwards.

use std::{
    fmt,
    ops::{Add, Sub},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;

/// An instant of a [`Clock`], in nanoseconds since an arbitrary origin.
///
/// Instants of one clock are comparable; those of different machines are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootInstant(u64);

impl BootInstant {
    /// An instant that is never reached.
    pub const NEVER: Self = Self(u64::MAX);

    /// An instant from nanoseconds since the clock's origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This instant on the clock of the standard library, for timers and for code that takes an [`Instant`]. `None` for
    /// [`NEVER`](Self::NEVER), and for an instant that an [`Instant`] cannot express.
    ///
    /// The result is never later than this instant, unless the machine is suspended afterwards: on Linux an [`Instant`] does not
    /// count the time of a suspension, so that a result from before it comes too late by that time. Convert again after each
    /// wait, or wait with [`Clock::sleep_until`]. Checks of a leadership do not depend on it.
    ///
    /// For instants of [`BootClock`], not of [`SimClock`].
    pub fn to_instant(self) -> Option<Instant> {
        // This one is read first: a pause of the thread between the two makes the result earlier.
        let now = Instant::now();
        let boot = BootClock.now();
        match (self, self >= boot) {
            (Self::NEVER, _) => None,
            (_, true) => now.checked_add(self.since(boot)),
            (_, false) => now.checked_sub(boot.since(self)),
        }
    }

    /// The time from `earlier` to this instant; zero when this instant is not later.
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

/// The source of time of the engine.
///
/// Only differences of its readings are used, so that machines need not agree on the time of day.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The current instant, on a clock that advances while the machine is suspended and is never set.
    fn now(&self) -> BootInstant;

    /// The time of day, since any fixed origin. Used only to detect that it ran ahead of [`now`](Self::now), as it does after a
    /// virtual machine was paused.
    fn wall(&self) -> Duration;

    /// Waits until `deadline`. May return late, never early.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    async fn sleep_until(&self, deadline: BootInstant);
}

/// The machine's suspend-aware clock.
///
/// | System | Clock | Counts the time of a suspension |
/// |---|---|---|
/// | Linux, Android | `CLOCK_BOOTTIME` | yes |
/// | macOS, iOS | `CLOCK_MONOTONIC` | yes |
/// | other Unix systems | `CLOCK_MONOTONIC` | it depends on the system |
/// | Windows | the performance counter, from the first reading in this process | yes |
///
/// Where it does not count it, the time of day still shows that a suspension has been, after which leadership is over
/// ([`LossReason::ClockJump`](crate::LossReason::ClockJump)). Only Linux is tested.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

/// Reads the system's clocks.
#[cfg(unix)]
mod system {
    use std::time::Duration;

    use rustix::time::{ClockId, Timespec, clock_gettime};

    /// Accurate to a kernel tick, a few milliseconds. That is cheap to read on every check, and a jump is far longer.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const IDS: (ClockId, ClockId) = (ClockId::Boottime, ClockId::RealtimeCoarse);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const IDS: (ClockId, ClockId) = (ClockId::Monotonic, ClockId::Realtime);

    pub(super) fn boot_nanos() -> u64 {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(IDS.0);
        (tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(tv_nsec as u64)
    }

    pub(super) fn wall() -> Duration {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(IDS.1);
        Duration::new(tv_sec.try_into().unwrap_or(0), tv_nsec.try_into().unwrap_or(0))
    }
}

/// Reads the clocks of the standard library.
#[cfg(not(unix))]
mod system {
    use std::{
        sync::LazyLock,
        time::{Duration, Instant, SystemTime},
    };

    /// Not zero at the origin, so that subtracting a grace period does not saturate.
    const ORIGIN: Duration = Duration::from_secs(1_000_000);

    pub(super) fn boot_nanos() -> u64 {
        static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
        super::nanos(ORIGIN + FIRST.elapsed())
    }

    pub(super) fn wall() -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

#[async_trait]
impl Clock for BootClock {
    fn now(&self) -> BootInstant {
        BootInstant(system::boot_nanos())
    }

    fn wall(&self) -> Duration {
        system::wall()
    }

    async fn sleep_until(&self, deadline: BootInstant) {
        loop {
            let left = deadline.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A clock on top of tokio's, for tests under `tokio::time::pause`. Each simulated host has one.
///
/// It can run fast or slow, jump as after a suspension of the machine, and have its time of day set ahead.
#[derive(Clone, Debug)]
pub struct SimClock(Arc<SimState>);

/// How far the clock is ahead of tokio's.
#[derive(Debug, Default)]
struct Offsets {
    monotonic: Duration,
    wall: Duration,
}

#[derive(Debug)]
struct SimState {
    origin: tokio::time::Instant,
    rate: f64,
    offsets: std::sync::Mutex<Offsets>,
}

impl SimClock {
    /// A clock that runs at `rate` times the rate of the simulation.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when `rate` is not positive.
    pub fn with_rate(rate: f64) -> Self {
        assert!(rate > 0.0 && rate.is_finite(), "a clock's rate must be positive");
        Self(Arc::new(SimState {
            origin: tokio::time::Instant::now(),
            rate,
            offsets: std::sync::Mutex::default(),
        }))
    }

    /// A clock that runs at the rate of the simulation.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> Self {
        Self::with_rate(1.0)
    }

    /// Sets both `now` and the time of day ahead, as for a process that was stopped.
    pub fn jump(&self, by: Duration) {
        let mut offsets = self.offsets();
        offsets.monotonic += by;
        offsets.wall += by;
    }

    /// Sets only the time of day ahead, as in a virtual machine that was paused.
    pub fn jump_wall(&self, by: Duration) {
        self.offsets().wall += by;
    }

    fn offsets(&self) -> std::sync::MutexGuard<'_, Offsets> {
        self.0.offsets.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        // Not zero at the start, so that subtracting a grace period does not saturate.
        BootInstant(nanos(Duration::from_secs(1_000) + self.elapsed() + self.offsets().monotonic))
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(2_000) + self.elapsed() + self.offsets().wall
    }

    async fn sleep_until(&self, deadline: BootInstant) {
        loop {
            let left = deadline.since(self.now());
            if left.is_zero() {
                return;
            }
            let left = left.div_f64(self.0.rate).max(Duration::from_millis(1));
            tokio::time::sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_of_the_standard_library_is_never_later() {
        for ahead in [0, 1, 5_000_000, 5_000_000_000].map(Duration::from_nanos) {
            let deadline = BootClock.now() + ahead;
            let converted = deadline.to_instant().unwrap();
            let boot = BootClock.now();
            let left = converted.saturating_duration_since(Instant::now());
            assert!(left <= deadline.since(boot), "{left:?} left, and {:?}", deadline.since(boot));
        }
        let deadline = BootClock.now() + Duration::from_secs(3_600);
        let left = deadline.to_instant().unwrap().saturating_duration_since(Instant::now());
        assert!(left > Duration::from_secs(3_500), "{left:?}");
        let past = BootClock.now() - Duration::from_millis(1);
        assert!(past.to_instant().unwrap() < Instant::now());
        assert_eq!(BootInstant::NEVER.to_instant(), None);
    }
}
