//! Runs many seeds in parallel.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    mutant::Mutant,
    options::{Client, Options},
    run::{Outcome, run},
    wire,
};

/// Runs the seeds in order on several threads, until `seen` returns true.
pub(crate) fn run_seeds(
    options: &Options,
    mutant: Option<Mutant>,
    seen: impl Fn(u64, Outcome) -> bool + Sync,
) {
    let next = AtomicU64::new(options.first_seed);
    let end = options.first_seed + options.seeds;
    let threads = options.threads.or_else(|| thread::available_parallelism().ok().map(usize::from));
    thread::scope(|scope| {
        for _ in 0..threads.unwrap_or(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= end {
                        return;
                    }
                    let simulated = Duration::from_secs(options.simulated_seconds());
                    let store = options.store_of(seed, mutant);
                    let outcome = match (mutant.and_then(Mutant::scenario), options.client) {
                        (Some(scenario), _) => scenario(seed, mutant),
                        (None, Some(Client::Etcd)) => wire::run(seed, simulated, mutant),
                        (None, None) => run(seed, store, simulated, mutant),
                    };
                    if seen(seed, outcome) {
                        next.store(end, Relaxed);
                    }
                }
            });
        }
    });
}
