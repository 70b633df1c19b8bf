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
    waits: ExponentialBackoff,
}

impl Retry {
    pub(crate) fn new(policy: Backoff) -> Self {
        Self { policy, waits: build(policy) }
    }

    /// Waits before the next try, longer each time.
    pub(crate) async fn pause(&mut self) {
        sleep(self.next_wait()).await;
    }

    pub(crate) fn next_wait(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.policy.max)
    }

    /// Starts anew with the shortest wait, after a success.
    pub(crate) fn reset(&mut self) {
        self.waits = build(self.policy);
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
    match timeout(limit, request).await {
        Ok(outcome) => outcome,
        Err(_) => Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("{what}: no answer within {}", humantime::format_duration(limit)),
        )),
    }
}
