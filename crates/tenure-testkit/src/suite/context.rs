//! Where a case plays: the candidates it calls up, and the clearing away afterwards.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenure_core::{CandidateId, Config, Elector, Leadership, StoreElector};
use tokio::time::MissedTickBehavior;

use crate::harness::{Client, FaultInjector, Harness};

/// How long a case waits for anything before it fails: far more than any store needs.
const PATIENCE: Duration = Duration::from_secs(40);

/// The candidates of one case.
pub struct CaseContext<'a> {
    /// The store under test.
    pub harness: &'a dyn Harness,
    electors: Mutex<Vec<Arc<StoreElector>>>,
    lines: Mutex<Vec<Arc<dyn FaultInjector>>>,
}

impl std::fmt::Debug for CaseContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaseContext").finish_non_exhaustive()
    }
}

/// One candidate: an elector with a client of its own.
#[derive(Clone, Debug)]
pub(super) struct Player {
    pub(super) elector: Arc<StoreElector>,
    line: Option<Arc<dyn FaultInjector>>,
}

impl Player {
    pub(super) fn line(&self) -> &dyn FaultInjector {
        match &self.line {
            Some(line) => &**line,
            None => panic!("the harness declares lines, and gives none"),
        }
    }

    /// Leads, or fails the case.
    pub(super) async fn lead(&self) -> Leadership {
        within("leading", self.elector.campaign("e")).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a campaign, and returns once its entry is seen.
    pub(super) async fn wait_in_line(&self) -> tokio::task::JoinHandle<Leadership> {
        let before = self.candidates().await.len();
        let elector = Arc::clone(&self.elector);
        let campaign =
            tokio::spawn(
                async move { elector.campaign("e").await.unwrap_or_else(|error| panic!("{error}")) },
            );
        until("the candidate has entered", async || self.candidates().await.len() > before).await;
        campaign
    }

    /// Asks the leader of the election to resign; its id.
    pub(super) async fn request_resign(&self) -> Option<String> {
        let asked = within("asking", self.elector.request_resign("e")).await;
        asked.unwrap_or_else(|error| panic!("{error}")).map(|c| c.id)
    }

    /// The candidates of the election, by id.
    pub(super) async fn candidates(&self) -> Vec<String> {
        let candidates = within("asking", self.elector.candidates("e")).await;
        candidates.unwrap_or_else(|error| panic!("{error}")).into_iter().map(|c| c.id).collect()
    }
}

impl<'a> CaseContext<'a> {
    pub(super) fn new(harness: &'a dyn Harness) -> Self {
        Self { harness, electors: Mutex::default(), lines: Mutex::default() }
    }

    /// Calls up a candidate.
    pub(super) async fn player(&self, id: &str) -> Player {
        self.player_with(id, |config| config).await
    }

    /// Calls up a candidate with settings of its own.
    pub(super) async fn player_with(&self, id: &str, settings: impl FnOnce(Config) -> Config) -> Player {
        let Client { backend, faults } = self.harness.client().await;
        let id = CandidateId::new(id).unwrap_or_else(|error| panic!("{error}"));
        let config = settings(Config::new().with_ttl(self.harness.ttl()).with_id(id));
        let elector = StoreElector::new(backend, config).unwrap_or_else(|error| panic!("{error}"));
        let elector = Arc::new(elector);
        lock(&self.electors).push(Arc::clone(&elector));
        lock(&self.lines).extend(faults.clone());
        Player { elector, line: faults }
    }

    /// Closes everything, and waits until nothing is left in the store and in the process.
    pub(super) async fn end(self, tasks: usize) {
        for line in lock(&self.lines).iter() {
            line.heal();
        }
        let electors = std::mem::take(&mut *lock(&self.electors));
        for elector in &electors {
            within("closing", elector.close()).await;
        }
        drop(electors);
        lock(&self.lines).clear();
        let harness = self.harness;
        let left = Mutex::new(Vec::new());
        let nothing = async || {
            let now = harness.remaining_state().await;
            *lock(&left) = now;
            lock(&left).is_empty()
        };
        until_or("nothing is left in the store", nothing, || format!("{:?}", lock(&left))).await;
        until_or(
            "no task is left",
            async || self::tasks() <= tasks,
            || format!("{} tasks, {tasks} before", self::tasks()),
        )
        .await;
        until_or("no thread is left", async || threads().is_empty(), || format!("{:?}", threads())).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tasks alive in this runtime.
pub(super) fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// The threads of this process that are ours by name; empty where the system cannot tell.
fn threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("tenure"))
        .collect()
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within 40 s, which is far more than any store needs.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    until_or(what, condition, String::new).await;
}

async fn until_or(what: &str, condition: impl AsyncFn() -> bool, found: impl Fn() -> String) {
    let looking = async {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !condition().await {
            look.tick().await;
        }
    };
    if tokio::time::timeout(PATIENCE, looking).await.is_err() {
        panic!("never: {what} {}", found());
    }
}

/// The outcome of `future`.
///
/// # Panics
/// When there is none within 40 s, which is far more than any store needs.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: no outcome within {PATIENCE:?}"),
    }
}
