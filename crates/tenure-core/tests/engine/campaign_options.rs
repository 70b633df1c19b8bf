//! Campaigns with options of their own: value, grace period, patience.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use tenure_core::{
    CampaignOptions, Candidate, CandidateId, Diagnosis, Elector, Error, Hierarchy, InvalidConfig, Leaders,
    Leadership, LeadershipHandle, Patience, Status, StoreElector,
    memory::MemoryStore,
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, UNTIL_DEADLINE, UNTIL_STOP, assert_nothing_left, sleep, until, within},
};

fn options() -> CampaignOptions {
    CampaignOptions::new()
}

fn value(store: &MemoryStore) -> String {
    let payload = store.entries("e").remove(0).payload;
    Candidate::decode("", "", &payload, None).value_lossy().into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_value_is_that_of_one_candidacy() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", Default::default(), |c| c.with_value("configured"));
    let first = host.elector.campaign_with("e", options().with_value("own")).await.unwrap().unwrap();
    assert_eq!(value(&store), "own");
    first.resign().await.unwrap();
    let second = host.lead().await;
    assert_eq!(value(&store), "configured");
    second.resign().await.unwrap();
    let too_large = host.elector.campaign_with("e", options().with_value(vec![0; 65 * 1024])).await;
    assert!(matches!(too_large, Err(Error::ValueTooLarge { .. })));
    assert_eq!(store.entry_count(), 0);
}

/// Hazards G1, G25: the grace period is kept from the first check on, and holds for this leadership only.
#[tokio::test(start_paused = true)]
async fn a_grace_period_is_that_of_one_leadership() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let long = options().with_grace_period(Duration::from_secs(3));
    let long = host.elector.campaign_with("e", long).await.unwrap().unwrap();
    let short = options().with_grace_period(Duration::from_millis(1));
    let short = host.elector.campaign_with("f", short).await.unwrap().unwrap();
    assert_eq!(long.grace_period(), Duration::from_secs(3));
    assert_eq!(short.grace_period(), Duration::from_secs(1), "the elector's is longer");
    let token = long.cancellation_token();
    host.link.cut();
    let until_deadline = long.remaining();
    assert!(until_deadline <= UNTIL_DEADLINE);
    sleep(until_deadline - Duration::from_millis(3_001)).await;
    assert!(long.is_leader() && !token.is_cancelled());
    sleep(Duration::from_millis(2)).await;
    assert!(!long.is_leader() && token.is_cancelled());
    assert!(short.is_leader());
    sleep(UNTIL_STOP).await;
    assert!(!short.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_grace_period_that_the_ttl_cannot_support_is_refused() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    for (given, text) in [
        (Duration::ZERO, "grace period 0s is not allowed: it must be more than 0"),
        (
            Duration::from_secs(4),
            "grace period 4s is not allowed with ttl 10s: it must be more than 0 and at most 3s 333ms",
        ),
        (Duration::MAX, "is not allowed with ttl 10s"),
    ] {
        let error = host.elector.campaign_with("e", options().with_grace_period(given)).await.unwrap_err();
        assert!(matches!(
            error,
            Error::InvalidConfig(InvalidConfig::GracePeriod { .. } | InvalidConfig::Time { .. })
        ));
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(store.entry_count(), 0);
    }
    // The permit was given back.
    assert!(within(TTL, host.elector.campaign("e")).await.unwrap().is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_campaign_waits_no_longer_than_its_patience() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leader = a.lead().await;
    let patient = |time| options().with_patience(Patience::AtMost(time));
    let begun = tokio::time::Instant::now();
    let waited = b.elector.campaign_with("e", patient(Duration::from_secs(20))).await.unwrap();
    assert!(waited.is_none());
    assert_eq!(begun.elapsed().as_secs(), 20);
    assert_eq!(store.entries("e").len(), 1, "it has withdrawn");
    let impatient = b.elector.campaign_with("e", options().with_patience(Patience::NoWait));
    assert!(within(TTL, impatient).await.unwrap().is_none());
    // An outage of the store counts.
    b.link.cut();
    let begun = tokio::time::Instant::now();
    assert!(b.elector.campaign_with("f", patient(Duration::from_secs(3))).await.unwrap().is_none());
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    b.link.heal();
    leader.resign().await.unwrap();
    for patience in [Duration::from_secs(1), Duration::MAX] {
        let won = within(TTL * 4, b.elector.campaign_with("e", patient(patience))).await.unwrap().unwrap();
        won.resign().await.unwrap();
    }
    for host in [a, b] {
        host.elector.close().await;
    }
    assert_nothing_left(&store).await;
}

/// Hazard G10: a candidate that wins when less than its own grace period is left keeps its entry, and leads once a heartbeat
/// is confirmed: its session goes on, because the elector's grace period is shorter.
#[tokio::test(start_paused = true)]
async fn a_win_within_the_grace_period_waits_for_a_heartbeat() {
    let store = MemoryStore::new();
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let leader = Host::new(&store, "a").lead().await;
    let host = faulty_backend::host(&store, "b", move |call| {
        match call == Call::Heartbeat && is_silent.load(SeqCst) {
            true => Err(BackendError::new(BackendErrorKind::Unavailable, "no answer")),
            false => Ok(()),
        }
    });
    let elector = Arc::clone(&host.elector);
    let long = options().with_grace_period(Duration::from_secs(3));
    let campaign = tokio::spawn(async move { elector.campaign_with("e", long).await.unwrap().unwrap() });
    until("the candidate has entered", || store.entries("e").len() == 2).await;
    silent.store(true, SeqCst);
    // The session was opened a moment ago: 2.5 s are left until its deadline.
    sleep(UNTIL_DEADLINE - Duration::from_millis(2_500)).await;
    leader.resign().await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert!(!campaign.is_finished(), "less than its grace period is left");
    assert_eq!(store.entries("e").len(), 1, "it keeps its entry");
    silent.store(false, SeqCst);
    let leadership = within(TTL, campaign).await.unwrap();
    assert!(leadership.is_leader());
    assert_eq!(store.entries("e").len(), 1);
    leadership.resign().await.unwrap();
    host.elector.close().await;
    assert_nothing_left(&store).await;
}

/// Closing waits for no campaign that nobody polls, however patient it is.
#[tokio::test(start_paused = true)]
async fn closing_waits_for_no_patience() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _leader = a.lead().await;
    let mut campaign = std::pin::pin!(
        b.elector.campaign_with("e", options().with_patience(Patience::AtMost(Duration::from_secs(3_600))))
    );
    assert!(futures::poll!(campaign.as_mut()).is_pending());
    until("the candidate has entered", || store.entries("e").len() == 2).await;
    within(Duration::from_secs(1), b.elector.close()).await;
    assert!(matches!(campaign.await, Err(Error::Closed)));
}

