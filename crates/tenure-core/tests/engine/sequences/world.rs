//! The system under test: electors under the same calls and faults, and the checks after each step.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use tenure_core::{
    Candidate, Config, Elector, Leadership, LossReason, SimClock, memory::MemoryStore, memory::Proof,
};
use tokio::{runtime::Runtime, task::JoinHandle};

use super::model::{EndKind, HOSTS, Model, SETTLING, Step, WorkKind};
use crate::host::{Host, TTL, assert_nothing_left, sleep, within};

/// After this time, everything has happened that needs no simulated time.
const INSTANT: Duration = Duration::from_millis(5);

pub(super) struct World {
    // Dropped before the runtime, which they need.
    electors: Electors,
    simulated: Runtime,
}

struct Electors {
    store: MemoryStore,
    hosts: Vec<ObservingHost>,
    campaigns: Vec<Campaign>,
    held: Vec<Held>,
    /// The candidacies whose entry or session an operator has removed. They may not have noticed it yet, nor even that they
    /// had won.
    interfered_with: BTreeSet<usize>,
    /// The highest fencing token of all terms so far.
    highest: u64,
    /// Resignations and work in the background.
    background_tasks: Vec<JoinHandle<()>>,
    side_effects: Arc<SideEffects>,
}

/// An elector, and the leader it has observed last.
struct ObservingHost {
    host: Host,
    observed: Arc<Mutex<Option<Option<Candidate>>>>,
}

struct Campaign {
    id: usize,
    host: usize,
    task: JoinHandle<Option<Leadership>>,
}

/// A guard that is held.
struct Held {
    id: usize,
    host: usize,
    leadership: Leadership,
    /// The loss reason that it reported first.
    loss: Option<LossReason>,
}

/// Checks the side effects of all work.
#[derive(Default)]
struct SideEffects {
    highest: AtomicU64,
    /// Whether an operator has interfered: two candidates may lead for a short time then.
    interfered: AtomicBool,
}

impl SideEffects {
    /// Records a side effect of the work of `token`.
    fn record(&self, token: u64, entry_exists: bool) {
        assert!(
            entry_exists || self.interfered.load(Ordering::SeqCst),
            "the work of {token} runs after its entry was removed"
        );
        let highest = self.highest.fetch_max(token, Ordering::SeqCst);
        assert!(
            token >= highest || self.interfered.load(Ordering::SeqCst),
            "the work of {token} runs beside that of {highest}"
        );
    }
}

impl World {
    pub(super) fn new(model: &Model) -> Self {
        // For the jitter of the engine.
        fastrand::seed(0);
        let simulated =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let simulated = simulated.unwrap();
        let entered = simulated.enter();
        let store = MemoryStore::with_proof(model.proof);
        let hosts = (0..HOSTS).map(|host| ObservingHost::new(&store, host)).collect();
        let electors = Electors {
            store,
            hosts,
            campaigns: Vec::new(),
            held: Vec::new(),
            interfered_with: BTreeSet::new(),
            highest: 0,
            background_tasks: Vec::new(),
            side_effects: Arc::default(),
        };
        drop(entered);
        Self { electors, simulated }
    }

    pub(super) fn apply(&mut self, model: &Model, step: Step) {
        self.simulated.block_on(self.electors.apply(model, step));
    }

    pub(super) fn finish(mut self, model: Model) {
        self.simulated.block_on(self.electors.finish(model));
    }
}

impl ObservingHost {
    fn new(store: &MemoryStore, host: usize) -> Self {
        // A resignation is awaited until it is confirmed.
        let unlimited_shutdown = |config: Config| config.with_shutdown_timeout(Config::MAX_WAIT);
        let host = Host::with(store, &format!("c{host}"), SimClock::new(), unlimited_shutdown);
        let observed: Arc<Mutex<Option<Option<Candidate>>>> = Arc::default();
        let (mut leaders, sender) = (host.elector.observe("e"), Arc::clone(&observed));
        tokio::spawn(async move {
            while let Some(leader) = leaders.next().await {
                *sender.lock().unwrap() = Some(leader.unwrap());
            }
        });
        Self { host, observed }
    }
}

impl Electors {
    async fn apply(&mut self, model: &Model, step: Step) {
        match step {
            Step::Campaign { host } => self.campaign(model, host, None, true),
            Step::TryCampaign { host } => self.campaign(model, host, None, false),
            Step::CampaignWithTimeout { host, timeout } => self.campaign(model, host, Some(timeout), true),
            Step::End { id, kind } => self.end(id, kind),
            Step::Work { id, kind } => self.work(id, kind),
            Step::SetValue { id } => self.set_value(model, id).await,
            Step::Restart { host } => self.restart(model, host).await,
            Step::CutLink { host } => self.hosts[host].host.link.cut(),
            Step::Fault { host, op, direction, delivery } => {
                self.hosts[host].host.link.set(&[op], direction, delivery)
            }
            Step::HealLink { host } => self.hosts[host].host.link.heal(),
            Step::ExpireSession { host } => {
                let session = self.interfere(host);
                session.map(|session| self.store.expire_session(session));
            }
            Step::DeleteEntries { host } => {
                let session = self.interfere(host);
                let entries = self.store.entries("e").into_iter();
                let owned = entries.filter(|entry| Some(entry.session) == session);
                for entry in owned {
                    assert!(self.store.delete_entry("e", entry.revision));
                }
            }
            Step::AdvanceTime { time } => sleep(time).await,
            Step::Settle => self.settle().await,
        }
        sleep(INSTANT).await;
        self.collect(model).await;
        self.check(model);
        self.check_answers(matches!(step, Step::Settle)).await;
    }

