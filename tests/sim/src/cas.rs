//! A run over `tenure-cas`: the real recipe, over a store in memory that can compare and swap.
//!
//! Reads are stale and alternate, answers are lost or late, requests are carried out long after they were given up, and in some runs the store
//! fails over and loses acknowledged writes.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tenure_cas::{
    CasBackend, CasSettings,
    memory::{CasFaults, MemoryCas, MemoryCasClient, MemoryCasOptions, MemoryEpochs, Network},
};
use tenure_core::{SimClock, StoreElector};
use tokio::time::Instant;

use crate::{
    history::History,
    run::{Outcome, Profile, check_recovery, close, elector, spawn_candidates},
};
#[cfg(tenure_mutants)]
use crate::{
    mutant::Mutant,
    run::{no_runtime, simulated_runtime},
};

const HOSTS: usize = 4;
const MANY_ELECTIONS: usize = 4;
/// The most writes that a failover loses.
const MAX_LOST_WRITES: usize = 12;

struct Host {
    elector: Arc<StoreElector>,
    client: MemoryCasClient,
    clock: SimClock,
}

/// Runs the scenarios with fixed times: that of the disabled rule or, with all rules, each.
#[cfg(tenure_mutants)]
pub(crate) fn directed(seed: u64, mutant: Option<Mutant>) -> Outcome {
    use tenure_cas::directed::Scenario;

    Mutant::choose(mutant);
    let chosen = |scenario: &&Scenario| mutant.is_none_or(|mutant| mutant == Mutant::Cas(scenario.rule));
    let mut violations = Vec::new();
    for scenario in Scenario::ALL.iter().filter(chosen) {
        fastrand::seed(seed);
        match simulated_runtime(seed) {
            Ok(runtime) if runtime.block_on(scenario.breaks_a_promise()) => {
                violations.push(format!("{}: a promise is broken", scenario.name));
            }
            Ok(_) => {}
            Err(error) => return no_runtime(error),
        }
    }
    Outcome { violations, ..Outcome::default() }
}

/// A run with random faults.
pub(crate) async fn play(seed: u64, simulated: Duration) -> Outcome {
    let mut random = Rng::with_seed(seed ^ 0xca5);
    let loses_writes = random.u8(..3) == 0;
    let store = MemoryCas::with_options(MemoryCasOptions {
        epochs: if loses_writes { MemoryEpochs::Known } else { MemoryEpochs::Fixed },
        etags: random.bool(),
        hints: random.bool(),
        ..MemoryCasOptions::default()
    });
    let history = History::new(false);
    let profile = Profile::of(seed, MANY_ELECTIONS);
    let hosts: Vec<Host> = (0..HOSTS).map(|n| host(&store, n, &mut random)).collect();
    let electors: Vec<_> = hosts.iter().map(|host| (Arc::clone(&host.elector), host.clock.clone())).collect();
    let candidates = spawn_candidates(&electors, &profile, &history, &mut random);
    let end = Instant::now() + simulated;
    let mut faults = 0;
    while Instant::now() < end {
        tokio::time::sleep(profile.pause(&mut random)).await;
        let host = &hosts[random.usize(..HOSTS)];
        cause_fault(&mut random, &store, loses_writes, host, &history).await;
        faults += 1;
    }
    for host in &hosts {
        host.client.set_network(Network::Healthy);
        host.client.set_faults(CasFaults::default());
    }
    let electors: Vec<_> = hosts.iter().map(|host| Arc::clone(&host.elector)).collect();
    check_recovery(profile.elections, &electors, &history, |election| {
        format!("{:?}", store.records(&format!("e/{election}")))
    })
    .await;
    close(&electors, candidates, &history).await;
    let record = history.lock();
    Outcome {
        elections: record.terms,
        faults,
        refused: record.refused,
        violations: record.violations.clone(),
        ..Outcome::default()
    }
}

fn host(store: &MemoryCas, n: usize, random: &mut Rng) -> Host {
    let client = store.client(random.u64(..));
    let settings = CasSettings::new()
        .with_poll_interval(Duration::from_millis(random.u64(100..2_000)))
        .with_garbage_interval(Duration::from_secs(random.u64(5..100)));
    let backend = CasBackend::with_settings(client.clone(), settings);
    // Each differs from real time by less than the drift bound: two may drift in opposite directions.
    let clock = SimClock::with_rate(0.905 + 0.19 * random.f64());
    Host { elector: elector(Arc::new(backend), &clock, n, random), client, clock }
}

/// Causes or ends one fault.
async fn cause_fault(
    random: &mut Rng,
    store: &MemoryCas,
    loses_writes: bool,
    host: &Host,
    history: &History,
) {
    let delay = Duration::from_millis(random.u64(1..14_000));
    match random.u8(..22) {
        0..=3 => host.client.set_network(Network::Healthy),
        4 | 5 => host.client.set_network(Network::Cut),
        6 => host.client.set_network(Network::Partitioned),
        7 => host.client.set_network(Network::AnswersLost),
        8..=12 => {
            let share = |random: &mut Rng| if random.bool() { 0.3 * random.f64() } else { 0.0 };
            host.client.set_faults(CasFaults {
                lag: delay / 2,
                lag_is_exact: random.bool(),
                latency: Duration::from_millis(random.u64(0..1_500)),
                lost_requests: share(random),
                lost_answers: share(random),
                late_requests: share(random),
                late_by: Duration::from_secs(random.u64(1..120)),
                repeated_swaps: share(random),
            });
        }
        13..=15 => host.client.set_faults(CasFaults::default()),
        16 | 17 if loses_writes => store.fail_over(random.usize(..MAX_LOST_WRITES)),
        // All processes are stalled, but not the store. No host's clock jumps by itself: a clock that is ahead of real time judges others
        // too early.
        18 | 19 => {
            tokio::time::advance(delay / if random.bool() { 1 } else { 4 }).await;
            history.lock().stalled_until(Instant::now());
        }
        20 => host.clock.jump_wall(delay / 6),
        _ => {}
    }
}
