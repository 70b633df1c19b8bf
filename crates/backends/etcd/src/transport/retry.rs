//! Repeats a read until the store answers.

use std::{future::Future, time::Duration};

use tenure_core::spi::BackendError;
use tokio::time::sleep;
use tracing::debug;

const INITIAL_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Repeats `read` with exponential backoff for as long as its error is retryable.
///
/// Callers box their reads: a wait can last for hours and should not hold the memory of a read.
pub(crate) async fn retry_until_answered<T, F, Fut>(mut read: F) -> Result<T, BackendError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, BackendError>>,
{
    let mut backoff = INITIAL_BACKOFF;
    loop {
        match read().await {
            Err(error) if error.is_retryable() => {
                debug!(%error, "etcd read failed; retrying");
                sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
            outcome => return outcome,
        }
    }
}
