//! Electors for tests in simulated time.

use std::sync::Arc;

use tenure_core::{Config, Error, SimClock, StoreElector, spi::Backend};

/// An elector whose engine runs as tasks of the current runtime and uses tokio's clock.
///
/// Use it to test a service's own code under `#[tokio::test(start_paused = true)]`, where hours pass in milliseconds. The
/// engine of [`StoreElector::new`] and of `tenure::connect` runs on its own threads in real time, so that paused timers of
/// the test would expire before those threads can answer.
///
/// # Errors
/// See [`StoreElector::with_clock`].
///
/// # Panics
/// If called outside a tokio runtime.
///
/// ```
/// use std::time::Duration;
/// use tenure_core::{Config, Elector, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// let store = MemoryStore::new();
/// let backend = store.backend();
/// let link = backend.link().clone();
/// let elector = tenure_testkit::simulated::elector(backend, Config::new())?;
/// let leadership = elector.campaign("billing").await?;
/// tokio::time::sleep(Duration::from_secs(3600)).await;
/// assert!(leadership.is_leader());
/// link.cut();
/// tokio::time::sleep(Duration::from_secs(10)).await;
/// assert!(!leadership.is_leader());
/// # Ok(()) }
/// ```
pub fn elector(backend: impl Backend, config: Config) -> Result<StoreElector, Error> {
    StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new()))
}
