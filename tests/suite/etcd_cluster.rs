//! Three etcd members, and one of them dead or frozen.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenure::{BootClock, Clock as _, Config, Elector, LeadershipHandle};
use tenure_containers::{EtcdCluster, ExpiryWatch, Harm, Version};
use tenure_testkit::suite::{until, within};
use tokio::time::Instant;

async fn cluster() -> EtcdCluster {
    EtcdCluster::start(Version::Etcd35).await.unwrap_or_else(|error| panic!("{error}"))
}

/// An elector that knows all members, beginning with number `first`.
async fn connect(cluster: &EtcdCluster, first: usize, ttl: u64) -> Arc<dyn Elector> {
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(first);
    connect_to(&endpoints, ttl).await
}

async fn connect_to(endpoints: &[String], ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("etcd://{}/acme", endpoints.join(",")), config).await.unwrap()
}

/// Hazards E6, E7: with one member of three dead, then frozen, no campaign fails and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_with_one_member_down_elects_as_ever() {
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
        until("both stand", async || a.candidates("e").await.unwrap().len() == 2).await;
        let member = cluster.member(leader);
        let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
        // Long past what the old lease would have given: three deadlines further.
        for _ in 0..3 {
            let deadline = first.deadline();
            until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader())
                .await;
            assert!(first.is_leader(), "frozen: {freeze}; {:?}; {:?}", first.loss(), a.status());
        }
        assert!(!waiting.is_finished());
        within("resigning", first.resign()).await.unwrap();
        let second = within("the hand-over", waiting).await.unwrap().unwrap();
        assert!(second.is_leader());
        within("resigning", second.resign()).await.unwrap();
        fault.heal().await.unwrap();
        a.close().await;
        b.close().await;
    }
}

/// Hazard E5: the member that a candidate talks to is cut off from its peers and still answers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_member_that_is_cut_off_holds_nobody_up() {
    let cluster = cluster().await;
    for member in 0..3 {
        let (a, b) = (connect(&cluster, member, 5).await, connect(&cluster, member, 5).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let elector = Arc::clone(&b);
        let waiting = tokio::spawn(async move { elector.campaign("e").await });
        until("both stand", async || a.candidates("e").await.unwrap().len() == 2).await;
        let fault = cluster.cut_off(member).await.unwrap();
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader()).await;
        assert!(first.is_leader(), "{:?}; {:?}", first.loss(), a.status());
        within("resigning", first.resign()).await.unwrap();
        let second = within("the hand-over", waiting).await.unwrap().unwrap();
        assert!(second.is_leader());
        second.resign().await.unwrap();
        fault.heal().await.unwrap();
        a.close().await;
        b.close().await;
    }
}

/// Hazard E14: the disk of the etcd leader stalls, which goes on answering keepalives while the others elect
/// anew and let the lease expire; the candidate that speaks to it alone stops before the next one leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_leader_with_a_stalled_disk_keeps_no_second_leader() {
    let cluster =
        EtcdCluster::breakable(Version::Etcd35, &[]).await.unwrap_or_else(|error| panic!("{error}"));
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
        let fault = cluster.harm(leader, Harm::StallDisk).await.unwrap();
        // A stall shows when something is to be written.
        let busy = cluster.member((leader + 1) % 3).admin().clone();
        let writer = tokio::spawn(async move {
            loop {
                let _ = busy.put("/elsewhere", "busy").await;
            }
        });
        let reason = within("the loss", first.lost()).await;
        let stopped = Instant::now();
        let (won, second) = within("the next leader", next).await.unwrap().unwrap();
        assert!(stopped < won, "{reason}: the next one led {:?} before", stopped - won);
        assert!(!first.is_leader() && second.fencing_token() > first.fencing_token());
        writer.abort();
        fault.heal().await.unwrap();
        drop((first, second));
        a.close().await;
        b.close().await;
    }
}

/// Hazards E1, E11: the raft leader fails over and over with short leases; two never lead at once, but where a
/// leader of old that thawed has revoked a lease that lived, as the members' own counters show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_whose_leader_fails_never_has_two_leaders() {
    let cluster = cluster().await;
    let expiries = ExpiryWatch::start(&cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let leads = Arc::new(Leads::default());
    let mut candidates = Vec::new();
    for n in 0..3 {
        let elector = connect(&cluster, n, 2).await;
        let (stop, leads) = (Arc::clone(&stop), Arc::clone(&leads));
        candidates.push(tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let patience = Duration::from_secs(3);
                let Ok(campaign) = tokio::time::timeout(patience, elector.campaign("e")).await else {
                    continue;
                };
                let leadership = campaign.unwrap();
                let handle = leadership.handle();
                leads.begin(handle.clone());
                let work = async {
                    // What counts is when the work begins and ends, and not when anybody hears of that.
                    let _working = leads.work();
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
        let before = leads.terms();
        let fault = cluster.member(leader).pause().await.unwrap();
        cluster.successor_of(leader).await.unwrap();
        until("somebody leads again", async || leads.terms() > before + 2).await;
        fault.heal().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for candidate in candidates {
        within("a candidate's end", candidate).await.unwrap();
    }
    for (at, what) in leads.overlaps() {
        until("the members have told of it", async || expiries.has_seen(at)).await;
        assert!(expiries.explains(at), "{what}");
        println!("{what}: a member that did not lead had revoked a lease");
    }
}

/// Whoever led last, and whoever works.
#[derive(Default)]
struct Leads {
    last: Mutex<Option<LeadershipHandle>>,
    working: AtomicUsize,
    terms: AtomicUsize,
    overlaps: Mutex<Vec<(u64, String)>>,
}

impl Leads {
    fn begin(&self, next: LeadershipHandle) {
        let before = self.last.lock().unwrap().replace(next.clone());
        if let Some(before) = before.filter(LeadershipHandle::is_leader) {
            let left = before.remaining();
            self.overlap(format!("two lead at once: {before:?}, {left:?} left; {next:?}"));
        }
    }

    fn work(&self) -> Working<'_> {
        self.terms.fetch_add(1, Ordering::SeqCst);
        if self.working.fetch_add(1, Ordering::SeqCst) > 0 {
            self.overlap("two work at once".to_owned());
        }
        Working(self)
    }

    fn overlap(&self, what: String) {
        self.overlaps.lock().unwrap().push((BootClock.now().as_nanos(), what));
    }

    fn terms(&self) -> usize {
        self.terms.load(Ordering::SeqCst)
    }

    /// When each was seen, and what.
    fn overlaps(&self) -> Vec<(u64, String)> {
        self.overlaps.lock().unwrap().clone()
    }
}

struct Working<'a>(&'a Leads);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}
