//! The run itself: customers sign up, leaders are killed and stopped, until all is charged.

use std::{
    mem,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::future::{join_all, try_join_all};
use rustix::process::Signal;

use super::{
    Layer,
    books::Books,
    children::Child,
    directory::Directory,
    scenario::{FaultKind, Planned, Scenario},
    watch::Watch,
};
use crate::{clock::now_ms, db::Database, serve::Leader};

/// How many customers sign up in one transaction: the leader waits for it.
const AT_ONCE: usize = 500;
/// How often the stage looks at what has happened.
const LOOK: Duration = Duration::from_millis(20);
/// How often progress is printed.
const TELL: Duration = Duration::from_secs(1);
/// How long anything may take, on top of what the TTL and the work explain.
const PATIENCE: Duration = Duration::from_secs(30);
/// How slowly charges may come before the run is held to hang, per second.
const SLOWEST: f64 = 20.0;
/// How long a server has to end after SIGTERM.
const STOP: Duration = Duration::from_secs(10);
/// How much longer than the TTL a leader is stopped.
const BEYOND: Duration = Duration::from_secs(1);

/// What a run is made of.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) servers: u32,
    pub(crate) seed: u64,
    pub(crate) store: String,
    pub(crate) ttl: Duration,
    pub(crate) election: String,
    pub(crate) database_url: String,
    pub(crate) without: Vec<Layer>,
    pub(crate) directory: Directory,
    pub(crate) database: Database,
}

/// A fault that has struck, with its times in milliseconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    pub(crate) kind: FaultKind,
    pub(crate) at: i64,
    pub(crate) victim: String,
    /// The token of the leader that was struck.
    pub(crate) token: i64,
    /// When a stopped leader was continued, or a killed server was up again.
    pub(crate) back_at: Option<i64>,
    /// When the next leader was seen, and who that was; a stopped leader on the local store has none.
    pub(crate) next: Option<(i64, String)>,
}

/// What a run leaves behind, beside the books.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) begun: i64,
    pub(crate) ended: i64,
    pub(crate) struck: Vec<Struck>,
    pub(crate) trouble: Vec<String>,
}

/// One of the servers: a place that is taken by one process after the other.
#[derive(Debug)]
struct Place {
    number: u32,
    life: u32,
    child: Option<Child>,
}

#[derive(Debug)]
pub(crate) struct Stage {
    setting: Setting,
    provider: Child,
    places: Vec<Place>,
    books: Books,
    watch: Watch,
    signed_up: usize,
    begun: i64,
    told: Instant,
    struck: Vec<Struck>,
}

/// How far the run is.
#[derive(Clone, Copy, Debug)]
struct Progress {
    charged: usize,
    recorded: usize,
}

impl Stage {
    /// Starts the provider and the servers.
    pub(crate) async fn set(setting: Setting) -> anyhow::Result<Self> {
        let watch = Watch::start(&setting.store, &setting.election).await?;
        let ledger = setting.directory.ledger();
        let ledger = ledger.to_str().context("the data directory's name is not text")?;
        let seed = setting.seed.to_string();
        let mut arguments = vec!["provider", "--ledger", ledger, "--seed", &seed];
        for layer in &setting.without {
            arguments.push(match layer {
                Layer::Tokens => "--no-tokens",
                Layer::Idempotency => "--no-idempotency",
            });
        }
        let provider = Child::start("provider", &arguments, &setting.directory.logs()).await?;
        let books = Books::open(&setting.directory.ledger()).await?;
        let starts = (1..=setting.servers).map(|number| start(&setting, &provider, number, 1));
        let places = try_join_all(starts)
            .await?
            .into_iter()
            .zip(1..)
            .map(|(child, number)| Place { number, life: 1, child: Some(child) })
            .collect();
        Ok(Self {
            setting,
            provider,
            places,
            books,
            watch,
            signed_up: 0,
            begun: now_ms(),
            told: Instant::now(),
            struck: Vec::new(),
        })
    }

