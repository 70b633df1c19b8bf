//! The engine over the recipe, with random faults in simulated time. Each seed is one run.
//!
//! `TENURE_CHAOS_SEEDS` sets the number of seeds or their range: `TENURE_CHAOS_SEEDS=20000` for a long run,
//! `TENURE_CHAOS_SEEDS=17..18` to repeat one seed. A failure names its seed.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use tenure_core::{CandidateId, Config, Elector, Leadership, SimClock, StoreElector, internal::lock};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::host::TTL;
use crate::{
    CasBackend, CasSettings,
    memory::{CasFaults, MemoryCas, MemoryCasClient, MemoryCasOptions, MemoryEpochs, Network},
};

/// The number of seeds, unless `TENURE_CHAOS_SEEDS` is set.
const DEFAULT_SEEDS: u64 = 24;
const FAULTS: usize = 60;
/// The time between two side effects of a leader.
const EFFECT_INTERVAL: Duration = Duration::from_millis(20);
/// How many elections there are; a session serves all of them.
const ELECTIONS: usize = 2;

/// Promises S1, S2, S3, L1, L2: reads are stale and alternate, answers are lost or late, requests are carried out long after they were
/// given up, the store fails over and loses acknowledged writes, processes pause, and clocks drift within the bound.
#[test]
fn at_most_one_candidate_leads_under_faults() {
    let seeds = seeds();
    let least = 10 * (seeds.end - seeds.start);
    let (mut terms, mut failed) = (0, Vec::new());
    for seed in seeds {
        let run = AssertUnwindSafe(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(run(seed))
        });
        match catch_unwind(run) {
            Ok(more) => terms += more,
            Err(_) => {
                eprintln!("chaos: seed {seed} failed; see above");
                failed.push(seed);
            }
        }
    }
    assert!(
        failed.is_empty(),
        "seeds {failed:?} failed: TENURE_CHAOS_SEEDS=<seed>..<seed + 1> runs one again"
    );
    assert!(terms >= least, "only {terms} terms: the faults leave no room to lead");
}

fn seeds() -> Range<u64> {
    let number = |text: &str| text.trim().parse().expect("TENURE_CHAOS_SEEDS is a number, or from..to");
    match std::env::var("TENURE_CHAOS_SEEDS") {
        Err(_) => 0..DEFAULT_SEEDS,
        Ok(given) => match given.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => 0..number(&given),
        },
    }
}

/// What happened in an election.
#[derive(Default)]
struct History {
    /// The tokens whose work has begun and was neither finished nor dropped.
    working: Vec<u64>,
    highest: u64,
    terms: u64,
    violations: Vec<String>,
    /// Until then, work that could not be polled may not have been dropped yet.
    stalled: Option<Instant>,
}

type Shared = Arc<Mutex<History>>;

struct Host {
    elector: Arc<StoreElector>,
    client: MemoryCasClient,
    clock: SimClock,
}

async fn run(seed: u64) -> u64 {
    // For the jitter of the engine and of the recipe.
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let loses_writes = seed.is_multiple_of(3);
    let store = MemoryCas::with_options(MemoryCasOptions {
        epochs: if loses_writes { MemoryEpochs::Known } else { MemoryEpochs::Fixed },
        // A hash of an earlier body, which a failover restores, is the same version again. So are numbers.
        etags: random.bool(),
        hints: random.bool(),
        ignores_conditions: false,
    });
    let histories: Vec<Shared> = (0..ELECTIONS).map(|_| Shared::default()).collect();
    let hosts: Vec<Host> = (0..4).map(|n| host(&store, n, &mut random)).collect();
    let mut candidates = Vec::new();
    for host in &hosts {
        for (n, history) in histories.iter().enumerate() {
            let candidate = Candidate {
                elector: Arc::clone(&host.elector),
                election: format!("e{n}"),
                random: Rng::with_seed(random.u64(..)),
                history: Arc::clone(history),
            };
            candidates.push(tokio::spawn(candidate.campaign_until_closed()));
        }
    }
    for _ in 0..FAULTS {
        sleep(Duration::from_millis(random.u64(1..8_000))).await;
        let host = &hosts[random.usize(..hosts.len())];
        cause_fault(&mut random, &store, loses_writes, host, &histories).await;
    }
    for host in &hosts {
        host.client.set_network(Network::Healthy);
        host.client.set_faults(CasFaults::default());
    }
    // Promise L1: once all faults are removed, a candidate leads.
    for history in &histories {
        let terms = lock(history).terms;
        until("a candidate leads again", || lock(history).terms > terms).await;
    }
    for host in &hosts {
        tokio::time::timeout(TTL * 12, host.elector.close()).await.expect("the elector closes");
    }
    for candidate in candidates {
        tokio::time::timeout(TTL * 12, candidate).await.expect("the candidate ends").unwrap();
    }
    let mut terms = 0;
    for history in &histories {
        let history = lock(history);
        assert!(history.working.is_empty(), "work was left: {:?}", history.working);
        assert!(history.violations.is_empty(), "{:#?}", history.violations);
        terms += history.terms;
    }
    terms
}

