//! A cluster of three etcd members, one of which is killed, frozen or isolated.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenure::{BootClock, Clock as _, Config, Elector, LeadershipHandle};
use tenure_containers::{EtcdCluster, FaultKind, LeaseExpiryMonitor, Version};
use tenure_testkit::suite::{until, within};
use tokio::time::Instant;

async fn cluster() -> EtcdCluster {
    EtcdCluster::start(Version::Etcd35).await.unwrap_or_else(|error| panic!("{error}"))
}

/// An elector that knows all members and prefers the one with number `first`.
async fn connect(cluster: &EtcdCluster, first: usize, ttl: u64) -> Arc<dyn Elector> {
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(first);
    connect_to(&endpoints, ttl).await
}

async fn connect_to(endpoints: &[String], ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("etcd://{}/acme", endpoints.join(",")), config).await.unwrap()
}

/// Hazards E6, E7: with one member of three killed, then frozen, no campaign fails and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_with_one_member_down_still_elects() {
    let cluster = cluster().await;
    for down in 0..3 {
        for freeze in [false, true] {
            let member = cluster.member(down);
            let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
            for first in 0..3 {
                let elector = connect(&cluster, first, 5).await;
                for n in 0..5 {
                    let leadership =
                        within("leading with one member down", elector.campaign(&format!("e{n}")))
                            .await
                            .unwrap();
                    assert!(leadership.is_leader());
                    within("resigning with one member down", leadership.resign()).await.unwrap();
                }
                within("closing", elector.close()).await;
            }
            fault.heal().await.unwrap();
            cluster.leader().await.unwrap();
        }
    }
}

/// Hazards E3, E4, E16: the etcd leader is frozen, then killed; a leadership with a TTL of 5 s is kept,
/// and a waiting candidate still gets its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_whose_leader_is_frozen_or_killed_keeps_its_leaderships() {
    let cluster = cluster().await;
    for freeze in [true, false] {
        let leader = cluster.leader().await.unwrap();
        let (a, b) = (connect(&cluster, leader, 5).await, connect(&cluster, leader, 5).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let elector = Arc::clone(&b);
        let waiting = tokio::spawn(async move { elector.campaign("e").await });
        until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
        let member = cluster.member(leader);
        let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
        // Three confirmed heartbeats: longer than the lease would have lasted without any.
        for _ in 0..3 {
            let deadline = first.deadline();
            until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader())
                .await;
            assert!(first.is_leader(), "frozen: {freeze}; {:?}; {:?}", first.loss(), a.status());
        }
        assert!(!waiting.is_finished());
        within("resigning", first.resign()).await.unwrap();
        let second = within("the handover", waiting).await.unwrap().unwrap();
        assert!(second.is_leader());
        within("resigning", second.resign()).await.unwrap();
        fault.heal().await.unwrap();
        a.close().await;
        b.close().await;
    }
}

/// Hazard E5: the member that a candidate is connected to is isolated from its peers and still answers the candidate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_member_isolated_from_peers_delays_no_candidate() {
    let cluster = cluster().await;
    for member in 0..3 {
        let (a, b) = (connect(&cluster, member, 5).await, connect(&cluster, member, 5).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let elector = Arc::clone(&b);
        let waiting = tokio::spawn(async move { elector.campaign("e").await });
        until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
        let fault = cluster.isolate_from_peers(member).await.unwrap();
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader()).await;
        assert!(first.is_leader(), "{:?}; {:?}", first.loss(), a.status());
        within("resigning", first.resign()).await.unwrap();
        let second = within("the handover", waiting).await.unwrap().unwrap();
        assert!(second.is_leader());
        second.resign().await.unwrap();
        fault.heal().await.unwrap();
        a.close().await;
        b.close().await;
    }
}

