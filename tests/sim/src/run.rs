//! One run: hosts that campaign, and the faults that occur.

use std::{future::Future, io, sync::Arc, time::Duration};

use fastrand::Rng;
use tenure_core::{CandidateId, Config, Elector, OnDisconnect, SimClock, StoreElector, spi::Backend};
use tokio::{runtime::Runtime, task::JoinHandle, time::Instant};

use crate::{
    candidate::{Candidate, TermLength},
    cas,
    cluster::{Cluster, MAX_LAG, MEMBERS},
    etcd::SimEtcd,
    history::History,
    host::Access,
    link::{Link, LinkState},
    mutant::Mutant,
    options::Store,
    reports::ping_followers,
    zookeeper::SimZookeeper,
};

pub(crate) const TTL: Duration = Duration::from_secs(10);
const HOSTS: usize = 4;
/// The number of elections in most runs. In the others there is one, so that hosts wait that are not next in line in any election.
const MANY_ELECTIONS: usize = 8;
/// Every so many seeds the scenarios of the recipe for stores that compare and swap are run, too.
#[cfg(tenure_mutants)]
const SCENARIOS_EVERY: u64 = 16;

/// The outcome of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) elections: u64,
    pub(crate) faults: u64,
    pub(crate) refused: u64,
    pub(crate) violations: Vec<String>,
    /// The number of requests that the fake servers have received, and a digest of their order and time.
    pub(crate) events: u64,
    pub(crate) digest: u64,
}

struct Host {
    elector: Arc<StoreElector>,
    link: Arc<Link>,
    clock: SimClock,
}

/// Runs one seed, on this thread.
pub(crate) fn run(seed: u64, store: Store, simulated: Duration, mutant: Option<Mutant>) -> Outcome {
    Mutant::choose(mutant);
    // The engine's jitter uses this generator, too.
    fastrand::seed(seed);
    let outcome = simulated_runtime(seed).map(|runtime| match store {
        Store::Cas => runtime.block_on(cas::play(seed, simulated)),
        Store::Etcd | Store::Zookeeper => runtime.block_on(play(seed, store, simulated)),
    });
    let outcome = outcome.unwrap_or_else(no_runtime);
    #[cfg(tenure_mutants)]
    let outcome = match store == Store::Cas && mutant.is_none() && seed.is_multiple_of(SCENARIOS_EVERY) {
        true => {
            let violations = [outcome.violations, cas::directed(seed, None).violations].concat();
            Outcome { violations, ..outcome }
        }
        false => outcome,
    };
    outcome
}

/// A runtime in simulated time.
pub(crate) fn simulated_runtime(seed: u64) -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // tokio's own random choices.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.enable_time().start_paused(true).build()
}

pub(crate) fn no_runtime(error: io::Error) -> Outcome {
    Outcome { violations: vec![format!("no runtime: {error}")], ..Outcome::default() }
}

/// What differs between runs of one store.
pub(crate) struct Profile {
    pub(crate) elections: usize,
    /// In half of the runs terms and faults are long; in the others both are short and frequent.
    lasting: bool,
}

impl Profile {
    pub(crate) fn of(seed: u64, many_elections: usize) -> Self {
        Self { elections: if seed % 5 == 4 { 1 } else { many_elections }, lasting: seed % 4 >= 2 }
    }

    /// The time until the next fault.
    pub(crate) fn pause(&self, random: &mut Rng) -> Duration {
        Duration::from_millis(random.u64(1..if self.lasting { 6_000 } else { 1_500 }))
    }
}

/// Lets each elector campaign in each election.
pub(crate) fn spawn_candidates(
    electors: &[(Arc<StoreElector>, SimClock)],
    profile: &Profile,
    history: &History,
    random: &mut Rng,
) -> Vec<JoinHandle<()>> {
    let mut candidates = Vec::new();
    for (elector, clock) in electors {
        for n in 0..profile.elections {
            let candidate = Candidate {
                elector: Arc::clone(elector),
                clock: clock.clone(),
                election: format!("e{n}"),
                random: Rng::with_seed(random.u64(..)),
                history: history.clone(),
                terms: match profile.lasting {
                    true => TermLength::Long(Duration::from_secs(90)),
                    false => TermLength::Short,
                },
            };
            candidates.push(tokio::spawn(candidate.campaign_until_closed()));
        }
    }
    candidates
}

