//! Asking again: how long to wait for an answer, and how long before the next try.

use std::{future::Future, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::{
    Backoff,
    spi::{BackendError, BackendErrorKind},
    sync::{sleep, timeout},
};

/// The growing, jittered waits between tries.
#[derive(Debug)]
pub(crate) struct Retry {
    policy: Backoff,
    /// Made with the first wait: most need none.
    waits: Option<Box<ExponentialBackoff>>,
}

impl Retry {
    pub(crate) fn new(policy: Backoff) -> Self {
        Self { policy, waits: None }
    }

    /// Waits before the next try, longer each time.
    pub(crate) async fn pause(&mut self) {
        // Boxed: who waits for hours should not hold the room for a pause.
        Box::pin(sleep(self.next_wait())).await;
    }

    pub(crate) fn next_wait(&mut self) -> Duration {
        let waits = self.waits.get_or_insert_with(|| Box::new(build(self.policy)));
        waits.next().unwrap_or(self.policy.max)
    }

    /// Starts anew with the shortest wait, after a success.
    pub(crate) fn reset(&mut self) {
        self.waits = None;
    }
}

fn build(policy: Backoff) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(policy.min)
        .with_max_delay(policy.max)
        .with_jitter()
        .without_max_times()
        .build()
}

/// The answer to a request, or [`BackendErrorKind::Unavailable`] after `limit`.
pub(crate) async fn timed<T>(
    what: &'static str,
    limit: Duration,
    request: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    // Boxed, as a pause is.
    match Box::pin(timeout(limit, request)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("{what}: no answer within {}", humantime::format_duration(limit)),
        )),
    }
}
