//! Pauses between attempts, and timeouts of requests.

use std::{future::Future, time::Duration};

use crate::{
    Backoff,
    retry_delays::RetryDelays,
    spi::{BackendError, BackendErrorKind},
    sync::{sleep, timeout},
};

/// Pauses between attempts, each longer than the one before, with jitter.
#[derive(Debug)]
pub(crate) struct Retry(RetryDelays);

impl Retry {
    pub(crate) fn new(policy: Backoff) -> Self {
        Self(RetryDelays::new(policy))
    }

    /// Waits before the next attempt.
    pub(crate) async fn pause(&mut self) {
        // Boxed: a future that waits for hours should not hold the memory of a pause.
        Box::pin(sleep(self.0.next_delay())).await;
    }

    /// Starts again with the shortest pause, after a success.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }
}

/// Without what is of no interest in a message.
fn in_millis(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The response to `request`, or [`BackendErrorKind::Unavailable`] after `limit`. `operation` names the request
/// in that error.
pub(crate) async fn with_timeout<T>(
    operation: &'static str,
    limit: Duration,
    request: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    // Boxed for the same reason as a pause.
    match Box::pin(timeout(limit, request)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("{operation}: no answer within {}", humantime::format_duration(in_millis(limit))),
        )),
    }
}
