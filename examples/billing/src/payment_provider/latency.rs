//! The provider's latency: mostly short, sometimes long.

use std::{
    f64::consts::TAU,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The spread of the distribution: about one time in six is longer than the median times this factor.
const SPREAD_FACTOR: f64 = 1.6;
/// The longest time, as a multiple of the median.
const MAX_FACTOR: f64 = 6.0;

/// Draws a log-normally distributed time for each request.
#[derive(Debug)]
pub(crate) struct Latency {
    median: Duration,
    random: Mutex<fastrand::Rng>,
}

impl Latency {
    pub(crate) fn new(median: Duration, seed: u64) -> Self {
        Self { median, random: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }

    pub(crate) fn draw(&self) -> Duration {
        let (a, b) = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            (random.f64(), random.f64())
        };
        // The Box-Muller transform: two uniform numbers make a normal one.
        let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (TAU * b).cos();
        self.median.mul_f64(SPREAD_FACTOR.powf(normal).min(MAX_FACTOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_times_are_below_the_median_and_none_exceeds_the_maximum() {
        let median = Duration::from_millis(10);
        let latency = Latency::new(median, 7);
        let times: Vec<_> = (0..2000).map(|_| latency.draw()).collect();
        let below = times.iter().filter(|t| **t < median).count();
        assert!((900..1100).contains(&below), "{below}");
        assert!(times.iter().all(|t| *t <= median.mul_f64(MAX_FACTOR)));
        assert_eq!(times, {
            let again = Latency::new(median, 7);
            (0..2000).map(|_| again.draw()).collect::<Vec<_>>()
        });
    }
}
