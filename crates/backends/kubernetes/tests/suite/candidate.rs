//! A candidate whose clock the test moves, and how tests begin.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tenure_core::{
    BootInstant, CandidateId, Clock, ElectionName,
    spi::{
        Backend, BackendError, BackendSession, Entered, EntryEvent, EntryRequest, EntryWatcher,
        QueuePosition, SessionOptions, Won,
    },
};
use tenure_kubernetes::KubernetesBackend;
use tokio::sync::watch;

use crate::api_server::ApiServer;

/// The TTL of candidates.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// For how long a spec has to stand still: the TTL and the drift bound.
pub(crate) const LIFETIME: Duration = Duration::from_secs(11);
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);

/// A clock that moves only when it is told to.
#[derive(Debug)]
pub(crate) struct ManualClock {
    now: watch::Sender<u64>,
    /// How often somebody has begun to wait.
    waits: watch::Sender<usize>,
    wall: AtomicU64,
}

impl ManualClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            now: watch::Sender::new(1_000_000_000_000),
            waits: watch::Sender::new(0),
            wall: AtomicU64::new(1_700_000_000_000_000_000),
        })
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.now.send_modify(|now| *now += time.as_nanos() as u64);
        self.wall.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }

    pub(crate) fn now_nanos(&self) -> u64 {
        *self.now.borrow()
    }

    /// How often somebody has begun to wait so far: a candidate does so again after each event of its watch.
    pub(crate) fn waits(&self) -> usize {
        *self.waits.borrow()
    }

    pub(crate) async fn until_waits_exceed(&self, count: usize) {
        let mut waits = self.waits.subscribe();
        let waiting = waits.wait_for(|waits| *waits > count);
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .expect("somebody waits in time")
            .unwrap();
    }

    /// Sets the time of day back.
    pub(crate) fn set_back(&self, time: Duration) {
        self.wall.fetch_sub(time.as_nanos() as u64, Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> BootInstant {
        BootInstant::from_nanos(*self.now.borrow())
    }

    fn wall(&self) -> Duration {
        Duration::from_nanos(self.wall.load(Ordering::SeqCst))
    }

    async fn sleep_until(&self, deadline: BootInstant) {
        self.waits.send_modify(|count| *count += 1);
        let _ = self.now.subscribe().wait_for(|now| *now >= deadline.as_nanos()).await;
    }
}

/// One campaign of a candidate.
pub(crate) struct Campaign {
    pub(crate) session: Arc<dyn BackendSession>,
    pub(crate) request: EntryRequest,
    pub(crate) clock: Arc<ManualClock>,
}

/// A process with candidates: its client, and its clock.
pub(crate) struct Process {
    pub(crate) backend: KubernetesBackend,
    pub(crate) clock: Arc<ManualClock>,
    ttl: Duration,
}

impl Process {
    pub(crate) fn new(server: &ApiServer) -> Self {
        Self::with(server.backend(), TTL)
    }

    pub(crate) fn with(backend: KubernetesBackend, ttl: Duration) -> Self {
        Self { backend, clock: ManualClock::new(), ttl }
    }

    /// A campaign in the election `e`.
    pub(crate) async fn campaign(&self, id: &str) -> Campaign {
        self.campaign_in("e", id).await
    }

    pub(crate) async fn campaign_in(&self, election: &str, id: &str) -> Campaign {
        let election = ElectionName::new(election).unwrap();
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let options = SessionOptions::new(self.ttl, clock, 0.1).for_election(election.clone());
        let session = self.backend.open_session(&options).await.unwrap();
        let request = EntryRequest {
            election,
            candidate: CandidateId::new(id).unwrap(),
            value: b"10.0.0.1:80".as_slice().into(),
            nonce: fastrand::u128(..),
        };
        Campaign { session: session.into(), request, clock: Arc::clone(&self.clock) }
    }

    /// A campaign that has won.
    pub(crate) async fn leader(&self, id: &str) -> (Campaign, Won) {
        let campaign = self.campaign(id).await;
        let won = campaign.win().await;
        (campaign, won)
    }
}

impl Campaign {
    pub(crate) fn identity(&self) -> String {
        format!("{}_{:032x}", self.request.candidate, self.request.nonce)
    }

    pub(crate) async fn enter(&self) -> Result<Entered, BackendError> {
        self.session.enter(&self.request).await
    }

    pub(crate) async fn win(&self) -> Won {
        match self.enter().await.unwrap() {
            Entered::Leads(won) => won,
            other => panic!("{other:?}"),
        }
    }

    /// Enters, and finds that another candidate leads. Returns its id.
    pub(crate) async fn held_by(&self) -> String {
        match self.enter().await.unwrap() {
            Entered::HeldBy(leader) => leader.id,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for leadership in a task.
    pub(crate) fn wait(&self) -> tokio::task::JoinHandle<Result<Won, BackendError>> {
        let (session, request) = (Arc::clone(&self.session), self.request.clone());
        tokio::spawn(async move { session.wait_turn(&request, None, &QueuePosition::new(|_| {})).await })
    }

    pub(crate) async fn leave(&self) -> Result<(), BackendError> {
        self.session.leave(&self.request, None).await
    }

    /// Watches the entry of `won`.
    pub(crate) fn watch(&self, won: &Won) -> Box<dyn EntryWatcher> {
        let mut watcher = self.session.entry_watcher();
        watcher.add(1, &won.entry);
        watcher
    }
}

pub(crate) async fn next_event(watcher: &mut Box<dyn EntryWatcher>) -> EntryEvent {
    let next = poll_fn(|context| watcher.poll_next(context));
    let event = tokio::time::timeout(Duration::from_secs(30), next).await.expect("an event comes");
    event.unwrap().1
}

/// The election of most tests.
pub(crate) fn election() -> ElectionName {
    ElectionName::new("e").unwrap()
}

/// A server, and the leader of the election `e`.
pub(crate) async fn leader() -> (ApiServer, Campaign, Won) {
    let server = ApiServer::start();
    let (a, won) = Process::new(&server).leader("a").await;
    (server, a, won)
}

/// A leader `a`, and a candidate `b` of another process that has seen it.
pub(crate) struct Rivals {
    pub(crate) server: ApiServer,
    pub(crate) a: Campaign,
    /// The process of `b`.
    pub(crate) process: Process,
    pub(crate) b: Campaign,
}

impl Rivals {
    pub(crate) async fn start() -> Self {
        let (server, a, _) = leader().await;
        let process = Process::new(&server);
        let b = process.campaign("b").await;
        assert_eq!(b.held_by().await, "a");
        Self { server, a, process, b }
    }
}

/// Kills a leader: nobody renews its Lease any more.
pub(crate) fn kill(leader: Campaign) {
    std::mem::forget(leader.session);
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(40), future)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}
