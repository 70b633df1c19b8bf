//! What a shutdown reports is true: an unconfirmed entry is gone from the store within the time that it names, and may exist
//! until shortly before.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::{
    CampaignOptions, Candidate, CandidateId, Diagnosis, Elector, Error, Hierarchy, Leaders, Leadership,
    LeadershipHandle, LeadershipState, LossReason, Shutdown, SimClock, Status, StoreElector,
    memory::{Delivery, Direction, MemoryStore, Op, Proof},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    faulty_backend,
    host::{Host, TTL, assert_nothing_left, endless_work, sleep, until, within},
};

const SECOND: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_millis(10);

/// The longest time for which the engine has to expect a session to live after a request: the TTL and a second for the
/// store's checks, by a store's clock that runs slow by the drift bound of 10 %.
fn max_silence(ttl: Duration) -> Duration {
    (ttl + SECOND).div_f64(0.9)
}

/// Hazard G30: the last heartbeat extended the session although its answer was lost. Counted from the last answer, the entry
/// outlives the time that would be reported.
#[tokio::test(start_paused = true)]
async fn an_unanswered_heartbeat_counts() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let last_answer = Instant::now();
    host.link.set(&[Op::Heartbeat], Direction::Response, Delivery::Drop);
    sleep_until(last_answer + 7 * SECOND).await;
    assert!(leadership.is_leader());
    host.link.cut();
    let shutdown = within(SECOND + SLACK, host.elector.close_within(SECOND)).await;
    let reported_at = Instant::now();
    assert!(!shutdown.confirmed && shutdown.expires_in > TTL, "{shutdown:?}");
    sleep_until(last_answer + max_silence(TTL)).await;
    assert_eq!(store.entry_count(), 1, "counted from the last answer it would be gone by now");
    sleep_until(reported_at + shutdown.expires_in).await;
    assert_eq!(store.entry_count(), 0);
}

/// Hazard G30: with healthy heartbeats and a store that does not close the session, the time is counted from the last
/// heartbeat, not from the report: no heartbeat is sent while the elector closes.
#[tokio::test(start_paused = true)]
async fn the_time_is_counted_from_the_last_heartbeat() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let opened = Instant::now();
    host.link.set(&[Op::Close, Op::Leave], Direction::Request, Delivery::Drop);
    sleep_until(opened + 5 * SECOND).await;
    assert!(leadership.is_leader());
    let shutdown = within(4 * SECOND + SLACK, host.elector.close_within(4 * SECOND)).await;
    // The heartbeat was sent and answered after a third of the TTL.
    let expires_at = opened + TTL / 3 + max_silence(TTL);
    let reported = Instant::now() + shutdown.expires_in;
    assert!(!shutdown.confirmed);
    assert!(reported >= expires_at && reported < expires_at + SLACK * 2, "{:?}", reported - opened);
    sleep_until(opened + TTL + 3 * SECOND).await;
    assert_eq!(store.entry_count(), 1, "the entry lives for a TTL after the heartbeat");
    sleep_until(reported).await;
    assert_eq!(store.entry_count(), 0);
    drop(leadership);
}

/// Hazards G22, G30: the time allows for a store whose clock runs slow by nearly the drift bound.
#[tokio::test(start_paused = true)]
async fn the_time_allows_for_drift() {
    let (ttl, rate) = (60 * SECOND, 1.09);
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::with_rate(rate), |config| config.with_ttl(ttl));
    let leadership = host.lead().await;
    host.link.cut();
    let shutdown = host.elector.close_within(Duration::ZERO).await;
    assert!(!shutdown.confirmed);
    // By the host's clock: this much time of the simulation.
    sleep((ttl + SECOND).div_f64(rate)).await;
    assert_eq!(store.entry_count(), 1, "without the drift bound it would be gone by now");
    sleep(shutdown.expires_in.div_f64(rate).saturating_sub((ttl + SECOND).div_f64(rate))).await;
    assert_eq!(store.entry_count(), 0);
    drop(leadership);
}

