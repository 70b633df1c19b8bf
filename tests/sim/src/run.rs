//! One seed's run: hosts that campaign, and everything that happens to them.

use std::{future::Future, sync::Arc, time::Duration};

use fastrand::Rng;
use tenure_core::{CandidateId, Config, Elector, OnDisconnect, SimClock, StoreElector, spi::Backend};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    broken::Mutant,
    candidate::{Candidate, Terms},
    cluster::{Cluster, MEMBERS, MOST_LAG},
    etcd::SimEtcd,
    history::History,
    host::Access,
    line::{Line, Weather},
    options::Store,
    zookeeper::SimZookeeper,
};

const TTL: Duration = Duration::from_secs(10);
const HOSTS: usize = 4;
const ELECTIONS: usize = 8;

/// How a run went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) elections: u64,
    pub(crate) faults: u64,
    pub(crate) refused: u64,
    pub(crate) violations: Vec<String>,
    /// How many requests a fake server has served, and a digest of which and when.
    pub(crate) events: u64,
    pub(crate) digest: u64,
}

struct Host {
    elector: Arc<StoreElector>,
    line: Arc<Line>,
    clock: SimClock,
}

/// Runs one seed, on this thread.
pub(crate) fn run(seed: u64, store: Store, simulated: Duration, mutant: Option<Mutant>) -> Outcome {
    Mutant::choose(mutant);
    // The engine's own jitter comes from here too.
    fastrand::seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // What tokio itself draws by lot.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.enable_time().start_paused(true).build();
    let outcome = runtime.map(|runtime| runtime.block_on(play(seed, store, simulated)));
    outcome.unwrap_or_else(|error| Outcome {
        violations: vec![format!("no runtime: {error}")],
        ..Outcome::default()
    })
}

async fn play(seed: u64, store: Store, simulated: Duration) -> Outcome {
    let mut random = Rng::with_seed(seed ^ 0x7e4a_11e5);
    // Any two clocks differ by less than a tenth.
    let mut rate = || 0.955 + 0.09 * random.f64();
    let worst = if seed % 4 >= 2 { 150 } else { 2_000 };
    let cluster = Cluster::new(rate(), Rng::with_seed(seed), worst);
    let rates: Vec<f64> = (0..HOSTS).map(|_| rate()).collect();
    // In some runs an operator ends sessions, deletes entries and loses the store. Two may lead for a moment then, and their
    // tokens tell them apart.
    let operated = seed % 8 >= 6;
    let history = History::new(operated);
    // In half of the runs terms are long and faults last; in the others there are many of both.
    let lasting = seed % 4 >= 2;
    let hosts: Vec<Host> =
        rates.iter().enumerate().map(|(n, rate)| host(&cluster, store, n, *rate, &mut random)).collect();
    let keeping_time = tokio::spawn(cluster.clone().keep_time());
    let mut candidates = Vec::new();
    for host in &hosts {
        for n in 0..ELECTIONS {
            let candidate = Candidate {
                elector: Arc::clone(&host.elector),
                clock: host.clock.clone(),
                election: format!("e{n}"),
                random: Rng::with_seed(random.u64(..)),
                history: history.clone(),
                terms: if lasting { Terms::Long(Duration::from_secs(90)) } else { Terms::Short },
            };
            candidates.push(tokio::spawn(candidate.stand_for_ever()));
        }
    }
    let end = Instant::now() + simulated;
    let mut faults = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.u64(1..if lasting { 6_000 } else { 1_500 }))).await;
        let host = &hosts[random.usize(..HOSTS)];
        let mends = if lasting { 2 } else { 6 };
        cause_fault(&mut random, mends, &cluster, host, &history).await;
        if operated && random.u8(..4) == 0 {
            interfere(&mut random, &cluster, &history);
        }
        faults += 1;
    }
    for host in &hosts {
        host.line.set_weather(Weather::Fair);
    }
    cluster.disturb(|state| state.mend(&mut random));
    check_recovery(&cluster, &hosts, &history).await;
    close(&hosts, candidates, &history).await;
    check_leftovers(&cluster, &history).await;
    keeping_time.abort();
    let record = history.lock();
    Outcome {
        elections: record.terms,
        faults: faults + cluster.state().cuts + hosts.iter().map(|host| host.line.faults()).sum::<u64>(),
        refused: record.refused,
        violations: record.violations.clone(),
        ..Outcome::default()
    }
}