    fn campaign(&mut self, model: &Model, host: usize, timeout: Option<Duration>, waits: bool) {
        let elector = Arc::clone(&self.hosts[host].host.elector);
        let task = tokio::spawn(async move {
            let campaign = async {
                // The only error is a closed elector.
                if waits { elector.campaign("e").await.ok() } else { elector.try_campaign("e").await.ok()? }
            };
            tokio::time::timeout(timeout.unwrap_or(Duration::MAX), campaign).await.ok()?
        });
        self.campaigns.push(Campaign { id: model.newest(), host, task });
    }

    /// Takes the guards of the campaigns that have won.
    async fn collect(&mut self, model: &Model) {
        let mut won = Vec::new();
        for campaign in self.campaigns.extract_if(.., |campaign| campaign.task.is_finished()) {
            let Some(leadership) = campaign.task.await.unwrap() else { continue };
            assert!(model.may_exist(campaign.id), "{} leads, though it was refused or dropped", campaign.id);
            won.push((campaign.id, campaign.host, leadership));
        }
        won.sort_by_key(|(.., leadership)| leadership.fencing_token());
        for (id, host, leadership) in won {
            let token = leadership.fencing_token().get();
            assert!(
                token > self.highest || self.interfered_with.contains(&id),
                "token {token} after {}",
                self.highest
            );
            self.highest = self.highest.max(token);
            self.side_effects.record(token, true);
            self.held.push(Held { id, host, leadership, loss: None });
        }
    }

    /// Checks the invariants that hold after every step.
    fn check(&mut self, model: &Model) {
        for held in &mut self.held {
            let loss = held.leadership.loss();
            assert!(held.loss.is_none() || held.loss == loss, "{:?}, and then {loss:?}", held.loss);
            assert_eq!(loss.is_none(), held.leadership.is_leader());
            held.loss = loss;
            if model.is_certain(held.id) {
                assert_eq!(loss, None, "{} was lost without a fault: {model:?}", held.id);
                assert_eq!(model.first(), Some(held.id), "{} leads before its turn: {model:?}", held.id);
            }
        }
        let leading = self.held.iter().filter(|held| held.loss.is_none());
        let undisturbed: Vec<_> =
            leading.clone().map(|held| held.id).filter(|id| !self.interfered_with.contains(id)).collect();
        assert!(undisturbed.len() <= 1, "{undisturbed:?} lead at once");
        if model.is_settled() {
            let leads: Vec<_> = leading.map(|held| held.id).collect();
            assert_eq!(leads, Vec::from_iter(model.first()), "the leader is not the expected one: {model:?}");
        }
    }

    /// After `Settle`, all calls return the same candidates, in the order of the entries.
    async fn check_answers(&self, settled: bool) {
        if !settled {
            return;
        }
        let entries: Vec<_> = self.store.entries("e").into_iter().map(|entry| entry.revision).collect();
        for observing in &self.hosts {
            let elector = &observing.host.elector;
            let candidates = elector.candidates("e").await.unwrap();
            let tokens = candidates.iter().flat_map(|candidate| candidate.token);
            assert!(tokens.map(|token| token.get()).eq(entries.iter().copied()));
            let key =
                |candidate: &Candidate| (candidate.id.clone(), candidate.token, candidate.value.clone());
            let leader = candidates.first().map(key);
            assert_eq!(elector.leader("e").await.unwrap().as_ref().map(key), leader);
            let observed = observing.observed.lock().unwrap().clone();
            assert_eq!(
                observed.as_ref().map(|observed| observed.as_ref().map(key)),
                Some(leader.clone()),
                "observed"
            );
            let holder = self.held.iter().find(|held| held.loss.is_none());
            assert_eq!(
                holder.map(|held| Some(held.leadership.fencing_token())),
                leader.map(|(_, token, _)| token)
            );
        }
        // Promise L1: a waiting candidate has a predecessor.
        assert!(
            self.campaigns.is_empty() || !entries.is_empty(),
            "{} wait without a predecessor",
            self.campaigns.len()
        );
    }

