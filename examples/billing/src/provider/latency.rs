//! How long the provider takes: mostly quick, now and then slow.

use std::{
    f64::consts::TAU,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How far apart the times are: about one in six takes more than this factor of the median.
const SPREAD: f64 = 1.6;
/// Nothing takes longer than this many medians.
const LONGEST: f64 = 6.0;

/// A log-normal time for each request.
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
        // Box and Muller: two uniform numbers make a normal one.
        let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (TAU * b).cos();
        self.median.mul_f64(SPREAD.powf(normal).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_times_are_below_the_median_and_none_is_huge() {
        let median = Duration::from_millis(10);
        let latency = Latency::new(median, 7);
        let times: Vec<_> = (0..2000).map(|_| latency.draw()).collect();
        let below = times.iter().filter(|t| **t < median).count();
        assert!((900..1100).contains(&below), "{below}");
        assert!(times.iter().all(|t| *t <= median.mul_f64(LONGEST)));
        assert_eq!(times, {
            let again = Latency::new(median, 7);
            (0..2000).map(|_| again.draw()).collect::<Vec<_>>()
        });
    }
}
