//! Electors for tests in simulated time.

use std::sync::Arc;

use tenure_core::{Config, Error, SimClock, StoreElector, spi::Backend};

/// An elector whose engine runs as tasks of the current runtime, by tokio's clock: for tests of a service's own code under
/// `#[tokio::test(start_paused = true)]`, where hours pass in milliseconds.
///
/// An elector of [`StoreElector::new`] or `tenure::connect` has threads of its own, in real time: paused timers of the test
/// run out before those threads can answer.
///
/// # Errors
/// As [`StoreElector::with_clock`].
///
/// # Panics
/// Outside a tokio runtime.
///
/// ```
/// use std::time::Duration;
/// use tenure_core::{Config, Elector, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// let store = MemoryStore::new();
/// let backend = store.backend();
/// let line = backend.link().clone();
/// let elector = tenure_testkit::simulated::elector(backend, Config::new())?;
/// let leadership = elector.campaign("billing").await?;
/// tokio::time::sleep(Duration::from_secs(3600)).await;
/// assert!(leadership.is_leader());
/// line.cut();
/// tokio::time::sleep(Duration::from_secs(10)).await;
/// assert!(!leadership.is_leader());
/// # Ok(()) }
/// ```
pub fn elector(backend: impl Backend, config: Config) -> Result<StoreElector, Error> {
    StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new()))
}