    fn end(&mut self, id: usize, kind: EndKind) {
        // Aborting a task drops its future when the runtime polls next.
        self.campaigns
            .extract_if(.., |campaign| campaign.id == id)
            .for_each(|campaign| campaign.task.abort());
        for held in self.held.extract_if(.., |held| held.id == id) {
            match kind {
                EndKind::Drop => drop(held.leadership),
                EndKind::BeginAndDrop => {
                    held.leadership.request_resign();
                    assert!(!held.leadership.is_leader());
                }
                EndKind::Resign => self.background_tasks.push(tokio::spawn(async move {
                    let reported = held.loss;
                    let outcome = held.leadership.resign().await;
                    assert_eq!(outcome.is_ok(), reported.is_none(), "{reported:?}, and then {outcome:?}");
                })),
            }
        }
    }

    fn work(&mut self, id: usize, kind: WorkKind) {
        let Some(held) = self.held.iter().find(|held| held.id == id) else { return };
        let (handle, side_effects) = (held.leadership.handle(), Arc::clone(&self.side_effects));
        let (token, stop) = (handle.fencing_token().get(), handle.cancellation_token());
        let store = self.store.clone();
        let work = async move {
            loop {
                side_effects.record(token, store.entries("e").iter().any(|entry| entry.revision == token));
                if kind == WorkKind::Panics {
                    resume_unwind(Box::new("work that panics"));
                }
                tokio::select! {
                    () = stop.cancelled(), if kind == WorkKind::StopsWhenCancelled => return,
                    () = sleep(Duration::from_millis(20)) => {}
                }
            }
        };
        let working = tokio::spawn(async move { handle.run(work).await.map_err(|lost| lost.reason) });
        self.background_tasks.push(tokio::spawn(async move {
            let outcome = working.await;
            assert_eq!(outcome.is_err(), kind == WorkKind::Panics && !matches!(outcome, Ok(Err(_))));
        }));
    }

    async fn set_value(&mut self, model: &Model, id: usize) {
        let Some(held) = self.held.iter().find(|held| held.id == id) else { return };
        let value = format!("value {id}");
        let change = tokio::time::timeout(TTL, held.leadership.set_value(value.clone())).await;
        if model.is_certain(id) {
            change.unwrap().unwrap();
            let leader = self.hosts[held.host].host.elector.leader("e").await.unwrap().unwrap();
            assert_eq!(leader.value, value.into_bytes());
        }
    }

    async fn restart(&mut self, model: &Model, host: usize) {
        within(TTL * 6, self.hosts[host].host.elector.close()).await;
        for mut held in self.held.extract_if(.., |held| held.host == host) {
            let loss = held.leadership.loss();
            assert!(loss.is_some() && (held.loss.is_none() || held.loss == loss));
            held.loss = loss;
        }
        // Its campaigns end.
        sleep(INSTANT).await;
        let ended = self.campaigns.extract_if(.., |campaign| !model.may_exist(campaign.id));
        for campaign in ended {
            drop(within(INSTANT, campaign.task).await.unwrap());
        }
        self.hosts[host] = ObservingHost::new(&self.store, host);
    }

    /// Records that an operator removes the session or entries of an elector, and returns its session.
    fn interfere(&mut self, host: usize) -> Option<u64> {
        self.side_effects.interfered.store(true, Ordering::SeqCst);
        let held = self.held.iter().filter(|held| held.host == host).map(|held| held.id);
        let campaigning = self.campaigns.iter().filter(|campaign| campaign.host == host);
        self.interfered_with.extend(held.chain(campaigning.map(|campaign| campaign.id)));
        self.hosts[host].host.elector.status().session?.parse().ok()
    }

    async fn settle(&mut self) {
        for observing in &self.hosts {
            observing.host.link.heal();
        }
        sleep(SETTLING).await;
    }

    /// Promises L1, L2: once all links are healed, each candidate leads in its turn, and nothing is left at the end.
    async fn finish(&mut self, mut model: Model) {
        self.settle().await;
        loop {
            self.collect(&model).await;
            for held in self.held.extract_if(.., |held| held.leadership.loss().is_some()) {
                model.remove(held.id);
            }
            assert!(self.held.len() <= 1, "two lead at once");
            let Some(held) = self.held.pop() else { break };
            assert!(
                !model.is_certain(held.id) || model.first() == Some(held.id),
                "{} leads before its turn: {model:?}",
                held.id
            );
            model.remove(held.id);
            within(TTL * 2, held.leadership.resign()).await.unwrap();
            // A successor that was not next in line before needs a proven heartbeat first.
            sleep(if matches!(model.proof, Proof::LaterHeartbeats { .. }) { TTL } else { INSTANT }).await;
        }
        assert!(self.campaigns.is_empty(), "{} candidates never led", self.campaigns.len());
        for observing in &self.hosts {
            within(TTL * 6, observing.host.elector.close()).await;
        }
        for task in self.background_tasks.drain(..) {
            within(TTL, task).await.unwrap();
        }
        assert_nothing_left(&self.store).await;
    }
}
