//! Random faults in a simulated cluster. Each seed is one run.
//!
//! `TENURE_CHAOS_SEEDS` sets the number of seeds or their range: `TENURE_CHAOS_SEEDS=20000` for a long run,
//! `TENURE_CHAOS_SEEDS=17..18` to repeat one seed. A failure names its seed.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use fastrand::Rng;
use tenure_core::{
    Elector, Leadership, OnDisconnect, SimClock, StoreElector,
    memory::{Delivery, Direction, MemoryStore, Op, Proof},
};
use tokio::time::Instant;

use crate::host::{Host, TTL, assert_nothing_left, sleep, until, within};

/// The number of seeds, unless `TENURE_CHAOS_SEEDS` is set.
const DEFAULT_SEEDS: u64 = 20;
/// The number of faults in a run.
const FAULTS: usize = 60;
/// The time between two side effects of a leader.
const EFFECT_INTERVAL: Duration = Duration::from_millis(20);

/// Promises S1, S2, S3, L1, L2: messages are dropped, delayed, held back or failed, processes are stalled, and clocks drift
/// within the bound.
#[test]
fn at_most_one_candidate_leads_under_faults() {
    let seeds = seeds();
    let least = 10 * (seeds.end - seeds.start) as usize;
    let terms = run_all(seeds, Operator::Passive);
    assert!(terms >= least, "only {terms} terms: the faults leave no room to lead");
}

