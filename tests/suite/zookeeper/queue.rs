//! ZooKeeper's queue of candidates: order, watches, foreign znodes, and entries that must not be left behind.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use tenure::{
    CandidateId, Config, ElectionName, Elector, StoreElector,
    spi::{Backend, EntryRequest},
    zookeeper::{ZookeeperBackend, ZookeeperConfig},
};
use tenure_containers::{CreateMode, Version, ZookeeperServer};
use tenure_testkit::{
    harness::Harness,
    suite::{until, within},
};
use tenure_tests::{Zookeeper, session_id, session_options};

fn elector(zookeeper: &Zookeeper, id: &str) -> Arc<StoreElector> {
    let config = Config::new().with_ttl(Duration::from_secs(5)).with_id(CandidateId::new(id).unwrap());
    Arc::new(StoreElector::new(Arc::new(zookeeper.backend()), config).unwrap())
}

fn request(nonce: u128) -> EntryRequest {
    EntryRequest {
        election: ElectionName::new("e").unwrap(),
        candidate: CandidateId::new("a").unwrap(),
        value: b"value".as_slice().into(),
        nonce,
    }
}

async fn ids(elector: &StoreElector) -> Vec<String> {
    elector.candidates("e").await.unwrap().into_iter().map(|candidate| candidate.id).collect()
}

/// Hazards Z4, Z16: when candidates leave, waiting ones keep their entries and their order. Each entry is watched by its owner
/// and by the next two candidates, and nothing else is watched: a departure notifies these two, however many wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_departure_notifies_two_and_moves_no_candidate() {
    for version in Version::ZOOKEEPER {
        let server = ZookeeperServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        let electors: Vec<Arc<StoreElector>> = (0..10)
            .map(|n| {
                let backend = ZookeeperBackend::new(ZookeeperConfig::new([server.endpoint()])).unwrap();
                let id = CandidateId::new(&format!("c{n}")).unwrap();
                let config = Config::new().with_ttl(Duration::from_secs(5)).with_id(id);
                Arc::new(StoreElector::new(Arc::new(backend), config).unwrap())
            })
            .collect();
        let leader = within("leading", electors[0].campaign("e")).await.unwrap();
        let mut waiting = Vec::new();
        for (n, elector) in electors.iter().enumerate().skip(1) {
            let elector = Arc::clone(elector);
            waiting.push(tokio::spawn(async move { elector.campaign("e").await }));
            until("it has entered", async || ids(&electors[0]).await.len() == n + 1).await;
        }
        let admin = server.admin();
        let entries = async || {
            let mut entries = admin.children("/tenure/e").await.unwrap();
            entries.sort_by_key(|name| name[name.len() - 10..].to_owned());
            entries
        };
        let watches = async || {
            let metrics = admin.four_letter_command("mntr").await.unwrap();
            let line = metrics.lines().find(|line| line.starts_with("zk_watch_count")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
        };
        let initial = entries().await;
        // Ten watch themselves, nine their predecessor, and eight the one before that.
        until("each watches itself and its two predecessors", async || watches().await == 27).await;
        // Two in the middle leave, one of them because its session expires; then the leader resigns.
        waiting[3].abort();
        until("it is gone", async || ids(&electors[0]).await.len() == 9).await;
        let fifth = electors[0].candidates("e").await.unwrap()[4].session.clone();
        admin.expire_session(session_id(&fifth)).await.unwrap();
        until("it has entered again, at the end", async || {
            ids(&electors[0]).await == ["c0", "c1", "c2", "c3", "c6", "c7", "c8", "c9", "c5"]
        })
        .await;
        let now = entries().await;
        let unchanged = [0, 1, 2, 3, 6, 7, 8, 9].map(|n| initial[n].clone());
        assert_eq!(now[..8], unchanged, "the others keep their entries");
        until("nine watch themselves and their two predecessors", async || watches().await == 24).await;
        leader.resign().await.unwrap();
        let second = within("the handover", waiting.remove(0)).await.unwrap().unwrap();
        assert_eq!(second.candidate_id().as_str(), "c1");
        assert_eq!(waiting.iter().filter(|campaign| !campaign.is_finished()).count(), 7);
        until("eight watch themselves and their two predecessors", async || watches().await == 21).await;
        drop(second);
        join_all(electors.iter().map(|elector| elector.close())).await;
        for campaign in waiting {
            // Some were elected while others left; all have ended.
            drop(campaign.await);
        }
        until("no session is left", async || admin.sessions().await.unwrap().is_empty()).await;
        assert!(entries().await.is_empty());
    }
}

