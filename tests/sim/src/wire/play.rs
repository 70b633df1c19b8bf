//! One run: the hosts, the faults, and the checks at the end.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use tokio::sync::watch;
use turmoil::Sim;

use super::{
    cluster::{Cluster, MEMBERS},
    faults::{Faults, LATENCY, TICK},
    host::{self, ELECTIONS, Host, TTL, host_name, member_name},
    request::MemberService,
};
use crate::{candidate::TermLength, history::History, run::Outcome};

pub(super) const HOSTS: usize = 3;

/// The simulated world.
pub(super) struct World {
    pub(super) sim: Sim<'static>,
    pub(super) cluster: Cluster,
    pub(super) hosts: Vec<Arc<Host>>,
    pub(super) history: History,
}

/// Runs one seed.
pub(super) fn play(seed: u64, simulated: Duration) -> Outcome {
    let mut random = Rng::with_seed(seed ^ 0x0e7c_d511);
    // In some runs an operator revokes leases and deletes entries, or a stalled leader revokes live leases.
    let operator_interferes = seed % 8 >= 6;
    let mut world = World::new(seed, &mut random, History::new(operator_interferes));
    let mut faults = Faults::new(random.fork(), operator_interferes);
    while world.sim.elapsed() < simulated && world.step() {
        faults.step(&mut world);
    }
    faults.restore_all(&mut world);
    world.check_recovery();
    world.close();
    world.check_leftovers();
    let record = world.history.lock();
    let state = world.cluster.read();
    Outcome {
        elections: record.terms,
        faults: faults.count,
        refused: record.refused,
        violations: record.violations.clone(),
        events: state.events,
        digest: state.digest,
    }
}

impl World {
    fn new(seed: u64, random: &mut Rng, history: History) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(random.u64(..))
            .tick_duration(TICK)
            .simulation_duration(Duration::MAX)
            // No message arrives in the step in which it was sent.
            .min_message_latency(TICK)
            .max_message_latency(LATENCY)
            // Hosts reconnect to a frozen member every second.
            .tcp_capacity(4_096)
            .build();
        // Any two clock rates differ by less than 10 %.
        let mut rates = random.fork();
        let mut rate = move || 0.955 + 0.09 * rates.f64();
        let cluster = Cluster::new(random.fork(), &mut rate);
        for member in 0..MEMBERS {
            let service = MemberService { cluster: cluster.clone(), member };
            sim.host(member_name(member), move || host::member(service.clone()));
        }
        let terms = if seed % 4 >= 2 { TermLength::Long(Duration::from_secs(30)) } else { TermLength::Short };
        let hosts: Vec<Arc<Host>> = (0..HOSTS)
            .map(|n| {
                let host = Arc::new(Host {
                    n,
                    rate: rate(),
                    terms,
                    history: history.clone(),
                    random: Mutex::new(random.fork()),
                    clock: Mutex::default(),
                    closing: watch::Sender::new(false),
                });
                let process = Arc::clone(&host);
                sim.host(host_name(n), move || Arc::clone(&process).run());
                host
            })
            .collect();
        Self { sim, cluster, hosts, history }
    }

    /// Lets a step of time go by. False when nothing can go on.
    fn step(&mut self) -> bool {
        self.cluster.advance(self.sim.elapsed());
        match self.sim.step() {
            Ok(_) => true,
            Err(error) => {
                self.history.lock().violated("L2", format!("a host died: {error}"));
                false
            }
        }
    }

    /// Goes on until `it` is so; false when it is not in `time`.
    fn goes_on_until(&mut self, time: Duration, mut it: impl FnMut(&mut Self) -> bool) -> bool {
        let latest = self.sim.elapsed() + time;
        while !it(self) {
            if self.sim.elapsed() >= latest || !self.step() {
                return false;
            }
        }
        true
    }

    /// Promise L1: after all faults have ended, somebody else leads in each election.
    fn check_recovery(&mut self) {
        let elections: Vec<String> = (0..ELECTIONS).map(|n| format!("e{n}")).collect();
        let before: Vec<u64> = elections.iter().map(|name| self.history.lock().terms_begun(name)).collect();
        for (election, before) in elections.iter().zip(before) {
            let led =
                self.goes_on_until(TTL * 16, |world| world.history.lock().terms_begun(election) > before);
            if !led {
                let working = self.history.lock().working();
                let state = self.cluster.read();
                let head = state.store.head(&format!("/tenure/{election}/"));
                let what = format!("{election}: nobody has led since {before}; {head:?}; {working:?}");
                self.history.lock().violated("L1", what);
            }
        }
    }

    /// Promise L2: everything ends when it is told to.
    fn close(&mut self) {
        for host in &self.hosts {
            host.closing.send_replace(true);
        }
        for n in 0..HOSTS {
            if !self.goes_on_until(TTL * 16, |world| !world.sim.is_host_running(host_name(n))) {
                self.history.lock().violated("L2", format!("host {n} does not close"));
            }
        }
        let working = self.history.lock().working();
        if !working.is_empty() {
            self.history.lock().violated("L2", format!("work goes on: {working:?}"));
        }
    }

    /// Promise L2: nothing is left in the store, nor open.
    fn check_leftovers(&mut self) {
        let empty = self.goes_on_until(TTL * 6, |world| {
            let state = world.cluster.read();
            state.store.key_count() == 0 && state.store.leases.is_empty() && state.open_watches == 0
        });
        if !empty {
            let state = self.cluster.read();
            let (keys, leases) = (state.store.key_count(), state.store.leases.len());
            let what = format!("left: {keys} keys, {leases} leases, {} watches", state.open_watches);
            self.history.lock().violated("L2", what);
        }
    }
}
