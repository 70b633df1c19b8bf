//! File operations on blocking threads, outside the runtime's worker threads.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::sync::Semaphore;

/// How many file operations of one backend run at the same time.
const MAX_CONCURRENT_OPERATIONS: usize = 16;
/// After this time without a result the disk counts as unavailable.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs short file operations, a bounded number of them at the same time.
#[derive(Clone, Debug)]
pub(crate) struct BlockingPool {
    permits: Arc<Semaphore>,
}

impl BlockingPool {
    pub(crate) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CONCURRENT_OPERATIONS)) }
    }

    /// Runs `operation`, which must not wait for anything but the disk.
    ///
    /// The future is boxed to keep the futures of thousands of waiting candidates small.
    ///
    /// # Errors
    /// The error of the operation. [`Unavailable`](BackendErrorKind::Unavailable) if the disk takes too long; the
    /// outcome of the operation is then unknown.
    ///
    /// # Cancellation safety
    /// If the future is dropped before the operation has started, the operation does not run. Once started, it runs to
    /// its end.
    pub(crate) fn run<T, F>(&self, operation: F) -> BoxFuture<'_, Result<T, BackendError>>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, BackendError> + Send + 'static,
    {
        let unavailable = |why: &str| BackendError::new(BackendErrorKind::Unavailable, why);
        let outcome = async move {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = permit.map_err(|_| unavailable("the backend has stopped its file operations"))?;
            let operation = move || {
                let _permit = permit;
                operation()
            };
            tokio::task::spawn_blocking(operation).await.map_err(|error| {
                BackendError::with_source(
                    BackendErrorKind::Unavailable,
                    "a file operation was aborted without a result",
                    error,
                )
            })?
        };
        Box::pin(async move {
            let outcome = tokio::time::timeout(OPERATION_TIMEOUT, outcome).await;
            outcome.map_err(|_| unavailable("the disk did not answer in time"))?
        })
    }
}