fn host(cluster: &Cluster, store: Store, n: usize, rate: f64, random: &mut Rng) -> Host {
    let line = Arc::new(Line::new(random.u64(..)));
    let access = Access::new(cluster.clone(), Arc::clone(&line), store == Store::Etcd);
    let backend: Arc<dyn Backend> = match store {
        Store::Etcd => Arc::new(SimEtcd(access)),
        Store::Zookeeper => Arc::new(SimZookeeper(access)),
    };
    let clock = SimClock::with_rate(rate);
    let id: CandidateId = format!("host-{n}").parse().unwrap_or_else(|error| panic!("{error}"));
    // A shutdown is waited for, so that whatever goes on after it is a fault.
    let mut config = Config::new().with_ttl(TTL).with_id(id).with_shutdown_timeout(Config::MAX_WAIT);
    if random.u8(..8) == 0 {
        config = config.with_on_disconnect(OnDisconnect::StepDown);
    }
    let elector = StoreElector::with_clock(backend, config, Arc::new(clock.clone()));
    Host { elector: Arc::new(elector.unwrap_or_else(|error| panic!("{error}"))), line, clock }
}

/// Something goes wrong, or is mended.
async fn cause_fault(random: &mut Rng, mends: u8, cluster: &Cluster, host: &Host, history: &History) {
    let delay = Duration::from_millis(random.u64(1..14_000));
    let member = random.usize(..MEMBERS);
    match random.u8(..20 + mends) {
        0..=2 => host.line.set_weather(Weather::Fair),
        3..=6 => host.line.set_weather(Weather::Foul),
        7 | 8 => host.line.set_weather(Weather::Cut),
        9 => host.line.set_weather(Weather::Deaf),
        10 => cluster.disturb(|state| state.members[member].frozen = true),
        11 => cluster.disturb(|state| state.members[member].cut_off = true),
        12 => cluster.disturb(|state| {
            state.members[member].lag = delay.min(MOST_LAG);
        }),
        // The leader is frozen or cut off, and the others may elect another.
        13 | 14 => cluster.disturb(|state| {
            if let Some(leader) = state.leader {
                state.members[leader].cut_off = random.bool();
                state.members[leader].frozen |= !state.members[leader].cut_off;
            }
        }),
        15 | 16 => cluster.disturb(|state| state.elect(random)),
        // Suspended, and awake again.
        17 => host.clock.jump(delay),
        // Every process is stalled, and the store is not.
        18 => {
            tokio::time::advance(delay / 4).await;
            history.lock().stalled_until(Instant::now());
        }
        19 => host.clock.jump_wall(delay / 6),
        _ => cluster.disturb(|state| state.mend(random)),
    }
    // Whoever is left elects.
    cluster.disturb(|state| {
        let works = |member: &crate::cluster::Member| !member.frozen && !member.cut_off;
        if state.leader.is_none_or(|leader| !works(&state.members[leader])) {
            state.elect(random);
        }
    });
}

/// An operator ends a session, deletes an entry or loses the store; whoever led by it has to notice.
fn interfere(random: &mut Rng, cluster: &Cluster, history: &History) {
    let election = format!("e{}", random.usize(..ELECTIONS));
    let Some(leader) = cluster.state().entries(&election).first().copied() else { return };
    match random.u8(..16) {
        0 => {
            cluster.change(|state| state.wipe(true));
            history.lock().tokens_begin_anew();
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
        // By its watch, asked for again over a line that loses much.
        tokio::time::sleep(TTL * 4).await;
        let token = leader.revision;
        let mut record = history.lock();
        if record.epoch() == epoch && record.working().contains(&(election.clone(), token)) {
            record.violated("S1", format!("{election}: {token} leads on without an entry"));
        }
    });
}

/// Promise L1: with everything mended, somebody else leads in each election.
async fn check_recovery(cluster: &Cluster, hosts: &[Host], history: &History) {
    let before: Vec<u64> = (0..ELECTIONS).map(|n| history.lock().begun(&format!("e{n}"))).collect();
    for (n, before) in before.into_iter().enumerate() {
        let election = format!("e{n}");
        // Some terms take their time.
        let led = within(TTL * 16, async {
            while history.lock().begun(&election) <= before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if led.await.is_none() {
            let entries = cluster.state().entries(&election).to_vec();
            let working = history.lock().working();
            let status: Vec<_> = hosts.iter().map(|host| host.elector.status()).collect();
            history.lock().violated(
                "L1",
                format!(
                    "{election}: nobody leads after {before} terms; {entries:?}; {working:?}; {status:?}"
                ),
            );
        }
    }
}

/// Promise L2: everything ends when it is told to.
async fn close(hosts: &[Host], candidates: Vec<JoinHandle<()>>, history: &History) {
    for (n, host) in hosts.iter().enumerate() {
        if within(TTL * 16, host.elector.close()).await.is_none() {
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

/// Promise L2: nothing is left in the store.
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