/// Hazard G30: a session that other elections still use is extended after the report. The time holds if the process ends then,
/// and not before.
#[tokio::test(start_paused = true)]
async fn a_session_in_use_expires_only_after_the_process() {
    for process_ends in [true, false] {
        let store = MemoryStore::new();
        let host = Host::new(&store, "a");
        let (leadership, other) = (host.lead().await, host.elector.campaign("other").await.unwrap());
        sleep(2 * SECOND).await;
        host.link.set(&[Op::Leave], Direction::Request, Delivery::Drop);
        let shutdown = within(SECOND + SLACK, leadership.resign_within(SECOND)).await;
        assert_eq!(shutdown, Shutdown::unconfirmed(max_silence(TTL)));
        if process_ends {
            host.link.cut();
            sleep(shutdown.expires_in).await;
            assert_eq!(store.entry_count(), 0);
            continue;
        }
        sleep(shutdown.expires_in).await;
        assert!(other.is_leader());
        assert_eq!(store.entries("e").len(), 1, "heartbeats for the other election keep it");
        // The withdrawal goes on in the background.
        host.link.heal();
        until("the entry is gone", || store.entries("e").is_empty()).await;
        assert!(other.is_leader());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_confirms_is_gone() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let shutdown = within(SLACK, leadership.resign_within(SECOND)).await;
    assert_eq!(shutdown, Shutdown::CONFIRMED);
    assert_eq!((store.entry_count(), store.sessions().len()), (0, 1));

    let leadership = host.lead().await;
    let handle = leadership.handle();
    assert!(store.delete_entry("e", leadership.fencing_token().get()));
    handle.lost().await;
    assert_eq!(leadership.resign_within(SECOND).await, Shutdown::CONFIRMED, "it had been lost before");

    let (leadership, handle) = (host.lead().await, handle);
    drop(leadership);
    assert_eq!(within(SLACK, host.elector.close_within(SECOND)).await, Shutdown::CONFIRMED);
    assert_eq!(within(SLACK, host.elector.close_within(SECOND)).await, Shutdown::CONFIRMED, "again");
    assert_nothing_left(&store).await;
    assert!(matches!(
        handle.state(),
        LeadershipState::Released { reason: LossReason::EntryGone, confirmed: true, .. }
    ));
}

/// With no time to wait, a shutdown begins and is reported at once.
#[tokio::test(start_paused = true)]
async fn a_shutdown_without_a_wait_goes_on() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let handle = leadership.handle();
    host.link.set(&[Op::Leave, Op::Close], Direction::Request, Delivery::Delay(SECOND));
    let shutdown = within(SLACK, leadership.resign_within(Duration::ZERO)).await;
    assert_eq!(shutdown, Shutdown::unconfirmed(max_silence(TTL)));
    assert!(!handle.is_leader());
    until("the entry is gone", || store.entry_count() == 0).await;
    assert!(!within(SLACK, host.elector.close_within(Duration::ZERO)).await.confirmed);
    assert_nothing_left(&store).await;
    assert_eq!(within(SLACK, host.elector.close_within(SECOND)).await, Shutdown::CONFIRMED);
}

/// Case 12: work that awaits its own resignation does not wait for itself.
#[tokio::test(start_paused = true)]
async fn work_that_resigns_is_told_that_nothing_is_confirmed() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let handle = leadership.handle();
    let shutdown = within(SLACK, handle.run(leadership.resign_within(SECOND))).await.unwrap();
    assert_eq!(shutdown, Shutdown::unconfirmed(max_silence(TTL)));
    until("the entry is gone", || store.entry_count() == 0).await;
}

/// A shutdown that waits until the session has expired reports that the store has not confirmed it.
#[tokio::test(start_paused = true)]
async fn what_has_expired_is_not_confirmed() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.cut();
    let shutdown = within(TTL * 4, host.elector.close_within(TTL * 4)).await;
    assert_eq!(shutdown, Shutdown::unconfirmed(Duration::ZERO));
    assert_eq!(store.entry_count(), 0);
    let handle = leadership.handle();
    drop(leadership);
    assert!(matches!(
        handle.state(),
        LeadershipState::Released { reason: LossReason::Closed, confirmed: false, .. }
    ));
}

/// Hazard G30: a store may keep a session for much longer than the TTL. A resignation that the store has not confirmed does not
/// succeed before.
#[tokio::test(start_paused = true)]
async fn what_the_store_may_keep_has_not_expired() {
    let store = MemoryStore::new();
    let kept = TTL * 2;
    let host = faulty_backend::host_kept_for(&store, "a", kept);
    let leadership = host.lead().await;
    let heartbeat = Instant::now();
    host.link.cut();
    drop(leadership);
    let shutdown = within(TTL * 4, host.elector.close_within(TTL * 4)).await;
    assert_eq!(shutdown, Shutdown::unconfirmed(Duration::ZERO));
    assert!(heartbeat.elapsed() + SLACK >= kept.div_f64(0.9), "{:?}", heartbeat.elapsed());
}

