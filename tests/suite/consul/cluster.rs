//! A cluster of three Consul servers, one of which is killed, frozen or cut off; and what a restored snapshot does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use tenure::{Config, Elector, LeadershipHandle, consul::ConsulConfig};
use tenure_cas::{CasStore as _, Freshness, Swap};
use tenure_containers::{ConsulCluster, ConsulServer, ConsulSettings, Direction, FaultKind, Version};
use tenure_testkit::suite::{until, within};
use tokio::time::Instant;

async fn cluster() -> ConsulCluster {
    ConsulCluster::start_with_fault_injection(Version::Consul18, &ConsulSettings::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// An elector that knows all members and prefers the one with number `first`.
async fn connect(cluster: &ConsulCluster, first: usize, ttl: u64) -> Arc<dyn Elector> {
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(first);
    connect_to(&endpoints, ttl).await
}

async fn connect_to(endpoints: &[String], ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    let url = format!("consul://{}/acme?attempt_timeout=1s", endpoints.join(","));
    tenure::connect_with(&url, config).await.unwrap()
}

fn campaign(elector: &Arc<dyn Elector>) -> tokio::task::JoinHandle<tenure::Leadership> {
    let elector = Arc::clone(elector);
    tokio::spawn(async move { elector.campaign("e").await.unwrap_or_else(|error| panic!("{error}")) })
}

/// With one server of three killed, then frozen, no campaign fails and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_with_one_server_down_still_elects() {
    let cluster = cluster().await;
    for freeze in [false, true] {
        for down in 0..3 {
            let member = cluster.member(down);
            let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
            for first in 0..3 {
                let elector = connect(&cluster, first, 5).await;
                let leadership = within("leading with one server down", elector.campaign("e")).await.unwrap();
                within("resigning with one server down", leadership.resign()).await.unwrap();
                within("closing", elector.close()).await;
            }
            fault.heal().await.unwrap();
            cluster.leader().await.unwrap();
        }
    }
}

/// The Raft leader is killed, frozen and cut off: a leadership whose TTL is longer than the election of another is kept, and a waiting
/// candidate gets its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_whose_leader_fails_keeps_its_leaderships() {
    let cluster = cluster().await;
    for kind in [
        FaultKind::Kill,
        FaultKind::Freeze,
        FaultKind::PartitionFromPeers(Direction::Both),
        FaultKind::PartitionFromAll(Direction::Outbound),
    ] {
        let leader = cluster.leader().await.unwrap();
        let (a, b) = (connect(&cluster, leader, 20).await, connect(&cluster, leader, 20).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waiting = campaign(&b);
        until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
        let fault = cluster.inject(leader, kind).await.unwrap();
        cluster.successor_of(leader).await.unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        for _ in 0..2 {
            let deadline = first.deadline();
            until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader())
                .await;
            assert!(first.is_leader(), "{kind:?}; {:?}; {:?}", first.loss(), a.status());
        }
        assert!(!waiting.is_finished());
        within("resigning", first.resign()).await.unwrap();
        let second = within("the handover", waiting).await.unwrap();
        within("resigning", second.resign()).await.unwrap();
        fault.heal().await.unwrap();
        cluster.leader().await.unwrap();
        a.close().await;
        b.close().await;
    }
}

/// A leader whose only server is cut off from its peers stops before the next one leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_server_without_a_quorum_causes_no_second_leader() {
    let cluster = cluster().await;
    for is_raft_leader in [true, false] {
        let leader = cluster.leader().await.unwrap();
        let cut_off = if is_raft_leader { leader } else { (leader + 1) % 3 };
        let mut others = cluster.endpoints();
        let alone = others.remove(cut_off);
        let (a, b) = (connect_to(&[alone], 4).await, connect_to(&others, 4).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let next = tokio::spawn({
            let b = Arc::clone(&b);
            async move { b.campaign("e").await.map(|leadership| (Instant::now(), leadership)) }
        });
        until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
        let fault = cluster.inject(cut_off, FaultKind::PartitionFromPeers(Direction::Both)).await.unwrap();
        let reason = within("the loss", first.lost()).await;
        let stopped = Instant::now();
        let (won, second) = within("the next leader", next).await.unwrap().unwrap();
        assert!(stopped < won, "{reason}: the next one had led for {:?}", stopped - won);
        assert!(!first.is_leader() && second.fencing_token() > first.fencing_token());
        fault.heal().await.unwrap();
        drop((first, second));
        a.close().await;
        b.close().await;
    }
}

