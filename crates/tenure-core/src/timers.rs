//! Timers and tasks for code that the caller's executor polls.

use std::{future::Future, time::Duration};

use futures::future::Either;
use tokio::time::Instant;

use crate::{Elector, Engine, sync::sleep};

/// The timers of an elector's engine, which work under any executor. Without an engine, those of the current tokio runtime.
#[derive(Clone, Debug)]
pub(crate) struct Timers(Option<Engine>);

impl Timers {
    pub(crate) fn of<E: Elector + ?Sized>(elector: &E) -> Self {
        Self(elector.engine())
    }

    /// The current instant. An engine runs in real time, also when the time of the current runtime is paused.
    pub(crate) fn now(&self) -> Instant {
        match &self.0 {
            Some(_) => Instant::from_std(std::time::Instant::now()),
            None => Instant::now(),
        }
    }

    /// The time from `earlier` until now.
    pub(crate) fn since(&self, earlier: Instant) -> Duration {
        self.now().saturating_duration_since(earlier)
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        match &self.0 {
            // An error says that the engine's thread has ended: nothing is left to wait for.
            Some(engine) => drop(engine.runtime().call(async move { sleep(time).await }).await),
            None => sleep(time).await,
        }
    }

    /// Runs `task` on the engine.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.0 {
            Some(engine) => engine.runtime().spawn_untracked(task),
            None => drop(tokio::spawn(task)),
        }
    }

    /// Wraps a future that the engine's tasks wake, because it must not call the caller's waker.
    pub(crate) fn relayed<T: Future>(&self, inner: T) -> impl Future<Output = T::Output> {
        match &self.0 {
            Some(engine) => Either::Left(engine.runtime().relayed(inner)),
            None => Either::Right(inner),
        }
    }
}
