//! The electors themselves, under the same calls and faults, and what must hold after each.

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
use tenure_core::{Candidate, Config, Elector, Leadership, LossReason, SimClock, memory::MemoryStore};
use tokio::{runtime::Runtime, task::JoinHandle};

use super::model::{HOSTS, How, Kind, Model, Step};
use crate::host::{Host, TTL, nothing_left, pass, within};

/// So long after a call everything has happened that needs no time.
const INSTANT: Duration = Duration::from_millis(5);

pub(super) struct World {
    // Dropped last: whatever is dropped before may need it.
    electors: Electors,
    simulated: Runtime,
}

struct Electors {
    store: MemoryStore,
    hosts: Vec<Watching>,
    campaigns: Vec<Campaign>,
    held: Vec<Held>,
    /// Those whose entry or session an operator has taken away. They need not have heard of it, nor even yet that
    /// they had won.
    robbed: BTreeSet<usize>,
    /// The highest token of any term so far.
    highest: u64,
    /// What is told to the store in the background.
    errands: Vec<JoinHandle<()>>,
    acts: Arc<Acts>,
}

/// An elector that also observes the election.
struct Watching {
    host: Host,
    seen: Arc<Mutex<Option<Option<Candidate>>>>,
}

struct Campaign {
    id: usize,
    host: usize,
    task: JoinHandle<Option<Leadership>>,
}

/// A guard that somebody holds.
struct Held {
    id: usize,
    host: usize,
    leadership: Leadership,
    /// Why it is over, as was said first.
    over: Option<LossReason>,
}

/// Side effects of all work.
#[derive(Default)]
struct Acts {
    highest: AtomicU64,
    /// Whether an operator has ever interfered: two may lead for a moment then.
    interfered: AtomicBool,
}

impl Acts {
    /// A side effect of the work of `token`, whose entry stands in the store or not.
    fn act(&self, token: u64, stands: bool) {
        assert!(
            stands || self.interfered.load(Ordering::SeqCst),
            "the work of {token} goes on after its entry has gone"
        );
        let highest = self.highest.fetch_max(token, Ordering::SeqCst);
        assert!(
            token >= highest || self.interfered.load(Ordering::SeqCst),
            "the work of {token} goes on beside that of {highest}"
        );
    }
}