/// Hazard Z16: entering behind many candidates sends as few requests as entering behind one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entering_behind_many_sends_as_few_requests_as_behind_one() {
    for version in Version::ZOOKEEPER {
        let server = ZookeeperServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        // Without an engine there are no heartbeats; the long timeout prevents retries when a disk is slow.
        let config = ZookeeperConfig::new([server.endpoint()]).attempt_timeout(Duration::from_secs(30));
        let backend = ZookeeperBackend::new(config).unwrap();
        let session = within("a session", backend.open_session(&session_options(Duration::from_secs(30))))
            .await
            .unwrap();
        let admin = server.admin();
        let received = async || {
            let status = admin.four_letter_command("srvr").await.unwrap();
            let count = status.lines().find_map(|line| line.strip_prefix("Received: ")).unwrap();
            count.trim().parse::<usize>().unwrap()
        };
        let mut requests = Vec::new();
        for nonce in 1..=60 {
            let before = received().await;
            within("entering", session.enter(&request(nonce))).await.unwrap();
            requests.push(received().await - before);
        }
        // The minimum, because the client may send a ping in between.
        assert_eq!(requests[1..11].iter().min(), requests[50..].iter().min(), "{requests:?}");
        session.close().await.unwrap();
    }
}

/// Hazard Z5: an operator repeatedly deletes the election's znode with all its children.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_whose_znode_was_deleted_recovers() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let (a, b) = (elector(&zookeeper, "a"), elector(&zookeeper, "b"));
    let admin = zookeeper.server().admin();
    let parent = format!("{}/e", zookeeper.root());
    let mut last = 0;
    for _ in 0..5 {
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waiting = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waiting.campaign("e").await });
        until("it waits", async || ids(&a).await.len() == 2).await;
        for name in admin.children(&parent).await.unwrap() {
            admin.delete(&format!("{parent}/{name}")).await.unwrap();
        }
        // A candidate may have entered again already.
        let _ = admin.delete(&parent).await;
        within("the loss", first.lost()).await;
        let mut second = within("leading", waiting).await.unwrap().unwrap();
        assert!(second.fencing_token() > first.fencing_token() && second.fencing_token().get() > last);
        last = second.fencing_token().get();
        // It may have led between the two deletions.
        while second.resign().await.is_err() {
            second = within("leading again", b.campaign("e")).await.unwrap();
            assert!(second.fencing_token().get() > last);
            last = second.fencing_token().get();
        }
        until("no candidate is left", async || ids(&a).await.is_empty()).await;
        // The server deletes the empty container; the next campaign creates it again.
        until("the container is deleted", async || admin.get(&parent).await.unwrap().is_none()).await;
    }
    a.close().await;
    b.close().await;
}

/// Hazard Z8: when the sequence numbers have reached their maximum and are all equal, the candidate that entered first is first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_sequence_numbers_are_ordered_by_transaction() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let a = elector(&zookeeper, "a");
    within("leading", a.campaign("e")).await.unwrap().resign().await.unwrap();
    let mut other = zookeeper.server().admin().session().await.unwrap();
    let mut tokens = Vec::new();
    // Their names are in the opposite order.
    for guid in [3, 2, 1] {
        let path = format!("{}/e/c-{guid:032x}-2147483647", zookeeper.root());
        other.create(&path, guid.to_string(), CreateMode::Ephemeral).await.unwrap();
        tokens.push(other.get(&path).await.unwrap().unwrap().czxid.cast_unsigned());
    }
    let candidates = a.candidates("e").await.unwrap();
    let found: Vec<u64> = candidates.iter().map(|candidate| candidate.token.unwrap().get()).collect();
    assert_eq!(found, tokens);
    let leader = a.leader("e").await.unwrap().unwrap();
    assert_eq!((leader.value_lossy().as_ref(), leader.token.unwrap().get()), ("3", tokens[0]));
    // An entry with a smaller number comes before them, although it was created later.
    let leadership = within("leading", a.campaign("e")).await.unwrap();
    assert_eq!(ids(&a).await[0], "a");
    leadership.resign().await.unwrap();
    // The same for an entry that the backend creates directly.
    let session = zookeeper.backend().open_session(&session_options(Duration::from_secs(5))).await.unwrap();
    let entered = session.enter(&request(9)).await.unwrap();
    assert!(entered.token().is_some(), "its number is smaller");
    session.close().await.unwrap();
    other.close().await.unwrap();
    a.close().await;
}

/// Hazard Z14: every entry is created by a transaction of its own, so that no two have the same token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_created_at_once_have_distinct_tokens() {
    for version in Version::ZOOKEEPER {
        let zookeeper = Zookeeper::new(version).await;
        let a = elector(&zookeeper, "a");
        let names: Vec<String> = (0..200).map(|n| format!("e{n}")).collect();
        let terms = within("leading all", join_all(names.iter().map(|name| a.campaign(name)))).await;
        let tokens: BTreeSet<u64> =
            terms.iter().map(|term| term.as_ref().unwrap().fencing_token().get()).collect();
        assert_eq!(tokens.len(), names.len());
        drop(terms);
        a.close().await;
    }
}