/// A run over a cluster of etcd or ZooKeeper.
async fn play(seed: u64, store: Store, simulated: Duration) -> Outcome {
    let mut random = Rng::with_seed(seed ^ 0x7e4a_11e5);
    // Any two clock rates differ by less than 10 %.
    let mut rate = || 0.955 + 0.09 * random.f64();
    let cut_off_odds = if seed % 4 >= 2 { 150 } else { 2_000 };
    let leader_rate = rate();
    let cluster = Cluster::new(leader_rate, Rng::with_seed(seed), cut_off_odds);
    let rates: Vec<f64> = (0..HOSTS).map(|_| rate()).collect();
    // In some runs an operator ends sessions, deletes entries and wipes the store. Two candidates may lead for a moment then, with
    // different tokens.
    let operator_interferes = seed % 8 >= 6;
    let history = History::new(operator_interferes);
    let profile = Profile::of(seed, MANY_ELECTIONS);
    let hosts: Vec<Host> =
        rates.iter().enumerate().map(|(n, rate)| host(&cluster, store, n, *rate, &mut random)).collect();
    let expiring = tokio::spawn(cluster.clone().expire_sessions());
    let pinging = (store == Store::Zookeeper).then(|| {
        tokio::spawn(ping_followers(cluster.clone(), TTL, leader_rate, Rng::with_seed(seed ^ 0x9106)))
    });
    let campaigning: Vec<_> =
        hosts.iter().map(|host| (Arc::clone(&host.elector), host.clock.clone())).collect();
    let candidates = spawn_candidates(&campaigning, &profile, &history, &mut random);
    let end = Instant::now() + simulated;
    let mut faults = 0;
    while Instant::now() < end {
        tokio::time::sleep(profile.pause(&mut random)).await;
        let host = &hosts[random.usize(..HOSTS)];
        let restore_weight = if profile.lasting { 2 } else { 6 };
        cause_fault(&mut random, restore_weight, &cluster, host, &history).await;
        if operator_interferes && random.u8(..4) == 0 {
            interfere(&mut random, profile.elections, &cluster, &history);
        }
        faults += 1;
    }
    for host in &hosts {
        host.link.set_state(LinkState::Healthy);
    }
    cluster.change_members(|state| state.restore(&mut random));
    let electors: Vec<_> = hosts.iter().map(|host| Arc::clone(&host.elector)).collect();
    check_recovery(profile.elections, &electors, &history, |election| {
        format!("{:?}", cluster.state().entries(election))
    })
    .await;
    close(&electors, candidates, &history).await;
    check_leftovers(&cluster, &history).await;
    expiring.abort();
    pinging.inspect(|pinging| pinging.abort());
    let record = history.lock();
    Outcome {
        elections: record.terms,
        faults: faults + cluster.state().cuts + hosts.iter().map(|host| host.link.faults()).sum::<u64>(),
        refused: record.refused,
        violations: record.violations.clone(),
        ..Outcome::default()
    }
}

fn host(cluster: &Cluster, store: Store, n: usize, rate: f64, random: &mut Rng) -> Host {
    let link = Arc::new(Link::new(random.u64(..)));
    let is_etcd = store == Store::Etcd;
    let access = Access::new(cluster.clone(), Arc::clone(&link), is_etcd);
    let backend: Arc<dyn Backend> =
        if is_etcd { Arc::new(SimEtcd(access)) } else { Arc::new(SimZookeeper(access)) };
    let clock = SimClock::with_rate(rate);
    Host { elector: elector(backend, &clock, n, random), link, clock }
}

/// The elector of host `n`.
pub(crate) fn elector(
    backend: Arc<dyn Backend>,
    clock: &SimClock,
    n: usize,
    random: &mut Rng,
) -> Arc<StoreElector> {
    let id: CandidateId = format!("host-{n}").parse().unwrap_or_else(|error| panic!("{error}"));
    // Shutdowns may take as long as they need, so that anything that continues afterwards is a violation.
    let mut config = Config::new().with_ttl(TTL).with_id(id).with_shutdown_timeout(Config::MAX_WAIT);
    if random.u8(..8) == 0 {
        config = config.with_on_disconnect(OnDisconnect::StepDown);
    }
    let elector = StoreElector::with_clock(backend, config, Arc::new(clock.clone()));
    Arc::new(elector.unwrap_or_else(|error| panic!("{error}")))
}