/// The Raft leader fails repeatedly while TTLs are short: two candidates never lead at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_whose_leader_fails_never_has_two_leaders() {
    let cluster = cluster().await;
    let (stop, overlaps) = (Arc::new(AtomicBool::new(false)), Arc::new(OverlapDetector::default()));
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
                overlaps.begin_term(leadership.handle());
                let handle = leadership.handle();
                let work = async {
                    let _ = tokio::time::timeout(Duration::from_millis(300), handle.lost()).await;
                };
                let _ = leadership.run(work).await;
                drop(leadership);
            }
            elector.close().await;
        }));
    }
    for freeze in [true, false, true, false] {
        let leader = cluster.leader().await.unwrap();
        let before = overlaps.terms.load(Ordering::SeqCst);
        let member = cluster.member(leader);
        let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
        cluster.successor_of(leader).await.unwrap();
        until("there is a leader again", async || overlaps.terms.load(Ordering::SeqCst) > before + 2).await;
        fault.heal().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for candidate in candidates {
        within("a candidate's end", candidate).await.unwrap();
    }
    assert_eq!(*overlaps.found.lock().unwrap(), [""; 0]);
}

/// Detects terms that overlap.
#[derive(Default)]
struct OverlapDetector {
    last_term: Mutex<Option<LeadershipHandle>>,
    terms: AtomicUsize,
    found: Mutex<Vec<String>>,
}

impl OverlapDetector {
    fn begin_term(&self, next: LeadershipHandle) {
        self.terms.fetch_add(1, Ordering::SeqCst);
        let before = self.last_term.lock().unwrap().replace(next.clone());
        if let Some(before) = before.filter(LeadershipHandle::is_leader) {
            let left = before.remaining();
            self.found.lock().unwrap().push(format!("{before:?}, {left:?} left; {next:?}"));
        }
    }
}

/// A blocking query yields when the record changes, by any server, and ends when its server does. The next one goes to another server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_end_with_their_server_and_begin_anew_at_another() {
    let cluster = cluster().await;
    let follower = (cluster.leader().await.unwrap() + 1) % 3;
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(follower);
    let open =
        |endpoints: &[String]| tenure::consul::backend(ConsulConfig::new(endpoints).prefix("acme")).unwrap();
    let (backend, writer) = (open(&endpoints), open(&endpoints[1..]));
    let (store, writer) = (backend.store(), writer.store());
    let epoch = tenure_cas::Epoch(0);
    let Swap::Done(version) = writer.swap("e/a", None, epoch, b"1").await.unwrap() else { panic!() };
    let mut hints = store.changes("e/a").unwrap();
    assert_eq!(within("the first", hints.next()).await, Some(()));
    let Swap::Done(version) = writer.swap("e/a", Some(&version), epoch, b"2").await.unwrap() else {
        panic!()
    };
    assert_eq!(within("a change", hints.next()).await, Some(()));
    let waiting = tokio::spawn(async move { hints.next().await });
    let _killed = cluster.member(follower).kill().await.unwrap();
    assert_eq!(within("the end", waiting).await.unwrap(), None);
    let mut hints = store.changes("e/a").unwrap();
    assert_eq!(within("the first", hints.next()).await, Some(()));
    writer.swap("e/a", Some(&version), epoch, b"3").await.unwrap();
    assert_eq!(within("a change", hints.next()).await, Some(()));
    // Sessions have none, and elections only so many: each needs a connection.
    assert!(store.changes("s/a").is_none());
    let held: Vec<_> = std::iter::from_fn(|| store.changes("e/b")).collect();
    assert_eq!(held.len(), 31);
    drop(held);
    assert!(store.changes("e/b").is_some());
}

/// After a restored snapshot the index of a record goes back: hints end and begin anew, versions of later writes are new, and a session that
/// the snapshot does not know ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_snapshot_is_survived() {
    let server = ConsulServer::start(Version::Consul18).await.unwrap();
    let config = ConsulConfig::new([server.endpoint()]).prefix("acme");
    let backend = tenure::consul::backend(config).unwrap();
    let (store, epoch) = (backend.store(), tenure_cas::Epoch(0));
    let Swap::Done(first) = store.swap("e/a", None, epoch, b"1").await.unwrap() else { panic!() };
    let snapshot = server.admin().save_snapshot().await.unwrap();
    let Swap::Done(second) = store.swap("e/a", Some(&first), epoch, b"2").await.unwrap() else { panic!() };
    let elector = connect_to(&[server.endpoint()], 4).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let mut hints = store.changes("e/a").unwrap();
    assert_eq!(within("the first", hints.next()).await, Some(()));
    let waiting = tokio::spawn(async move { hints.next().await });
    server.admin().restore_snapshot(snapshot).await.unwrap();
    let _ = within("the end, or a hint", waiting).await.unwrap();
    let found = store.read("e/a", Freshness::Fresh).await.unwrap().unwrap();
    assert_eq!((&found.version, found.body.as_slice()), (&first, b"1".as_slice()));
    let Swap::Done(third) = store.swap("e/a", Some(&first), epoch, b"3").await.unwrap() else { panic!() };
    let number = |version: &tenure_cas::Version| version.as_str().parse::<u64>().unwrap();
    assert!(number(&third) > number(&second), "{third:?} {second:?}");
    within("the loss", leadership.lost()).await;
    within("leading again", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    elector.close().await;
}