/// Promises S2, L1, L2: also when an operator expires sessions and deletes entries. Two candidates may lead for a short
/// time then, with different tokens.
#[test]
fn tokens_increase_and_no_entry_is_left_when_an_operator_interferes() {
    let seeds = seeds();
    run_all(seeds.start..seeds.start + (seeds.end - seeds.start).div_ceil(3), Operator::Interferes);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    Passive,
    Interferes,
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

/// Runs every seed, and names those that failed. Returns the number of terms.
fn run_all(seeds: Range<u64>, operator: Operator) -> usize {
    let mut terms = 0;
    let mut failed = Vec::new();
    for seed in seeds {
        let run = AssertUnwindSafe(|| {
            let simulated =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            simulated.unwrap().block_on(run(seed, operator))
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
    terms
}

/// The history of a run, and its violations.
#[derive(Default)]
struct History {
    /// The tokens whose work has begun and was neither finished nor dropped.
    working: Vec<u64>,
    highest: u64,
    terms: usize,
    /// Until then, work that could not be polled may not have been dropped yet.
    stalled: Option<Instant>,
    /// What happened against the rules.
    violations: Vec<String>,
}

impl History {
    fn record_start(&mut self, token: u64) {
        let now = Instant::now();
        if token <= self.highest {
            self.violations.push(format!("token {token} after {}", self.highest));
        }
        if !self.working.is_empty() && self.stalled.is_none_or(|until| now > until) {
            self.violations.push(format!("two at once: {token} leads beside {:?}", self.working));
        }
        self.highest = self.highest.max(token);
        self.working.push(token);
        self.terms += 1;
    }

    fn record_effect(&mut self, token: u64) {
        if token < self.highest {
            self.violations.push(format!("two at once: {token} acts after {} began", self.highest));
        }
    }
}

type Shared = Arc<Mutex<History>>;

fn lock(history: &Shared) -> MutexGuard<'_, History> {
    history.lock().unwrap()
}

async fn run(seed: u64, operator: Operator) -> usize {
    // For the jitter of the engine.
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let store = MemoryStore::with_proof(match seed % 3 {
        0 => Proof::Answer,
        1 => Proof::Read,
        _ => Proof::LaterHeartbeats { gap: TTL / 4 },
    });
    let history = Shared::default();
    let hosts: Vec<Host> = (0..4)
        .map(|n| {
            let clock = SimClock::with_rate(0.905 + 0.18 * random.f64());
            let strict = random.u8(..8) == 0;
            Host::with(&store, &format!("c{n}"), clock, |config| match strict {
                true => config.with_on_disconnect(OnDisconnect::StepDown),
                false => config,
            })
        })
        .collect();
    let candidates: Vec<_> = hosts
        .iter()
        .map(|host| {
            let random = Rng::with_seed(random.u64(..));
            tokio::spawn(campaign_repeatedly(Arc::clone(&host.elector), random, Arc::clone(&history)))
        })
        .collect();
    for _ in 0..FAULTS {
        sleep(Duration::from_millis(random.u64(1..8_000))).await;
        let host = &hosts[random.usize(..hosts.len())];
        cause_fault(&mut random, operator, &store, host, &history).await;
    }
    for host in &hosts {
        host.link.heal();
    }
    // Promise L1: once all faults are removed, a candidate leads.
    let terms = lock(&history).terms;
    until("a candidate leads again", || lock(&history).terms > terms).await;
    for host in &hosts {
        within(TTL * 6, host.elector.close()).await;
    }
    for candidate in candidates {
        within(TTL * 6, candidate).await.unwrap();
    }
    assert_nothing_left(&store).await;
    let mut history = lock(&history);
    assert!(history.working.is_empty(), "work was left: {:?}", history.working);
    if operator == Operator::Interferes {
        history.violations.retain(|what| !what.starts_with("two at once"));
    }
    assert!(history.violations.is_empty(), "{:#?}", history.violations);
    history.terms
}

async fn cause_fault(
    random: &mut Rng,
    operator: Operator,
    store: &MemoryStore,
    host: &Host,
    history: &Shared,
) {
    let op = Op::ALL[random.usize(..Op::ALL.len())];
    let direction = if random.bool() { Direction::Request } else { Direction::Response };
    let delay = Duration::from_millis(random.u64(1..12_000));
    match random.u8(..if operator == Operator::Interferes { 15 } else { 13 }) {
        0 => host.link.cut(),
        1 => host.link.isolate_member(true),
        2 => host.link.set(&[op], direction, Delivery::Drop),
        3 => host.link.set(&[op], direction, Delivery::Hold),
        4 => host.link.set(&[op], direction, Delivery::Fail),
        5 => host.link.set(&[op], direction, Delivery::Delay(delay)),
        6 => store.begin_epoch(),
        7 => host.clock.jump(delay),
        // All processes are stalled, but not the store.
        8 => {
            tokio::time::advance(delay).await;
            lock(history).stalled = Some(Instant::now() + EFFECT_INTERVAL * 2);
        }
        9 => {
            host.link.set(&Op::ALL, Direction::Request, Delivery::Hold);
            host.clock.jump(delay / 40);
        }
        10 => host.clock.jump_wall(delay / 6),
        11 | 12 => host.link.heal(),
        13 => {
            let sessions = store.sessions();
            random.choice(sessions).map(|session| store.expire_session(session));
        }
        _ => {
            let entries = store.entries("e");
            random.choice(entries).map(|entry| store.delete_entry("e", entry.revision));
        }
    }
}

/// Campaigns with random timeouts, and leads for random times, until the elector is closed.
async fn campaign_repeatedly(elector: Arc<StoreElector>, mut random: Rng, history: Shared) {
    loop {
        let timeout = Duration::from_millis(random.u64(1..60_000));
        let campaign = async {
            if random.u8(..5) > 0 {
                return elector.campaign("e").await.map(Some);
            }
            sleep(Duration::from_millis(random.u64(1..3_000))).await;
            elector.try_campaign("e").await
        };
        match tokio::time::timeout(timeout, campaign).await {
            Err(_) | Ok(Ok(None)) => {}
            Ok(Ok(Some(leadership))) => lead(leadership, &mut random, &history).await,
            Ok(Err(_closed)) => return,
        }
    }
}

async fn lead(leadership: Leadership, random: &mut Rng, history: &Shared) {
    let length = Duration::from_millis(random.u64(1..40_000));
    let handle = leadership.handle();
    let work = Work {
        token: leadership.fencing_token().get(),
        ends: Instant::now() + length,
        stops_when_cancelled: random.bool(),
        history: Arc::clone(history),
    };
    let stop = handle.cancellation_token();
    let working = work.go(stop);
    match random.u8(..5) {
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
            if random.bool() {
                drop(working.await);
            }
            return;
        }
        3 => {
            let grace_period = Duration::from_millis(random.u64(1..3_300));
            drop(leadership.run_with_grace_period(grace_period, working).await);
        }
        _ => drop(leadership.run(working).await),
    }
    if random.bool() {
        let _ = leadership.resign().await;
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
    async fn go(self, stop: tokio_util::sync::CancellationToken) {
        lock(&self.history).record_start(self.token);
        loop {
            lock(&self.history).record_effect(self.token);
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
}

impl Drop for Work {
    fn drop(&mut self) {
        let Ok(mut history) = self.history.lock() else { return };
        history.working.retain(|token| *token != self.token);
    }
}