impl World {
    pub(super) fn new(model: &Model) -> Self {
        // The engine's jitter.
        fastrand::seed(0);
        let simulated =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let simulated = simulated.unwrap();
        let entered = simulated.enter();
        let store = MemoryStore::with_proof(model.proof);
        let hosts = (0..HOSTS).map(|host| Watching::new(&store, host)).collect();
        let electors = Electors {
            store,
            hosts,
            campaigns: Vec::new(),
            held: Vec::new(),
            robbed: BTreeSet::new(),
            highest: 0,
            errands: Vec::new(),
            acts: Arc::default(),
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

impl Watching {
    fn new(store: &MemoryStore, host: usize) -> Self {
        // Here a resignation is waited for until it is confirmed.
        let patient = |config: Config| config.with_shutdown_timeout(Config::MAX_WAIT);
        let host = Host::with(store, &format!("c{host}"), SimClock::new(), patient);
        let seen: Arc<Mutex<Option<Option<Candidate>>>> = Arc::default();
        let (mut leaders, sees) = (host.elector.observe("e"), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Some(leader) = leaders.next().await {
                *sees.lock().unwrap() = Some(leader.unwrap());
            }
        });
        Self { host, seen }
    }
}

impl Electors {
    async fn apply(&mut self, model: &Model, step: Step) {
        match step {
            Step::Campaign { host } => self.campaign(model, host, None, true),
            Step::TryCampaign { host } => self.campaign(model, host, None, false),
            Step::Impatient { host, patience } => self.campaign(model, host, Some(patience), true),
            Step::Leave { id, how } => self.leave(id, how),
            Step::Work { id, kind } => self.work(id, kind),
            Step::SetValue { id } => self.set_value(model, id).await,
            Step::Restart { host } => self.restart(model, host).await,
            Step::Cut { host } => self.hosts[host].host.link.cut(),
            Step::Fault { host, op, side, path } => self.hosts[host].host.link.set(&[op], side, path),
            Step::Heal { host } => self.hosts[host].host.link.heal(),
            Step::Expire { host } => {
                let session = self.rob(host);
                session.map(|session| self.store.expire_session(session));
            }
            Step::Delete { host } => {
                let session = self.rob(host);
                let entries = self.store.entries("e").into_iter();
                let owned = entries.filter(|entry| Some(entry.session) == session);
                for entry in owned {
                    assert!(self.store.delete_entry("e", entry.revision));
                }
            }
            Step::Pass { time } => pass(time).await,
            Step::Settle => self.settle().await,
        }
        pass(INSTANT).await;
        self.collect(model).await;
        self.check(model);
        self.check_answers(matches!(step, Step::Settle)).await;
    }

    fn campaign(&mut self, model: &Model, host: usize, patience: Option<Duration>, waits: bool) {
        let elector = Arc::clone(&self.hosts[host].host.elector);
        let task = tokio::spawn(async move {
            let campaign = async {
                // An error is that its elector was closed.
                if waits { elector.campaign("e").await.ok() } else { elector.try_campaign("e").await.ok()? }
            };
            tokio::time::timeout(patience.unwrap_or(Duration::MAX), campaign).await.ok()?
        });
        self.campaigns.push(Campaign { id: model.newest(), host, task });
    }

    /// Takes the guards of the campaigns that have won.
    async fn collect(&mut self, model: &Model) {
        let mut won = Vec::new();
        for campaign in self.campaigns.extract_if(.., |campaign| campaign.task.is_finished()) {
            let Some(leadership) = campaign.task.await.unwrap() else { continue };
            assert!(model.lives(campaign.id), "{} leads, though it was refused or given up", campaign.id);
            won.push((campaign.id, campaign.host, leadership));
        }
        won.sort_by_key(|(.., leadership)| leadership.fencing_token());
        for (id, host, leadership) in won {
            let token = leadership.fencing_token().get();
            assert!(
                token > self.highest || self.robbed.contains(&id),
                "token {token} after {}",
                self.highest
            );
            self.highest = self.highest.max(token);
            self.acts.act(token, true);
            self.held.push(Held { id, host, leadership, over: None });
        }
    }

    /// What holds at every moment.
    fn check(&mut self, model: &Model) {
        for held in &mut self.held {
            let says = held.leadership.loss();
            assert!(held.over.is_none() || held.over == says, "{:?}, and then {says:?}", held.over);
            assert_eq!(says.is_none(), held.leadership.is_leader());
            held.over = says;
            if model.is_certain(held.id) {
                assert_eq!(says, None, "{} was lost without a reason: {model:?}", held.id);
                assert_eq!(model.first(), Some(held.id), "{} leads before its turn: {model:?}", held.id);
            }
        }
        let leading = self.held.iter().filter(|held| held.over.is_none());
        let unrobbed: Vec<_> =
            leading.clone().map(|held| held.id).filter(|id| !self.robbed.contains(id)).collect();
        assert!(unrobbed.len() <= 1, "{unrobbed:?} lead at once");
        if model.is_settled() {
            let leads: Vec<_> = leading.map(|held| held.id).collect();
            assert_eq!(leads, Vec::from_iter(model.first()), "who leads is not who should: {model:?}");
        }
    }

    /// Whoever can ask the store is told the same by every call, in the order of the entries.
    async fn check_answers(&self, settled: bool) {
        if !settled {
            return;
        }
        let entries: Vec<_> = self.store.entries("e").into_iter().map(|entry| entry.revision).collect();
        for watching in &self.hosts {
            let elector = &watching.host.elector;
            let candidates = elector.candidates("e").await.unwrap();
            let tokens = candidates.iter().flat_map(|candidate| candidate.token);
            assert!(tokens.map(|token| token.get()).eq(entries.iter().copied()));
            let key =
                |candidate: &Candidate| (candidate.id.clone(), candidate.token, candidate.value.clone());
            let leader = candidates.first().map(key);
            assert_eq!(elector.leader("e").await.unwrap().as_ref().map(key), leader);
            let seen = watching.seen.lock().unwrap().clone();
            assert_eq!(seen.as_ref().map(|seen| seen.as_ref().map(key)), Some(leader.clone()), "observed");
            let holder = self.held.iter().find(|held| held.over.is_none());
            assert_eq!(
                holder.map(|held| Some(held.leadership.fencing_token())),
                leader.map(|(_, token, _)| token)
            );
        }
        // Promise L1: whoever waits, waits for somebody.
        assert!(self.campaigns.is_empty() || !entries.is_empty(), "{} wait for nobody", self.campaigns.len());
    }

    fn leave(&mut self, id: usize, how: How) {
        // Dropping a task drops its future with the next turn of the runtime.
        self.campaigns
            .extract_if(.., |campaign| campaign.id == id)
            .for_each(|campaign| campaign.task.abort());
        for held in self.held.extract_if(.., |held| held.id == id) {
            match how {
                How::Drop => drop(held.leadership),
                How::BeginAndDrop => {
                    held.leadership.begin_resign();
                    assert!(!held.leadership.is_leader());
                }
                How::Resign => self.errands.push(tokio::spawn(async move {
                    let said = held.over;
                    let outcome = held.leadership.resign().await;
                    assert_eq!(outcome.is_ok(), said.is_none(), "{said:?}, and then {outcome:?}");
                })),
            }
        }
    }

    fn work(&mut self, id: usize, kind: Kind) {
        let Some(held) = self.held.iter().find(|held| held.id == id) else { return };
        let (handle, acts) = (held.leadership.handle(), Arc::clone(&self.acts));
        let (token, stop) = (handle.fencing_token().get(), handle.cancellation_token());
        let store = self.store.clone();
        let work = async move {
            loop {
                acts.act(token, store.entries("e").iter().any(|entry| entry.revision == token));
                if kind == Kind::Panics {
                    resume_unwind(Box::new("work that panics"));
                }
                tokio::select! {
                    () = stop.cancelled(), if kind == Kind::Obeys => return,
                    () = pass(Duration::from_millis(20)) => {}
                }
            }
        };
        let working = tokio::spawn(async move { handle.run(work).await.map_err(|lost| lost.reason) });
        self.errands.push(tokio::spawn(async move {
            let outcome = working.await;
            assert_eq!(outcome.is_err(), kind == Kind::Panics && !matches!(outcome, Ok(Err(_))));
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
            let says = held.leadership.loss();
            assert!(says.is_some() && (held.over.is_none() || held.over == says));
            held.over = says;
        }
        // Its campaigns have ended.
        pass(INSTANT).await;
        let ended = self.campaigns.extract_if(.., |campaign| !model.lives(campaign.id));
        for campaign in ended {
            drop(within(INSTANT, campaign.task).await.unwrap());
        }
        self.hosts[host] = Watching::new(&self.store, host);
    }

    /// An operator is about to take from an elector what it has in the store; returns its session.
    fn rob(&mut self, host: usize) -> Option<u64> {
        self.acts.interfered.store(true, Ordering::SeqCst);
        let held = self.held.iter().filter(|held| held.host == host).map(|held| held.id);
        let campaigning = self.campaigns.iter().filter(|campaign| campaign.host == host);
        self.robbed.extend(held.chain(campaigning.map(|campaign| campaign.id)));
        self.hosts[host].host.elector.status().session?.parse().ok()
    }

    async fn settle(&mut self) {
        for watching in &self.hosts {
            watching.host.link.heal();
        }
        pass(TTL * 4).await;
    }

    /// Promises L1, L2: with all lines mended, each candidate leads in its turn, and nothing is left at the end.
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
            pass(INSTANT).await;
        }
        assert!(self.campaigns.is_empty(), "{} candidates never led", self.campaigns.len());
        for watching in &self.hosts {
            within(TTL * 6, watching.host.elector.close()).await;
        }
        for errand in self.errands.drain(..) {
            within(TTL, errand).await.unwrap();
        }
        nothing_left(&self.store).await;
    }
}