fn host(store: &MemoryCas, n: usize, random: &mut Rng) -> Host {
    let client = store.client(random.u64(..));
    let settings = CasSettings::new()
        .with_poll_interval(Duration::from_millis(random.u64(100..2_000)))
        .with_garbage_interval(Duration::from_secs(random.u64(5..100)));
    let backend = CasBackend::with_settings(client.clone(), settings);
    // Any two clock rates differ by less than twice the bound, in opposite directions.
    let clock = SimClock::with_rate(0.905 + 0.19 * random.f64());
    let config = Config::new()
        .with_ttl(TTL)
        .with_id(CandidateId::new(&format!("c{n}")).unwrap())
        .with_shutdown_timeout(Config::MAX_WAIT);
    let elector = StoreElector::with_clock(Arc::new(backend), config, Arc::new(clock.clone())).unwrap();
    Host { elector: Arc::new(elector), client, clock }
}

async fn cause_fault(
    random: &mut Rng,
    store: &MemoryCas,
    loses_writes: bool,
    host: &Host,
    histories: &[Shared],
) {
    let delay = Duration::from_millis(random.u64(1..12_000));
    match random.u8(..16) {
        0 => host.client.set_network(Network::Cut),
        1 => host.client.set_network(Network::Partitioned),
        2 => host.client.set_network(Network::AnswersLost),
        3..=8 => {
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
        9 if loses_writes => store.fail_over(random.usize(..8)),
        // All processes are stalled, but not the store. No host's clock jumps by itself: a clock that is ahead of real time judges others
        // too early.
        10 | 11 => {
            tokio::time::advance(delay).await;
            for history in histories {
                lock(history).stalled = Some(Instant::now() + EFFECT_INTERVAL * 2);
            }
        }
        12 => host.clock.jump_wall(delay / 6),
        13 => host.client.set_faults(CasFaults::default()),
        _ => host.client.set_network(Network::Healthy),
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(TTL * 40, met).await.is_ok(), "not in time: {what}");
}

struct Candidate {
    elector: Arc<StoreElector>,
    election: String,
    random: Rng,
    history: Shared,
}

impl Candidate {
    /// Campaigns with random timeouts, and leads for random times, until the elector is closed.
    async fn campaign_until_closed(mut self) {
        loop {
            let timeout = Duration::from_millis(self.random.u64(1..60_000));
            let waits = self.random.u8(..5) > 0;
            let pause = Duration::from_millis(self.random.u64(1..3_000));
            let campaign = async {
                if waits {
                    return self.elector.campaign(&self.election).await.map(Some);
                }
                sleep(pause).await;
                self.elector.try_campaign(&self.election).await
            };
            match tokio::time::timeout(timeout, campaign).await {
                Err(_) | Ok(Ok(None)) => {}
                Ok(Ok(Some(leadership))) => self.lead(leadership).await,
                Ok(Err(_closed)) => return,
            }
        }
    }

    async fn lead(&mut self, leadership: Leadership) {
        let length = Duration::from_millis(self.random.u64(1..40_000));
        let handle = leadership.handle();
        let work = Work {
            token: leadership.fencing_token().get(),
            ends: Instant::now() + length,
            stops_when_cancelled: self.random.bool(),
            history: Arc::clone(&self.history),
        };
        let working = work.go(handle.cancellation_token());
        match self.random.u8(..4) {
            0 => drop(tokio::time::timeout(length, leadership.run(working)).await),
            1 => {
                let working = tokio::spawn(async move { handle.run(working).await });
                sleep(length / 2).await;
                drop((leadership.resign().await, working.await));
                return;
            }
            2 => {
                let working = tokio::spawn(async move { handle.run(working).await });
                sleep(length / 2).await;
                drop(leadership);
                drop(working.await);
                return;
            }
            _ => drop(leadership.run(working).await),
        }
        if self.random.bool() {
            let _ = leadership.resign().await;
        }
    }
}

/// The work of a term: a sequence of side effects.
struct Work {
    token: u64,
    ends: Instant,
    /// Whether it stops when it is cancelled. Otherwise it has to be dropped.
    stops_when_cancelled: bool,
    history: Shared,
}

impl Work {
    async fn go(self, stop: CancellationToken) {
        self.begin();
        loop {
            {
                let mut history = lock(&self.history);
                if self.token < history.highest {
                    let violation = format!("{} acts after {} began", self.token, history.highest);
                    history.violations.push(violation);
                }
            }
            sleep(EFFECT_INTERVAL).await;
            let over = match stop.is_cancelled() {
                true => self.stops_when_cancelled,
                false => Instant::now() >= self.ends,
            };
            if over {
                return;
            }
        }
    }

    fn begin(&self) {
        let (token, now) = (self.token, Instant::now());
        let mut history = lock(&self.history);
        if token <= history.highest {
            let violation = format!("token {token} after {}", history.highest);
            history.violations.push(violation);
        }
        if !history.working.is_empty() && history.stalled.is_none_or(|until| now > until) {
            let violation = format!("two at once: {token} leads beside {:?}", history.working);
            history.violations.push(violation);
        }
        history.highest = history.highest.max(token);
        history.working.push(token);
        history.terms += 1;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        lock(&self.history).working.retain(|token| *token != self.token);
    }
}