    /// Plays the scenario, until everything has been charged and recorded.
    ///
    /// # Errors
    /// What did not happen in time, and what is known about why.
    pub(crate) async fn play(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let total = scenario.due.len();
        for some in scenario.not_due.chunks(AT_ONCE) {
            self.setting.database.sign_up(some).await?;
        }
        for (n, fault) in scenario.faults.iter().enumerate() {
            self.sign_up(scenario, fault.signed_up).await?;
            let (signed_up, after) = (self.signed_up, fault.after);
            self.until("charges go on", self.bound(signed_up), |_, now| (now.charged >= after).then_some(()))
                .await?;
            tokio::time::sleep(fault.delay).await;
            // Before the fault, so that the next leader finds work.
            let next = scenario.faults.get(n + 1).map_or(total, |next| next.signed_up);
            self.sign_up(scenario, next).await?;
            let leader = self.until("somebody leads", self.bound(0), |stage, _| stage.leading()).await?;
            match fault.kind {
                FaultKind::Kill => self.kill(&leader, fault).await?,
                FaultKind::Pause => self.pause(&leader).await?,
            }
        }
        self.sign_up(scenario, total).await?;
        self.until("everything is charged and recorded", self.bound(total), |_, now| {
            (now.recorded >= total).then_some(())
        })
        .await
    }

    /// Stops everything, and says what was in the way.
    pub(crate) async fn strike(mut self, trouble: Option<anyhow::Error>) -> Ran {
        let ended = now_ms();
        let mut trouble: Vec<_> = trouble.map(|error| format!("{error:#}")).into_iter().collect();
        let servers: Vec<_> = self.places.iter_mut().filter_map(|place| place.child.take()).collect();
        for server in &servers {
            // One that was stopped when the trouble began.
            let _ = server.signal(Signal::CONT);
        }
        let stops = join_all(servers.into_iter().map(|server| server.stop(STOP))).await;
        trouble.extend(stops.into_iter().filter_map(Result::err));
        trouble.extend(self.provider.stop(STOP).await.err());
        self.watch.stop().await;
        Ran { begun: self.begun, ended, struck: self.struck, trouble }
    }

    async fn sign_up(&mut self, scenario: &Scenario, up_to: usize) -> anyhow::Result<()> {
        if up_to > self.signed_up {
            let new = &scenario.due[self.signed_up..up_to];
            for some in new.chunks(AT_ONCE) {
                self.setting.database.sign_up(some).await.context("customers cannot sign up")?;
            }
            self.signed_up = up_to;
        }
        Ok(())
    }

    async fn kill(&mut self, leader: &Leader, fault: &Planned) -> anyhow::Result<()> {
        let place = self.place_of(leader).context("the leader has gone")?;
        let mut victim = mem::take(&mut self.places[place].child).context("the leader has gone")?;
        let at = now_ms();
        victim.signal(Signal::KILL)?;
        victim.end().await?;
        self.note(FaultKind::Kill, at, leader);

        tokio::time::sleep(fault.down).await;
        let (number, life) = (self.places[place].number, self.places[place].life + 1);
        let reborn = start(&self.setting, &self.provider, number, life).await?;
        self.places[place] = Place { number, life, child: Some(reborn) };
        let back_at = Some(now_ms());

        let token = leader.token.unwrap_or_default();
        let next = self
            .until("another leader takes over", self.bound(0), |stage, _| stage.watch.first_after(token))
            .await?;
        self.noted(back_at, Some(next));
        Ok(())
    }

    async fn pause(&mut self, leader: &Leader) -> anyhow::Result<()> {
        let place = self.place_of(leader).context("the leader has gone")?;
        let victim = self.places[place].child.as_ref().context("the leader has gone")?;
        let at = now_ms();
        victim.signal(Signal::STOP)?;
        self.note(FaultKind::Pause, at, leader);

        // Until another leads, so that two would act at once if anything let them. On the local
        // store nobody can, nor where there is nobody else: a pause beyond the TTL is all there is to see.
        let token = leader.token.unwrap_or_default();
        let (shortest, longest) = if self.setting.servers == 1 || self.setting.store.starts_with("local:") {
            (self.setting.ttl + BEYOND, self.setting.ttl + BEYOND)
        } else {
            (self.setting.ttl + BEYOND, 3 * self.setting.ttl + 5 * BEYOND)
        };
        let stopped = Instant::now();
        self.until("the pause ends", longest + PATIENCE, |stage, _| {
            let enough = stage.watch.first_after(token).is_some() || stopped.elapsed() >= longest;
            (stopped.elapsed() >= shortest && enough).then_some(())
        })
        .await?;
        let victim = self.places[place].child.as_ref().context("the stopped leader has gone")?;
        victim.signal(Signal::CONT)?;
        let back_at = Some(now_ms());
        self.until("somebody leads", self.bound(0), |stage, _| stage.leading()).await?;
        self.noted(back_at, self.watch.first_after(token));
        Ok(())
    }

