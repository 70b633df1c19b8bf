//! The provider and the servers of a run. Adds subscriptions and injects faults until everything is charged.

use std::{
    mem,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::future::{join_all, try_join_all};
use rustix::process::Signal;

use super::{
    args::Layer,
    child_process::ChildProcess,
    data_directory::DataDirectory,
    election_watch::ElectionWatch,
    ledger_reader::LedgerReader,
    scenario::{FaultKind, PlannedFault, Scenario},
};
use crate::{clock::now_ms, db::Database, serve::Leader};

/// How many subscriptions are added in one transaction. Meanwhile the leader waits for the database.
const ADD_BATCH_SIZE: usize = 500;
/// How often the state of the run is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often progress is printed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a step may take beyond the time for the TTL and the charges.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// With fewer charges per second than this, a run counts as hanging.
const MIN_CHARGES_PER_SECOND: f64 = 20.0;
/// How long a server may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than the TTL a leader is stopped.
const PAUSE_BEYOND_TTL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct ClusterConfig {
    pub(crate) servers: u32,
    pub(crate) seed: u64,
    pub(crate) store: String,
    pub(crate) ttl: Duration,
    pub(crate) election: String,
    pub(crate) database_url: String,
    pub(crate) without: Vec<Layer>,
    pub(crate) directory: DataDirectory,
    pub(crate) database: Database,
}

/// A fault that was injected. Times are in milliseconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct InjectedFault {
    pub(crate) kind: FaultKind,
    pub(crate) at: i64,
    /// The name of the leader that was killed or stopped.
    pub(crate) victim: String,
    /// That leader's token.
    pub(crate) token: i64,
    /// When a stopped leader was continued, or a killed server was replaced.
    pub(crate) recovered_at: Option<i64>,
    /// When the next leader was seen, and its name. On the local store a stopped leader has no successor.
    pub(crate) next_leader: Option<(i64, String)>,
}

/// What happened in a run. Times are in milliseconds since 1970.
#[derive(Debug)]
pub(crate) struct RunRecord {
    pub(crate) begun_at: i64,
    pub(crate) ended_at: i64,
    pub(crate) faults: Vec<InjectedFault>,
    pub(crate) errors: Vec<String>,
}

/// One of the servers. A killed server's process is replaced by one of the next generation.
#[derive(Debug)]
struct ServerSlot {
    number: u32,
    generation: u32,
    process: Option<ChildProcess>,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    config: ClusterConfig,
    provider: ChildProcess,
    servers: Vec<ServerSlot>,
    ledger: LedgerReader,
    watch: ElectionWatch,
    subscriptions_added: usize,
    begun_at: i64,
    last_progress: Instant,
    faults: Vec<InjectedFault>,
}

/// How many renewals have been charged at the provider, and recorded in the database.
#[derive(Clone, Copy, Debug)]
struct Progress {
    charged: usize,
    recorded: usize,
}

impl Cluster {
    /// Starts the provider and the servers.
    pub(crate) async fn start(config: ClusterConfig) -> anyhow::Result<Self> {
        let watch = ElectionWatch::start(&config.store, &config.election).await?;
        let ledger = config.directory.ledger();
        let ledger = ledger.to_str().context("the data directory's name is not valid UTF-8")?;
        let seed = config.seed.to_string();
        let mut arguments = vec!["provider", "--ledger", ledger, "--seed", &seed];
        for layer in &config.without {
            arguments.push(match layer {
                Layer::Tokens => "--no-tokens",
                Layer::Idempotency => "--no-idempotency",
            });
        }
        let provider = ChildProcess::start("provider", &arguments, &config.directory.logs()).await?;
        let ledger = LedgerReader::open(&config.directory.ledger()).await?;
        let starts = (1..=config.servers).map(|number| start_server(&config, &provider, number, 1));
        let servers = try_join_all(starts)
            .await?
            .into_iter()
            .zip(1..)
            .map(|(process, number)| ServerSlot { number, generation: 1, process: Some(process) })
            .collect();
        Ok(Self {
            config,
            provider,
            servers,
            ledger,
            watch,
            subscriptions_added: 0,
            begun_at: now_ms(),
            last_progress: Instant::now(),
            faults: Vec::new(),
        })
    }

