//! Waits, with a time limit, until a server is ready.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::{
    container::Container,
    error::{ContainerError, with_sources},
};

/// How long a server may take to start, to elect a leader, or to recover.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// A request that succeeds when a server is ready.
#[derive(Clone)]
pub(crate) struct HealthCheck {
    store: &'static str,
    check: Arc<dyn Fn() -> BoxFuture<'static, Result<(), ContainerError>> + Send + Sync>,
}

impl HealthCheck {
    /// `store` is the name that error messages use.
    pub(crate) fn new<F>(store: &'static str, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), ContainerError>> + Send + 'static,
    {
        Self { store, check: Arc::new(move || Box::pin(check())) }
    }

    /// Waits until the server in `container` is ready. The error of a timeout quotes the server's log.
    pub(crate) async fn wait_until_ready(&self, container: &Container) -> Result<(), ContainerError> {
        match eventually(&format!("{} to be ready", self.store), || (self.check)()).await {
            Err(ContainerError::TimedOut { what, waited, last }) => {
                let last = format!("{last}\n{}", container.last_log_lines().await);
                Err(ContainerError::TimedOut { what, waited, last })
            }
            outcome => outcome,
        }
    }
}

impl fmt::Debug for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheck").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Calls `probe` until it succeeds. A timeout reports its last error.
pub(crate) async fn eventually<T, P, F>(what: &str, mut probe: P) -> Result<T, ContainerError>
where
    P: FnMut() -> F,
    F: Future<Output = Result<T, ContainerError>>,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(answer) => return Ok(answer),
            Err(last) if start.elapsed() > READY_TIMEOUT => {
                let (what, last) = (what.to_owned(), with_sources(&last));
                return Err(ContainerError::TimedOut { what, waited: READY_TIMEOUT, last });
            }
            Err(_) => sleep(POLL_INTERVAL).await,
        }
    }
}