/// Hazard E14: the etcd leader whose disk stalls goes on answering keepalives while the other members elect another and let
/// the lease expire. A candidate that is connected to it alone stops before the next one leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_leader_with_a_stalled_disk_causes_no_second_leader() {
    let cluster = EtcdCluster::start_with_fault_injection(Version::Etcd35, &[])
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..2 {
        let leader = cluster.leader().await.unwrap();
        let (mut others, stalled) = (cluster.endpoints(), cluster.endpoints().remove(leader));
        others.remove(leader);
        let (a, b) = (connect_to(&[stalled], 5).await, connect_to(&others, 5).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline).await;
        let next = tokio::spawn({
            let b = Arc::clone(&b);
            async move { b.campaign("e").await.map(|leadership| (Instant::now(), leadership)) }
        });
        until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
        let fault = cluster.inject(leader, FaultKind::StallDisk).await.unwrap();
        // A stalled disk has an effect only when something is written.
        let busy = cluster.member((leader + 1) % 3).admin().clone();
        let writer = tokio::spawn(async move {
            loop {
                let _ = busy.put("/elsewhere", "busy").await;
            }
        });
        let reason = within("the loss", first.lost()).await;
        let stopped = Instant::now();
        let (won, second) = within("the next leader", next).await.unwrap().unwrap();
        assert!(stopped < won, "{reason}: the next one had led for {:?}", stopped - won);
        assert!(!first.is_leader() && second.fencing_token() > first.fencing_token());
        writer.abort();
        fault.heal().await.unwrap();
        drop((first, second));
        a.close().await;
        b.close().await;
    }
}

/// Hazards E1, E11: the Raft leader fails repeatedly while leases are short. Two candidates never lead at once, except when
/// a former Raft leader that thawed has revoked a live lease; the members' counters show that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_whose_leader_fails_never_has_two_leaders() {
    let cluster = cluster().await;
    let lease_expiries = LeaseExpiryMonitor::start(&cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let overlaps = Arc::new(OverlapDetector::default());
    let mut candidates = Vec::new();
    for n in 0..3 {
        let elector = connect(&cluster, n, 2).await;
        let (stop, overlaps) = (Arc::clone(&stop), Arc::clone(&overlaps));
        candidates.push(tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let limit = Duration::from_secs(3);
                let Ok(campaign) = tokio::time::timeout(limit, elector.campaign("e")).await else {
                    continue;
                };
                let leadership = campaign.unwrap();
                let handle = leadership.handle();
                overlaps.begin_term(handle.clone());
                let work = async {
                    let _working = overlaps.begin_work();
                    let _ = tokio::time::timeout(Duration::from_millis(300), handle.lost()).await;
                };
                let _ = leadership.run(work).await;
                drop(leadership);
            }
            elector.close().await;
        }));
    }
    for _ in 0..4 {
        let leader = cluster.leader().await.unwrap();
        let before = overlaps.terms();
        let fault = cluster.member(leader).pause().await.unwrap();
        cluster.successor_of(leader).await.unwrap();
        until("there is a leader again", async || overlaps.terms() > before + 2).await;
        fault.heal().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for candidate in candidates {
        within("a candidate's end", candidate).await.unwrap();
    }
    for (at, what) in overlaps.found() {
        until("all members were sampled", async || lease_expiries.has_sampled(at)).await;
        assert!(lease_expiries.non_leader_revoked_around(at), "{what}");
        println!("{what}: explained by a member that did not lead and revoked a lease");
    }
}

/// Detects terms and work that overlap.
#[derive(Default)]
struct OverlapDetector {
    last_term: Mutex<Option<LeadershipHandle>>,
    working: AtomicUsize,
    terms: AtomicUsize,
    found: Mutex<Vec<(u64, String)>>,
}

impl OverlapDetector {
    fn begin_term(&self, next: LeadershipHandle) {
        let before = self.last_term.lock().unwrap().replace(next.clone());
        if let Some(before) = before.filter(LeadershipHandle::is_leader) {
            let left = before.remaining();
            self.add(format!("two candidates lead at once: {before:?}, {left:?} left; {next:?}"));
        }
    }

    fn begin_work(&self) -> Working<'_> {
        self.terms.fetch_add(1, Ordering::SeqCst);
        if self.working.fetch_add(1, Ordering::SeqCst) > 0 {
            self.add("two candidates work at once".to_owned());
        }
        Working(self)
    }

    fn add(&self, what: String) {
        self.found.lock().unwrap().push((BootClock.now().as_nanos(), what));
    }

    fn terms(&self) -> usize {
        self.terms.load(Ordering::SeqCst)
    }

    /// The time and the description of each overlap.
    fn found(&self) -> Vec<(u64, String)> {
        self.found.lock().unwrap().clone()
    }
}

struct Working<'a>(&'a OverlapDetector);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}