/// Thousands of campaigns that end one after another do not exhaust the stack of the engine's thread.
#[tokio::test(start_paused = true)]
async fn thousands_of_queued_campaigns_end_together() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.link.cut();
    let campaigns: Vec<_> = (0..5_000)
        .map(|_| {
            let elector = Arc::clone(&host.elector);
            tokio::spawn(async move { elector.campaign("e").await })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    host.elector.close().await;
    for campaign in campaigns {
        assert!(matches!(campaign.await.unwrap(), Err(Error::Closed)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hierarchy_campaigns_with_options() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let hierarchy =
        |host: &Host| Hierarchy::new(Arc::clone(&host.elector) as Arc<dyn Elector>, "berlin").unwrap();
    let (first, second) = (hierarchy(&a), hierarchy(&b));
    let own = options().with_value("own").with_grace_period(Duration::from_secs(2));
    let leadership = first.campaign_with("e", own).await.unwrap().unwrap();
    assert_eq!(leadership.grace_period(), Duration::from_secs(2));
    let values = async || {
        let group = second.group_leader("e").await.unwrap().unwrap();
        let top = second.leader("e").await.unwrap().unwrap();
        (group.value_lossy().into_owned(), top.value_lossy().into_owned())
    };
    assert_eq!(values().await, ("own".into(), "own".into()));
    first.set_value("e", "changed".into()).await.unwrap();
    assert_eq!(values().await, ("changed".into(), "changed".into()));
    let begun = tokio::time::Instant::now();
    let patience = options().with_patience(Patience::AtMost(TTL));
    assert!(second.campaign_with("e", patience).await.unwrap().is_none());
    assert_eq!(begun.elapsed().as_secs(), TTL.as_secs());
    assert!(second.try_campaign("e").await.unwrap().is_none());
    assert_eq!((store.entries("e").len(), store.entries("e.berlin").len()), (1, 1));
    assert_eq!(second.elections().await.unwrap().len(), 2);
    leadership.resign().await.unwrap();
    assert!(within(TTL, second.try_campaign("e")).await.unwrap().is_some());
}

/// An elector of an application that implements what has no default.
#[derive(Debug)]
struct Minimal(Arc<StoreElector>);

#[async_trait]
impl Elector for Minimal {
    async fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error> {
        self.0.campaign_with(election, options).await
    }
    async fn leader(&self, _: &str) -> Result<Option<Candidate>, Error> {
        Ok(None)
    }
    async fn candidates(&self, _: &str) -> Result<Vec<Candidate>, Error> {
        Ok(Vec::new())
    }
    fn observe(&self, _: &str) -> Leaders {
        Box::pin(futures::stream::empty())
    }
    async fn request_resign(&self, _: &str) -> Result<Option<Candidate>, Error> {
        Ok(None)
    }
    fn candidate_id(&self) -> CandidateId {
        CandidateId::unique()
    }
    fn leadership(&self, _: &str) -> Option<LeadershipHandle> {
        None
    }
    fn status(&self) -> Status {
        self.0.status()
    }
    async fn diagnose(&self) -> Vec<Diagnosis> {
        Vec::new()
    }
    async fn close(&self) {}
}

/// Defaults that cannot work say so; none calls itself.
#[tokio::test(start_paused = true)]
async fn what_an_elector_does_not_support_is_said() {
    let host = Host::new(&MemoryStore::new(), "a");
    let elector: Arc<dyn Elector> = Arc::new(Minimal(host.elector));
    let leadership = within(TTL, elector.campaign("e")).await.unwrap();
    assert!(within(TTL, elector.try_campaign("e")).await.unwrap().is_none());
    leadership.resign().await.unwrap();
    for unsupported in
        [elector.set_value("e", Vec::new()).await, elector.elections().await.map(drop), elector.check().await]
    {
        let error = unsupported.unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && !error.is_retryable(), "{error}");
        assert!(error.to_string().ends_with(": this elector does not support it"), "{error}");
    }
}