    /// Runs the scenario until everything has been charged and recorded.
    ///
    /// # Errors
    /// If a step takes too long or a process ends by itself. The error contains the last lines of the logs.
    pub(crate) async fn run_scenario(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let total = scenario.due.len();
        for batch in scenario.not_due.chunks(ADD_BATCH_SIZE) {
            self.config.database.add_subscriptions(batch).await?;
        }
        for (n, fault) in scenario.faults.iter().enumerate() {
            self.add_subscriptions(scenario, fault.subscriptions_added).await?;
            let (added, after_charges) = (self.subscriptions_added, fault.after_charges);
            self.wait_until("enough renewals are charged", self.time_limit(added), |_, progress| {
                (progress.charged >= after_charges).then_some(())
            })
            .await?;
            tokio::time::sleep(fault.delay).await;
            // Before the fault, so that the next leader finds work.
            let next = scenario.faults.get(n + 1).map_or(total, |next| next.subscriptions_added);
            self.add_subscriptions(scenario, next).await?;
            let leader = self
                .wait_until("there is a leader", self.time_limit(0), |cluster, _| cluster.live_leader())
                .await?;
            match fault.kind {
                FaultKind::Kill => self.kill(&leader, fault).await?,
                FaultKind::Pause => self.pause(&leader).await?,
            }
        }
        self.add_subscriptions(scenario, total).await?;
        self.wait_until("everything is charged and recorded", self.time_limit(total), |_, progress| {
            (progress.recorded >= total).then_some(())
        })
        .await
    }

    /// Stops all processes. The record contains `error` and the errors in stopping.
    pub(crate) async fn shut_down(mut self, error: Option<anyhow::Error>) -> RunRecord {
        let ended_at = now_ms();
        let mut errors: Vec<_> = error.map(|error| format!("{error:#}")).into_iter().collect();
        let servers: Vec<_> = self.servers.iter_mut().filter_map(|server| server.process.take()).collect();
        for server in &servers {
            // A server may be stopped, if the error occurred meanwhile.
            let _ = server.signal(Signal::CONT);
        }
        let stops = join_all(servers.into_iter().map(|server| server.stop(STOP_TIMEOUT))).await;
        errors.extend(stops.into_iter().filter_map(Result::err));
        errors.extend(self.provider.stop(STOP_TIMEOUT).await.err());
        self.watch.stop().await;
        RunRecord { begun_at: self.begun_at, ended_at, faults: self.faults, errors }
    }

    /// Adds subscriptions until there are `up_to`.
    async fn add_subscriptions(&mut self, scenario: &Scenario, up_to: usize) -> anyhow::Result<()> {
        if up_to > self.subscriptions_added {
            let new = &scenario.due[self.subscriptions_added..up_to];
            for batch in new.chunks(ADD_BATCH_SIZE) {
                self.config.database.add_subscriptions(batch).await.context("cannot add subscriptions")?;
            }
            self.subscriptions_added = up_to;
        }
        Ok(())
    }

    /// Kills the leader, replaces its server, and waits for the next leader.
    async fn kill(&mut self, leader: &Leader, fault: &PlannedFault) -> anyhow::Result<()> {
        let slot = self.slot_of(leader).context("the leader has ended")?;
        let mut victim = mem::take(&mut self.servers[slot].process).context("the leader has ended")?;
        let at = now_ms();
        victim.signal(Signal::KILL)?;
        victim.wait().await?;
        self.record_fault(FaultKind::Kill, at, leader);

        tokio::time::sleep(fault.downtime).await;
        let (number, generation) = (self.servers[slot].number, self.servers[slot].generation + 1);
        let replacement = start_server(&self.config, &self.provider, number, generation).await?;
        self.servers[slot] = ServerSlot { number, generation, process: Some(replacement) };
        let recovered_at = Some(now_ms());

        let token = leader.token.unwrap_or_default();
        let next = self
            .wait_until("another leader takes over", self.time_limit(0), |cluster, _| {
                cluster.watch.first_leader_after(token)
            })
            .await?;
        self.record_recovery(recovered_at, Some(next));
        Ok(())
    }

    /// Stops the leader for longer than the TTL, and continues it.
    async fn pause(&mut self, leader: &Leader) -> anyhow::Result<()> {
        let slot = self.slot_of(leader).context("the leader has ended")?;
        let victim = self.servers[slot].process.as_ref().context("the leader has ended")?;
        let at = now_ms();
        victim.signal(Signal::STOP)?;
        self.record_fault(FaultKind::Pause, at, leader);

        // Until there is another leader, so that two would charge if nothing prevented it. On the local store, or
        // with one server, there is no other leader: there the pause only has to exceed the TTL.
        let token = leader.token.unwrap_or_default();
        let (shortest, longest) = if self.config.servers == 1 || self.config.store.starts_with("local:") {
            (self.config.ttl + PAUSE_BEYOND_TTL, self.config.ttl + PAUSE_BEYOND_TTL)
        } else {
            (self.config.ttl + PAUSE_BEYOND_TTL, 3 * self.config.ttl + 5 * PAUSE_BEYOND_TTL)
        };
        let stopped = Instant::now();
        self.wait_until("the pause ends", longest + STEP_TIMEOUT, |cluster, _| {
            let enough = cluster.watch.first_leader_after(token).is_some() || stopped.elapsed() >= longest;
            (stopped.elapsed() >= shortest && enough).then_some(())
        })
        .await?;
        let victim = self.servers[slot].process.as_ref().context("the stopped leader has ended")?;
        victim.signal(Signal::CONT)?;
        let recovered_at = Some(now_ms());
        self.wait_until("there is a leader", self.time_limit(0), |cluster, _| cluster.live_leader()).await?;
        self.record_recovery(recovered_at, self.watch.first_leader_after(token));
        Ok(())
    }