/// Work that does not stop keeps its entry, and the report says for how long.
#[tokio::test(start_paused = true)]
async fn work_that_does_not_stop_is_not_confirmed() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let (_, work) = endless_work(&leadership);
    sleep(SECOND).await;
    let opened = Instant::now();
    let shutdown = within(SECOND + SLACK, host.elector.close_within(SECOND)).await;
    assert!(!shutdown.confirmed && shutdown.expires_in < max_silence(TTL) - SECOND, "{shutdown:?}");
    assert_eq!(store.entry_count(), 1);
    assert!(work.await.unwrap().is_err());
    assert!(opened.elapsed() < shutdown.expires_in);
    assert_nothing_left(&store).await;
    assert_eq!(host.elector.close_within(SECOND).await, Shutdown::CONFIRMED);
}

/// The kernel ends a session without heartbeats together with the process.
#[tokio::test(start_paused = true)]
async fn a_session_of_the_process_is_gone_when_the_process_is() {
    let store = MemoryStore::with_proof(Proof::Process);
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    assert_eq!((leadership.remaining(), leadership.valid_for()), (Duration::MAX, Duration::MAX));
    host.link.cut();
    let shutdown = within(SECOND + SLACK, leadership.resign_within(SECOND)).await;
    assert_eq!(shutdown, Shutdown::unconfirmed(Duration::ZERO));
    assert!(!host.elector.close_within(SECOND).await.confirmed);
}

/// A hierarchy reports both tiers, and closes them within one limit.
#[tokio::test(start_paused = true)]
async fn a_hierarchy_reports_both_tiers() {
    for cut_off in ["top", "groups"] {
        let (groups, tops) = (MemoryStore::new(), MemoryStore::new());
        let clock = SimClock::new();
        let group = Host::with(&groups, "a", clock.clone(), |config| config);
        let top = Host::with(&tops, "a", clock, |config| config.with_ttl(TTL / 2));
        let hierarchy = Hierarchy::new(Arc::clone(&top.elector) as Arc<dyn Elector>, "g").unwrap();
        let hierarchy = hierarchy.with_group_elector(Arc::clone(&group.elector) as Arc<dyn Elector>);
        let leadership = within(TTL, hierarchy.campaign("e")).await.unwrap();
        let other = within(TTL, hierarchy.campaign("other")).await.unwrap();
        let (cut, left) = if cut_off == "top" { (&top, TTL) } else { (&group, TTL) };
        cut.link.cut();
        let shutdown = within(SECOND + SLACK, leadership.resign_within(SECOND)).await;
        // The entry in the group is removed only after the one at the top.
        assert_eq!(shutdown, Shutdown::unconfirmed(max_silence(left)), "{cut_off}");
        let shutdown = within(2 * SECOND + SLACK * 2, hierarchy.close_within(2 * SECOND)).await;
        assert!(!shutdown.confirmed && shutdown.expires_in < max_silence(TTL), "{cut_off}: {shutdown:?}");
        drop(other);
        sleep(shutdown.expires_in).await;
        assert_eq!((tops.entry_count(), groups.entry_count()), (0, 0), "{cut_off}");
    }
}

/// An elector of another crate, which implements what it has to.
#[derive(Debug)]
struct OtherElector(Arc<StoreElector>);

#[async_trait]
impl Elector for OtherElector {
    async fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error> {
        self.0.campaign_with(election, options).await
    }
    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.0.leader(election).await
    }
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        self.0.candidates(election).await
    }
    fn observe(&self, election: &str) -> Leaders {
        self.0.observe(election)
    }
    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.0.request_resign(election).await
    }
    fn candidate_id(&self) -> CandidateId {
        self.0.candidate_id()
    }
    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        self.0.leadership(election)
    }
    fn status(&self) -> Status {
        self.0.status()
    }
    async fn diagnose(&self) -> Vec<Diagnosis> {
        self.0.diagnose().await
    }
    async fn close(&self) {
        self.0.close().await;
    }
}

/// An elector without a `close_within` of its own is closed within the limit, and nothing is claimed of what is left.
#[tokio::test(start_paused = true)]
async fn an_elector_that_cannot_tell_claims_nothing() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let elector: Arc<dyn Elector> = Arc::new(OtherElector(Arc::clone(&host.elector)));
    let leadership = within(TTL, elector.campaign("e")).await.unwrap();
    host.link.cut();
    assert_eq!(within(SECOND + SLACK, elector.close_within(SECOND)).await, Shutdown::UNKNOWN);
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    host.link.heal();
    drop(leadership);
    assert_nothing_left(&store).await;
    assert_eq!(within(SLACK, elector.close_within(SECOND)).await, Shutdown::UNKNOWN);
}