    fn note(&mut self, kind: FaultKind, at: i64, leader: &Leader) {
        let token = leader.token.and_then(|token| i64::try_from(token).ok()).unwrap_or_default();
        eprintln!("{}  {} {}", self.clock(), kind.as_str(), leader.id);
        self.struck.push(Struck { kind, at, victim: leader.id.clone(), token, back_at: None, next: None });
    }

    fn noted(&mut self, back_at: Option<i64>, next: Option<(i64, Leader)>) {
        if let Some(struck) = self.struck.last_mut() {
            struck.back_at = back_at;
            struck.next = next.map(|(at, leader)| (at, leader.id));
        }
    }

    /// The leader, if it is one of ours that lives.
    fn leading(&self) -> Option<Leader> {
        self.watch.leader().filter(|leader| self.place_of(leader).is_some())
    }

    fn place_of(&self, leader: &Leader) -> Option<usize> {
        self.places.iter().position(|place| place.child.as_ref().is_some_and(|child| child.name == leader.id))
    }

    /// How long it may take to charge `renewals`, somebody to lead first.
    fn bound(&self, renewals: usize) -> Duration {
        PATIENCE + 4 * self.setting.ttl + Duration::from_secs_f64(renewals as f64 / SLOWEST)
    }

    /// Waits until `done` answers, and sees to it meanwhile that everybody lives.
    async fn until<T>(
        &mut self,
        what: &str,
        bound: Duration,
        done: impl Fn(&Self, Progress) -> Option<T>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            let progress = self.progress().await?;
            for child in
                self.places.iter_mut().filter_map(|place| place.child.as_mut()).chain([&mut self.provider])
            {
                if let Some(status) = child.ended()? {
                    bail!("{} ended by itself: {status}\n{}", child.name, child.last_words());
                }
            }
            if let Some(answer) = done(self, progress) {
                return Ok(answer);
            }
            if self.told.elapsed() >= TELL {
                self.told = Instant::now();
                self.tell(progress);
            }
            if begun.elapsed() > bound {
                bail!("{}", self.explain(what, bound, progress));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn progress(&self) -> anyhow::Result<Progress> {
        let charged = self.books.count_charged().await.context("the provider's ledger cannot be read")?;
        let recorded = self.setting.database.count_recorded().await.context("the database cannot be read")?;
        Ok(Progress { charged: usize::try_from(charged)?, recorded: usize::try_from(recorded)? })
    }

    fn tell(&self, progress: Progress) {
        let leader = self.watch.leader().map_or_else(|| "nobody".to_owned(), |leader| leader.id);
        eprintln!("{}  {leader} leads, {} charged", self.clock(), progress.charged);
    }

    fn clock(&self) -> String {
        format!("{:6.1} s", (now_ms() - self.begun) as f64 / 1000.0)
    }

    fn explain(&self, what: &str, bound: Duration, progress: Progress) -> String {
        let leader = self.watch.leader().map_or_else(|| "nobody".to_owned(), |leader| leader.id);
        let store = self.watch.trouble().map_or_else(String::new, |error| format!("; the store: {error}"));
        let words: Vec<_> =
            self.places.iter().filter_map(|place| Some(place.child.as_ref()?.last_words())).collect();
        format!(
            "waited {bound:?} in vain until {what}: {leader} leads, {} signed up, {} charged, {} recorded{store}\n{}",
            self.signed_up,
            progress.charged,
            progress.recorded,
            words.join("\n")
        )
    }
}

/// Starts server `number` for the `life`th time: under a new name, as a replaced machine would have.
async fn start(setting: &Setting, provider: &Child, number: u32, life: u32) -> anyhow::Result<Child> {
    let name = format!("server-{number}.{life}");
    let arguments = [
        ["serve", "--store", &setting.store, "--database", &setting.database_url].as_slice(),
        &["--provider", &provider.address, "--id", &name, "--election", &setting.election],
    ]
    .concat();
    Child::start(&name, &arguments, &setting.directory.logs()).await
}
