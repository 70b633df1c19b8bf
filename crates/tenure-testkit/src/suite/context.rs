//! The context of a case: its candidates, and the cleanup after it.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenure_core::{CandidateId, Config, Elector, Leadership, StoreElector};
use tokio::time::MissedTickBehavior;

use crate::harness::{Client, FaultInjector, Harness};

/// How long a case waits before it fails: far longer than any store needs.
const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

/// The store and the candidates of one case.
pub struct CaseContext<'a> {
    /// The store under test.
    pub harness: &'a dyn Harness,
    electors: Mutex<Vec<Arc<StoreElector>>>,
    fault_injectors: Mutex<Vec<Arc<dyn FaultInjector>>>,
}

impl std::fmt::Debug for CaseContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaseContext").finish_non_exhaustive()
    }
}

/// A candidate: an elector with a client of its own.
#[derive(Clone, Debug)]
pub(super) struct TestCandidate {
    pub(super) elector: Arc<StoreElector>,
    /// Whether the store shows candidates that wait.
    shows_waiting: bool,
    faults: Option<Arc<dyn FaultInjector>>,
}

impl TestCandidate {
    /// The fault injector of the candidate's client.
    pub(super) fn faults(&self) -> &dyn FaultInjector {
        match &self.faults {
            Some(faults) => &**faults,
            None => panic!("the harness declares `connection_faults`, but its client has no fault injector"),
        }
    }

    /// Campaigns until it leads.
    ///
    /// # Panics
    /// If it does not lead in time.
    pub(super) async fn lead(&self) -> Leadership {
        within("leading", self.elector.campaign("e")).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a campaign in a task, and returns when its entry is visible, or its session is open if the store does not show
    /// candidates that wait.
    pub(super) async fn start_campaign(&self) -> tokio::task::JoinHandle<Leadership> {
        let entered = self.entered().await;
        let elector = Arc::clone(&self.elector);
        let campaign =
            tokio::spawn(
                async move { elector.campaign("e").await.unwrap_or_else(|error| panic!("{error}")) },
            );
        until("the candidate has entered", entered).await;
        campaign
    }

    /// A condition that holds once a campaign that begins after this call has entered.
    pub(super) async fn entered(&self) -> impl AsyncFn() -> bool {
        let (candidates, session) = (self.candidates().await.len(), self.elector.status().session);
        async move || {
            if self.shows_waiting {
                return self.candidates().await.len() > candidates;
            }
            let now = self.elector.status().session;
            now.is_some() && now != session
        }
    }

    /// Those of `candidates`, in the order of the queue, that the store shows.
    pub(super) fn shown<'a, T>(&self, candidates: &'a [T]) -> &'a [T] {
        if self.shows_waiting { candidates } else { &candidates[..1] }
    }

    /// Requests that the leader of the election resign. Returns its id.
    pub(super) async fn request_resign(&self) -> Option<String> {
        let leader = within("requesting a resignation", self.elector.request_resign("e")).await;
        leader.unwrap_or_else(|error| panic!("{error}")).map(|c| c.id)
    }

    /// The ids of the election's candidates.
    pub(super) async fn candidates(&self) -> Vec<String> {
        let candidates = within("reading the candidates", self.elector.candidates("e")).await;
        candidates.unwrap_or_else(|error| panic!("{error}")).into_iter().map(|c| c.id).collect()
    }
}

impl<'a> CaseContext<'a> {
    pub(super) fn new(harness: &'a dyn Harness) -> Self {
        Self { harness, electors: Mutex::default(), fault_injectors: Mutex::default() }
    }

    /// Adds a candidate.
    pub(super) async fn candidate(&self, id: &str) -> TestCandidate {
        self.candidate_with(id, |config| config).await
    }

    /// Adds a candidate whose configuration `adjust` changes.
    pub(super) async fn candidate_with(
        &self,
        id: &str,
        adjust: impl FnOnce(Config) -> Config,
    ) -> TestCandidate {
        let Client { backend, faults } = self.harness.client().await;
        let shows_waiting = backend.capabilities().shows_waiting;
        let id = CandidateId::new(id).unwrap_or_else(|error| panic!("{error}"));
        let config = adjust(Config::new().with_ttl(self.harness.ttl()).with_id(id));
        let elector = StoreElector::new(backend, config).unwrap_or_else(|error| panic!("{error}"));
        let elector = Arc::new(elector);
        lock(&self.electors).push(Arc::clone(&elector));
        lock(&self.fault_injectors).extend(faults.clone());
        TestCandidate { elector, shows_waiting, faults }
    }

    /// Heals all connections, closes all electors, and waits until nothing remains in the store and in the process.
    /// `tasks_before` is the number of tasks before the case.
    pub(super) async fn finish(self, tasks_before: usize) {
        for faults in lock(&self.fault_injectors).iter() {
            faults.heal();
        }
        let electors = std::mem::take(&mut *lock(&self.electors));
        for elector in &electors {
            within("closing", elector.close()).await;
        }
        drop(electors);
        lock(&self.fault_injectors).clear();
        let harness = self.harness;
        let remaining = Mutex::new(Vec::new());
        let nothing_remains = async || {
            let now = harness.remaining_state().await;
            *lock(&remaining) = now;
            lock(&remaining).is_empty()
        };
        until_or("nothing remains in the store", nothing_remains, || format!("{:?}", lock(&remaining))).await;
        until_or(
            "no task remains",
            async || live_tasks() <= tasks_before,
            || format!("{} tasks, {tasks_before} before", live_tasks()),
        )
        .await;
        until_or(
            "no thread remains",
            async || tenure_threads().is_empty(),
            || format!("{:?}", tenure_threads()),
        )
        .await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of live tasks in this runtime.
pub(super) fn live_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// The names of this process's threads that belong to tenure; empty if the system does not list threads.
fn tenure_threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("tenure"))
        .collect()
}

/// Waits until `condition` holds. It is checked every 10 ms.
///
/// # Panics
/// If it does not hold within 40 s, which is far longer than any store needs.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    until_or(what, condition, String::new).await;
}

async fn until_or(what: &str, condition: impl AsyncFn() -> bool, describe_state: impl Fn() -> String) {
    let polling = async {
        let mut interval = tokio::time::interval(Duration::from_millis(10));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !condition().await {
            interval.tick().await;
        }
    };
    if tokio::time::timeout(WAIT_TIMEOUT, polling).await.is_err() {
        panic!("not within {WAIT_TIMEOUT:?}: {what} {}", describe_state());
    }
}

/// Waits for `future`, and returns its output.
///
/// # Panics
/// If the future takes longer than 40 s, which is far longer than any store needs.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT_TIMEOUT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: no result within {WAIT_TIMEOUT:?}"),
    }
}
