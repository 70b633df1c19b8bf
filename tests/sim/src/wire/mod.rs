//! The engine with the real backend and the real client of etcd, over a simulated network.
//!
//! `tenure-etcd`, etcd-client, tonic and h2 are the real ones. Time, TCP and three etcd members ([`cluster`], [`store`]) are simulated; the
//! members serve etcd's gRPC services ([`kv`], [`lease`], [`watch`]). One seed is one run on one thread, and the same seed repeats the
//! same run, which is checked for some of the seeds.

mod cluster;
mod directed;
mod etcd_error;
mod faults;
mod host;
mod kv;
mod lease;
mod lessor;
mod network;
mod play;
mod request;
mod store;
mod watch;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use crate::{mutant::Mutant, run::Outcome};

/// Every so many seeds one is run twice, to check that it repeats.
const REPEAT_EVERY: u64 = 16;

/// Runs one seed, on this thread.
pub(crate) fn run(seed: u64, simulated: Duration, mutant: Option<Mutant>) -> Outcome {
    let mut outcome = run_once(seed, simulated, mutant);
    if seed.is_multiple_of(REPEAT_EVERY) && mutant.is_none() {
        let duplicate_delay = run_once(seed, simulated, mutant);
        if (duplicate_delay.events, duplicate_delay.digest) != (outcome.events, outcome.digest) {
            let (first, second) = (outcome.events, duplicate_delay.events);
            outcome.violations.push(format!("the same seed did something else: {first} and {second} events"));
        }
        outcome.violations.extend(directed(seed, mutant).violations);
    }
    outcome
}

/// Runs the scenarios with fixed times.
pub(crate) fn directed(seed: u64, mutant: Option<Mutant>) -> Outcome {
    Mutant::choose(mutant);
    fastrand::seed(seed);
    directed::withdrawal_without_space(seed)
}

fn run_once(seed: u64, simulated: Duration, mutant: Option<Mutant>) -> Outcome {
    Mutant::choose(mutant);
    // The jitter of the engine and of the backend uses this generator.
    fastrand::seed(seed);
    catch_unwind(AssertUnwindSafe(|| play::play(seed, simulated))).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("something");
        Outcome { violations: vec![format!("panicked: {what}")], ..Outcome::default() }
    })
}

#[cfg(all(test, tokio_unstable))]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_again() {
        let first = run_once(3, Duration::from_secs(20), None);
        let second = run_once(3, Duration::from_secs(20), None);
        assert_eq!((first.events, first.digest), (second.events, second.digest));
        assert!(first.events > 100, "{first:?}");
    }
}