/// Causes or ends one fault.
async fn cause_fault(
    random: &mut Rng,
    restore_weight: u8,
    cluster: &Cluster,
    host: &Host,
    history: &History,
) {
    let delay = Duration::from_millis(random.u64(1..14_000));
    let member = random.usize(..MEMBERS);
    match random.u8(..20 + restore_weight) {
        0..=2 => host.link.set_state(LinkState::Healthy),
        3..=6 => host.link.set_state(LinkState::Lossy),
        7 | 8 => host.link.set_state(LinkState::Cut),
        9 => host.link.set_state(LinkState::AnswersLost),
        10 => cluster.change_members(|state| state.members[member].frozen = true),
        11 => cluster.change_members(|state| state.members[member].cut_off = true),
        12 => cluster.change_members(|state| {
            state.members[member].lag = delay.min(MAX_LAG);
        }),
        // The leader is frozen or cut off, so that the others may elect a new one.
        13 | 14 => cluster.change_members(|state| {
            if let Some(leader) = state.leader {
                state.members[leader].cut_off = random.bool();
                state.members[leader].frozen |= !state.members[leader].cut_off;
            }
        }),
        15 | 16 => cluster.change_members(|state| state.elect(random)),
        // The host was suspended.
        17 => host.clock.jump(delay),
        // All processes are stalled, but not the store.
        18 => {
            tokio::time::advance(delay / 4).await;
            history.lock().stalled_until(Instant::now());
        }
        19 => host.clock.jump_wall(delay / 6),
        _ => cluster.change_members(|state| state.restore(random)),
    }
    // The remaining members elect a leader.
    cluster.change_members(|state| {
        let works = |member: &crate::cluster::Member| !member.frozen && !member.cut_off;
        if state.leader.is_none_or(|leader| !works(&state.members[leader])) {
            state.elect(random);
        }
    });
}

/// An operator ends a session, deletes an entry or wipes the store. The leader that it concerned has to notice.
fn interfere(random: &mut Rng, elections: usize, cluster: &Cluster, history: &History) {
    let election = format!("e{}", random.usize(..elections));
    let Some(leader) = cluster.state().entries(&election).first().copied() else { return };
    match random.u8(..16) {
        0 => {
            cluster.change(|state| state.wipe(true));
            history.lock().tokens_restart();
            return;
        }
        1 | 2 => cluster.change(|state| state.wipe(false)),
        3..=9 => cluster.change(|state| state.remove(&election, |entry| *entry == leader)),
        _ => {
            cluster.change(|state| state.end_session(leader.session));
        }
    }
    let (history, epoch) = (history.clone(), history.lock().epoch());
    tokio::spawn(async move {
        // It notices by its watch, which may have to be renewed over a lossy link.
        tokio::time::sleep(TTL * 4).await;
        let token = leader.revision;
        let mut record = history.lock();
        if record.epoch() == epoch && record.working().contains(&(election.clone(), token)) {
            record.violated("S1", format!("{election}: {token} leads on without an entry"));
        }
    });
}

/// Promise L1: once all faults have ended, each election gets a new leader. `describe` says what the store has of an election.
pub(crate) async fn check_recovery(
    elections: usize,
    electors: &[Arc<StoreElector>],
    history: &History,
    describe: impl Fn(&str) -> String,
) {
    let before: Vec<u64> = (0..elections).map(|n| history.lock().terms_begun(&format!("e{n}"))).collect();
    for (n, before) in before.into_iter().enumerate() {
        let election = format!("e{n}");
        // Some terms are long.
        let led = within(TTL * 16, async {
            while history.lock().terms_begun(&election) <= before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if led.await.is_none() {
            let entries = describe(&election);
            let working = history.lock().working();
            let status: Vec<_> = electors.iter().map(|elector| elector.status()).collect();
            history.lock().violated(
                "L1",
                format!("{election}: nobody leads after {before} terms; {entries}; {working:?}; {status:?}"),
            );
        }
    }
}

/// Promise L2: electors close, and candidates and work end with them.
pub(crate) async fn close(
    electors: &[Arc<StoreElector>],
    candidates: Vec<JoinHandle<()>>,
    history: &History,
) {
    for (n, elector) in electors.iter().enumerate() {
        if within(TTL * 16, elector.close()).await.is_none() {
            history.lock().violated("L2", format!("host {n} does not close"));
        }
    }
    for candidate in candidates {
        match within(TTL * 16, candidate).await {
            None => history.lock().violated("L2", "a candidate hangs".to_owned()),
            Some(Err(error)) => history.lock().violated("L2", format!("a candidate died: {error}")),
            Some(Ok(())) => {}
        }
    }
    let working = history.lock().working();
    if !working.is_empty() {
        history.lock().violated("L2", format!("work goes on: {working:?}"));
    }
}

/// Promise L2: no entry is left in the store.
async fn check_leftovers(cluster: &Cluster, history: &History) {
    let empty = within(TTL * 3, async {
        loop {
            if cluster.state().entry_count() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    if empty.await.is_none() {
        let left = cluster.state().entry_count();
        history.lock().violated("L2", format!("{left} entries are left"));
    }
}

async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}