    fn record_fault(&mut self, kind: FaultKind, at: i64, leader: &Leader) {
        let token = leader.token.and_then(|token| i64::try_from(token).ok()).unwrap_or_default();
        eprintln!("{}  {} {}", self.elapsed(), kind.as_str(), leader.id);
        let victim = leader.id.clone();
        self.faults.push(InjectedFault { kind, at, victim, token, recovered_at: None, next_leader: None });
    }

    fn record_recovery(&mut self, recovered_at: Option<i64>, next_leader: Option<(i64, Leader)>) {
        if let Some(fault) = self.faults.last_mut() {
            fault.recovered_at = recovered_at;
            fault.next_leader = next_leader.map(|(at, leader)| (at, leader.id));
        }
    }

    /// The leader, if it is one of the running servers.
    fn live_leader(&self) -> Option<Leader> {
        self.watch.leader().filter(|leader| self.slot_of(leader).is_some())
    }

    fn slot_of(&self, leader: &Leader) -> Option<usize> {
        self.servers
            .iter()
            .position(|server| server.process.as_ref().is_some_and(|process| process.name == leader.id))
    }

    /// How long it may take to elect a leader and charge `renewals`.
    fn time_limit(&self, renewals: usize) -> Duration {
        let charging = Duration::from_secs_f64(renewals as f64 / MIN_CHARGES_PER_SECOND);
        STEP_TIMEOUT + 4 * self.config.ttl + charging
    }

    /// Waits until `condition` returns a value, and checks meanwhile that all processes run.
    async fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Self, Progress) -> Option<T>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            let progress = self.progress().await?;
            for process in self
                .servers
                .iter_mut()
                .filter_map(|server| server.process.as_mut())
                .chain([&mut self.provider])
            {
                if let Some(status) = process.exit_status()? {
                    bail!("{} ended unexpectedly: {status}\n{}", process.name, process.log_tail());
                }
            }
            if let Some(value) = condition(self, progress) {
                return Ok(value);
            }
            if self.last_progress.elapsed() >= PROGRESS_INTERVAL {
                self.last_progress = Instant::now();
                self.print_progress(progress);
            }
            if begun.elapsed() > limit {
                bail!("{}", self.timeout_error(what, limit, progress));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn progress(&self) -> anyhow::Result<Progress> {
        let charged = self.ledger.count_charged().await.context("cannot read the provider's ledger")?;
        let recorded = self.config.database.count_recorded().await.context("cannot read the database")?;
        Ok(Progress { charged: usize::try_from(charged)?, recorded: usize::try_from(recorded)? })
    }

    fn leader_name(&self) -> String {
        self.watch.leader().map_or_else(|| "no server".to_owned(), |leader| leader.id)
    }

    fn print_progress(&self, progress: Progress) {
        eprintln!("{}  {} leads, {} charged", self.elapsed(), self.leader_name(), progress.charged);
    }

    fn elapsed(&self) -> String {
        format!("{:6.1} s", (now_ms() - self.begun_at) as f64 / 1000.0)
    }

    fn timeout_error(&self, what: &str, limit: Duration, progress: Progress) -> String {
        let store =
            self.watch.store_error().map_or_else(String::new, |error| format!("; store error: {error}"));
        let log_tails: Vec<_> =
            self.servers.iter().filter_map(|server| Some(server.process.as_ref()?.log_tail())).collect();
        format!(
            "timed out after {limit:?} waiting until {what}: {} leads, {} subscriptions added, {} charged, \
             {} recorded{store}\n{}",
            self.leader_name(),
            self.subscriptions_added,
            progress.charged,
            progress.recorded,
            log_tails.join("\n")
        )
    }
}

/// Starts a generation of server `number`. Each has a new name, like a replaced machine.
async fn start_server(
    config: &ClusterConfig,
    provider: &ChildProcess,
    number: u32,
    generation: u32,
) -> anyhow::Result<ChildProcess> {
    let name = format!("server-{number}.{generation}");
    let arguments = [
        ["serve", "--store", &config.store, "--database", &config.database_url].as_slice(),
        &["--provider", &provider.address, "--id", &name, "--election", &config.election],
    ]
    .concat();
    ChildProcess::start(&name, &arguments, &config.directory.logs()).await
}