/// Hazard Z15: an entry that the server does not delete blocks the election. Its owner and age are shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_entry_is_shown() {
    let zookeeper = Zookeeper::new(Version::Zookeeper38).await;
    let a = elector(&zookeeper, "a");
    within("leading", a.campaign("e")).await.unwrap().resign().await.unwrap();
    let mut other = zookeeper.server().admin().session().await.unwrap();
    let path = format!("{}/e/c-{:032x}-", zookeeper.root(), 7);
    other.create(&path, "stuck", CreateMode::EphemeralSequential).await.unwrap();
    assert!(a.try_campaign("e").await.unwrap().is_none(), "it blocks");
    let leader = a.leader("e").await.unwrap().unwrap();
    assert_eq!(session_id(&leader.session), other.id());
    assert!(leader.id.starts_with("c-"), "identified by its entry: {}", leader.id);
    assert_eq!(leader.value_lossy(), "stuck");
    let age = leader.age.unwrap();
    until("it grows older", async || a.leader("e").await.unwrap().unwrap().age.unwrap() > age).await;
    // An operator expires the session.
    zookeeper.server().admin().expire_session(other.id()).await.unwrap();
    assert!(within("leading", a.campaign("e")).await.unwrap().is_leader());
    a.close().await;
}

/// Hazards Z10, Z12: a campaign that is dropped at any moment leaves nothing, in 30 of 30 attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_campaigns_leave_nothing() {
    for version in Version::ZOOKEEPER {
        let zookeeper = Zookeeper::new(version).await;
        let (a, b) = (elector(&zookeeper, "a"), elector(&zookeeper, "b"));
        let leadership = within("leading", a.campaign("e")).await.unwrap();
        for n in 0..30u64 {
            let waiting = Arc::clone(&b);
            let waiting = tokio::spawn(async move { waiting.campaign("e").await });
            // From before the request is sent to long after its response.
            for _ in 0..n * n {
                tokio::task::yield_now().await;
            }
            waiting.abort();
            let _ = waiting.await;
        }
        until("only the leader is left", async || ids(&a).await == ["a"]).await;
        assert!(leadership.is_leader(), "{:?}", leadership.loss());
        leadership.resign().await.unwrap();
        a.close().await;
        b.close().await;
        until("nothing is left", async || zookeeper.remaining_state().await.is_empty()).await;
    }
}

/// Hazard Z10: the entry of a dropped request is found by its GUID: the same request takes it over, and a withdrawal deletes
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_requests_entry_is_found_again() {
    for version in Version::ZOOKEEPER {
        let zookeeper = Zookeeper::new(version).await;
        let backend = zookeeper.backend();
        let session = backend.open_session(&session_options(Duration::from_secs(5))).await.unwrap();
        session.enter(&request(1)).await.unwrap();
        let mut dropped = 0;
        for nonce in 2..12 {
            let asked = request(nonce);
            // Sent, and mostly not answered yet: a thread that is stopped here may find the answer.
            let sent = futures::FutureExt::now_or_never(session.enter(&asked));
            dropped += usize::from(sent.is_none());
            if nonce % 2 == 0 {
                let found = session.enter(&request(nonce)).await.unwrap();
                assert_eq!(session.enter(&request(nonce)).await.unwrap(), found, "again and again");
                session.leave(&request(nonce), found.entry()).await.unwrap();
            }
            session.leave(&request(nonce), None).await.unwrap();
            session.leave(&request(nonce), None).await.unwrap();
            let left = backend.candidates(&ElectionName::new("e").unwrap()).await.unwrap();
            assert_eq!(left.len(), 1, "{left:?}");
        }
        assert!(dropped >= 5, "{dropped} of 10 requests were dropped before their answer");
        session.close().await.unwrap();
        session.close().await.unwrap();
        backend.close().await;
    }
}

/// A persistent znode that is named like an entry blocks neither `campaign` nor `try_campaign`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_znode_named_like_an_entry_blocks_no_candidate() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let a = elector(&zookeeper, "a");
    within("leading", a.campaign("e")).await.unwrap().resign().await.unwrap();
    let similar = format!("{}/e/c-{:032x}-0000000000", zookeeper.root(), 7);
    zookeeper.server().admin().create(&similar, "x").await.unwrap();
    assert_eq!(a.leader("e").await.unwrap(), None);
    within("leading", a.campaign("e")).await.unwrap().resign().await.unwrap();
    let tried = within("trying", a.try_campaign("e")).await.unwrap();
    tried.expect("nobody leads").resign().await.unwrap();
    assert!(
        zookeeper.server().admin().get(&similar).await.unwrap().is_some(),
        "foreign znodes are not deleted"
    );
    a.close().await;
}
