//! The engine with the real backend and the real client of etcd, over a simulated network.
//!
//! `tenure-etcd`, etcd-client, tonic and h2 run as they are; what is simulated is time, TCP, and etcd itself, three
//! members of it ([`cluster`], [`store`]) that serve etcd's own gRPC services ([`kv`], [`lease`], [`watch`]). One
//! seed is one run on one thread, and the same seed does the same again: that is looked at in some of the runs.

mod cluster;
mod directed;
mod faults;
mod host;
mod kv;
mod lease;
mod lessor;
mod network;
mod play;
mod refusal;
mod request;
mod store;
mod watch;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use crate::{broken::Mutant, run::Outcome};

/// One seed in so many is run a second time, to see whether it does the same.
const RUN_AGAIN: u64 = 16;

/// Runs one seed, on this thread.
pub(crate) fn run(seed: u64, simulated: Duration, mutant: Option<Mutant>) -> Outcome {
    let mut outcome = once(seed, simulated, mutant);
    if seed.is_multiple_of(RUN_AGAIN) && mutant.is_none() {
        let again = once(seed, simulated, mutant);
        if (again.events, again.digest) != (outcome.events, outcome.digest) {
            let (first, second) = (outcome.events, again.events);
            outcome.violations.push(format!("the same seed did something else: {first} and {second} events"));
        }
        outcome.violations.extend(directed(seed, mutant).violations);
    }
    outcome
}

/// Plays the scenarios that are not left to chance.
pub(crate) fn directed(seed: u64, mutant: Option<Mutant>) -> Outcome {
    Mutant::choose(mutant);
    fastrand::seed(seed);
    directed::withdrawal_without_space(seed)
}

fn once(seed: u64, simulated: Duration, mutant: Option<Mutant>) -> Outcome {
    Mutant::choose(mutant);
    // The engine's jitter and the backend's come from here.
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
        let first = once(3, Duration::from_secs(20), None);
        let second = once(3, Duration::from_secs(20), None);
        assert_eq!((first.events, first.digest), (second.events, second.digest));
        assert!(first.events > 100, "{first:?}");
    }
}
