//! The delays between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::Backoff;

/// Exponentially growing delays with jitter.
#[derive(Debug)]
pub(crate) struct RetryDelays {
    policy: Backoff,
    /// Built with the first delay: most requests need none.
    delays: Option<Box<ExponentialBackoff>>,
}

impl RetryDelays {
    pub(crate) fn new(policy: Backoff) -> Self {
        Self { policy, delays: None }
    }

    /// The delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delays = self.delays.get_or_insert_with(|| Box::new(build(self.policy)));
        delays.next().unwrap_or(self.policy.max)
    }

    /// Starts again with the shortest delay, after a success.
    pub(crate) fn reset(&mut self) {
        self.delays = None;
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
