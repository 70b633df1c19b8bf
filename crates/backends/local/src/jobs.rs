//! Work on files, done off the runtime's threads.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::sync::Semaphore;

/// How many threads the files of one backend may keep busy at once.
const AT_ONCE: usize = 16;
/// How long a piece of work may take before the disk counts as unavailable.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs short file work, a bounded number of pieces at once.
#[derive(Clone, Debug)]
pub(crate) struct Jobs {
    permits: Arc<Semaphore>,
}

impl Jobs {
    pub(crate) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Runs `job`, which must not wait for anything but the disk.
    ///
    /// Dropping the future before the job has started drops the job; after that, the
    /// job runs to its end. The future is small: waiters by the thousand have room for one.
    ///
    /// # Errors
    /// The job's own; `Unavailable` when the disk takes too long, the outcome being unknown.
    pub(crate) fn run<T, F>(&self, job: F) -> BoxFuture<'_, Result<T, BackendError>>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, BackendError> + Send + 'static,
    {
        let unavailable = |why: &str| BackendError::new(BackendErrorKind::Unavailable, why);
        let done = async move {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = permit.map_err(|_| unavailable("the backend's file work has ended"))?;
            let job = move || {
                let _permit = permit;
                job()
            };
            tokio::task::spawn_blocking(job).await.map_err(|error| {
                BackendError::with_source(BackendErrorKind::Unavailable, "file work was cut short", error)
            })?
        };
        Box::pin(async move {
            let done = tokio::time::timeout(LIMIT, done).await;
            done.map_err(|_| unavailable("the disk does not answer in time"))?
        })
    }
}
