//! One seed's run: hosts that campaign, and everything that happens to them.

use std::{future::Future, sync::Arc, time::Duration};

use fastrand::Rng;
use tenure_core::{
    CandidateId, Config, Elector, Leadership, LeadershipHandle, OnDisconnect, SimClock, StoreElector,
    spi::Backend,
};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    broken::Mutant,
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
    // In some runs an operator ends sessions and deletes entries. Two may lead for a moment then, and their
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
                long: lasting,
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
    let mut config = Config::new().with_ttl(TTL).with_id(id);
    if random.u8(..8) == 0 {
        config = config.with_on_disconnect(OnDisconnect::LoseAtOnce);
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

/// An operator ends a session or deletes an entry; whoever led by it has to notice.
fn interfere(random: &mut Rng, cluster: &Cluster, history: &History) {
    let election = format!("e{}", random.usize(..ELECTIONS));
    let Some(leader) = cluster.state().entries(&election).first().copied() else { return };
    cluster.change(|state| match random.bool() {
        true => state.remove(&election, |entry| *entry == leader),
        false => drop(state.end_session(leader.session)),
    });
    let history = history.clone();
    tokio::spawn(async move {
        // By its watch, asked for again over a line that loses much.
        tokio::time::sleep(TTL * 4).await;
        let token = leader.revision;
        if history.lock().working().contains(&(election.clone(), token)) {
            history.lock().violated("S1", format!("{election}: {token} leads on without an entry"));
        }
    });
}

/// Promise L1: with everything mended, somebody else leads in each election.
async fn check_recovery(cluster: &Cluster, hosts: &[Host], history: &History) {
    let before: Vec<u64> = (0..ELECTIONS).map(|n| history.lock().highest(&format!("e{n}"))).collect();
    for (n, before) in before.into_iter().enumerate() {
        let election = format!("e{n}");
        // Some terms take their time.
        let led = within(TTL * 16, async {
            while history.lock().highest(&election) <= before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if led.await.is_none() {
            let entries = cluster.state().entries(&election).to_vec();
            let working = history.lock().working();
            let status: Vec<_> = hosts.iter().map(|host| host.elector.status()).collect();
            history.lock().violated(
                "L1",
                format!("{election}: nobody has led since {before}; {entries:?}; {working:?}; {status:?}"),
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

/// One host in one election.
struct Candidate {
    elector: Arc<StoreElector>,
    clock: SimClock,
    election: String,
    random: Rng,
    history: History,
    /// Whether many terms are long.
    long: bool,
}

impl Candidate {
    /// Campaigns with more or less patience, and leads in one way or another, until the elector is closed.
    async fn stand_for_ever(mut self) {
        loop {
            let patience = Duration::from_millis(self.random.u64(1..60_000));
            let tries = self.random.u8(..6) == 0;
            let pause = Duration::from_millis(self.random.u64(1..400));
            let campaign = async {
                if !tries {
                    return self.elector.campaign(&self.election).await.map(Some);
                }
                tokio::time::sleep(pause).await;
                self.elector.try_campaign(&self.election).await
            };
            match tokio::time::timeout(patience, campaign).await {
                Err(_) | Ok(Ok(None)) => {}
                Ok(Ok(Some(leadership))) => self.lead(leadership).await,
                Ok(Err(_closed)) => return,
            }
        }
    }

    async fn lead(&mut self, leadership: Leadership) {
        let most = match self.long {
            true if self.random.u8(..3) == 0 => 90_000,
            false if self.random.u8(..25) == 0 => 20_000,
            _ => 60,
        };
        let length = Duration::from_millis(self.random.u64(1..most));
        let work = Work {
            handle: leadership.handle(),
            clock: self.clock.clone(),
            election: self.election.clone(),
            ends: Instant::now() + length,
            obeys: self.random.bool(),
            random: Rng::with_seed(self.random.u64(..)),
            history: self.history.clone(),
        };
        let handle = leadership.handle();
        match self.random.u8(..5) {
            0 => drop(tokio::time::timeout(length, leadership.run(work.go())).await),
            1 => {
                let working = tokio::spawn(async move { handle.run(work.go()).await });
                tokio::time::sleep(length / 2).await;
                drop((leadership.resign().await, working.await));
                return;
            }
            2 => {
                let working = tokio::spawn(async move { handle.run(work.go()).await });
                tokio::time::sleep(length / 2).await;
                drop(leadership);
                if self.random.bool() {
                    drop(working.await);
                }
                return;
            }
            3 => {
                let budget = Duration::from_millis(self.random.u64(1..3_300));
                drop(leadership.run_with_stop_budget(budget, work.go()).await);
            }
            _ => drop(leadership.run(work.go()).await),
        }
        if self.random.bool() {
            let _ = leadership.resign().await;
        }
    }
}

/// A term's work: side effects, one after the other.
struct Work {
    handle: LeadershipHandle,
    clock: SimClock,
    election: String,
    ends: Instant,
    /// Whether it stops when it is told to; otherwise it has to be dropped.
    obeys: bool,
    random: Rng,
    history: History,
}

impl Work {
    fn token(&self) -> u64 {
        self.handle.fencing_token().get()
    }

    async fn go(mut self) {
        use tenure_core::Clock as _;
        self.history.lock().begins(&self.election, self.token());
        let stop = self.handle.cancellation_token();
        loop {
            if self.clock.now() > self.handle.deadline() {
                self.history.lock().too_late(&self.election, self.token());
            }
            if self.handle.ensure().is_ok() {
                self.history.lock().acts(&self.election, self.token());
                // On its way it may take as long as it likes; the register knows.
                let (history, election, token) = (self.history.clone(), self.election.clone(), self.token());
                let on_its_way = Duration::from_millis(self.random.u64(..20).pow(3));
                tokio::spawn(async move {
                    tokio::time::sleep(on_its_way).await;
                    history.lock().writes(&election, token);
                });
            }
            tokio::time::sleep(Duration::from_millis(self.random.u64(1..120))).await;
            let over = if stop.is_cancelled() { self.obeys } else { Instant::now() >= self.ends };
            if over {
                return;
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let token = self.token();
        self.history.lock().ends(&self.election, token);
    }
}
