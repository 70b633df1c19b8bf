//! One etcd server and what can befall it.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tenure::{Config, Elector, LossReason};
use tenure_containers::{EtcdServer, Version};
use tenure_testkit::suite::{until, within};

async fn server(version: Version) -> EtcdServer {
    EtcdServer::start(version).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect(server: &EtcdServer, ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("etcd://{}/acme", server.endpoint()), config).await.unwrap()
}

/// Hazard E8: the history that a watch needs is compacted away while a candidate waits, a leader
/// watches its own entry and an observer observes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_is_not_noticed() {
    for version in Version::ETCD {
        let server = server(version).await;
        let (a, b) = (connect(&server, 5).await, connect(&server, 5).await);
        let mut leaders = b.observe("e");
        assert_eq!(within("nobody", leaders.next()).await.unwrap().unwrap(), None);
        for round in 0..3 {
            let first = within("leading", a.campaign("e")).await.unwrap();
            let elector = Arc::clone(&b);
            let waiting = tokio::spawn(async move { elector.campaign("e").await });
            until("both stand", async || a.candidates("e").await.unwrap().len() == 2).await;
            for n in 0..50 {
                server.admin().put("/elsewhere", format!("{round} {n}")).await.unwrap();
            }
            server.admin().compact().await.unwrap();
            assert!(first.is_leader() && !waiting.is_finished());
            first.resign().await.unwrap();
            server.admin().compact().await.unwrap();
            let second = within("the hand-over", waiting).await.unwrap().unwrap();
            let seen = async {
                while leaders.next().await.unwrap().unwrap().and_then(|leader| leader.token)
                    != Some(second.fencing_token())
                {}
            };
            within("the observer's sight of it", seen).await;
            second.resign().await.unwrap();
        }
        a.close().await;
        b.close().await;
    }
}

/// Hazard E15: others write between the read and the watch, so that the watch begins in the past, and
/// the resignation comes right after the wait began. Every hand-over still happens. (How quickly is
/// for a benchmark to say.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_overs_succeed_beside_a_busy_writer() {
    let server = server(Version::Etcd35).await;
    let (a, b) = (connect(&server, 5).await, connect(&server, 5).await);
    let admin = server.admin().clone();
    let writer = tokio::spawn(async move {
        loop {
            admin.put("/elsewhere", "busy").await.unwrap();
        }
    });
    for _ in 0..20 {
        let first = within("leading", a.campaign("e")).await.unwrap();
        let elector = Arc::clone(&b);
        let waiting = tokio::spawn(async move { elector.campaign("e").await });
        until("both stand", async || a.candidates("e").await.unwrap().len() == 2).await;
        first.resign().await.unwrap();
        within("the hand-over", waiting).await.unwrap().unwrap().resign().await.unwrap();
    }
    writer.abort();
    a.close().await;
    b.close().await;
}

/// Hazard E12: etcd grants more than it was asked for, and the deadline follows what it granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_follows_the_ttl_as_granted() {
    for version in Version::ETCD {
        let server = server(version).await;
        let elector = connect(&server, 1).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
        let left = leadership.remaining();
        assert!(left > Duration::from_secs(1) && left <= Duration::from_millis(1_800), "{left:?}");
        let lease = elector.status().session.unwrap();
        let lease = server.admin().lease(i64::from_str_radix(&lease, 16).unwrap()).await.unwrap().unwrap();
        assert_eq!(lease.granted, Duration::from_secs(2));
        elector.close().await;
        assert!(server.admin().leases().await.unwrap().is_empty());
    }
}

/// Hazards E4, E7: the server is killed and restarted within the TTL; leadership is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_is_ridden_out() {
    for version in Version::ETCD {
        let server = server(version).await;
        let elector = connect(&server, 20).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        server.kill().await.unwrap().heal().await.unwrap();
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || {
            leadership.deadline() > deadline || !leadership.is_leader()
        })
        .await;
        assert!(leadership.is_leader(), "{:?}", leadership.loss());
        assert_eq!(
            elector.leader("e").await.unwrap().unwrap().token,
            Some(leadership.fencing_token()),
            "the same entry, after the restart"
        );
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazards E5, E7: the server is frozen, its connections stay up: leadership ends by the deadline,
/// everything goes on once it thaws.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_ends_leadership_in_time_and_no_more() {
    let server = server(Version::Etcd35).await;
    let (a, b) = (connect(&server, 3).await, connect(&server, 3).await);
    let first = within("leading", a.campaign("e")).await.unwrap();
    let elector = Arc::clone(&b);
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    until("both stand", async || a.candidates("e").await.unwrap().len() == 2).await;
    let frozen = server.pause().await.unwrap();
    assert_eq!(within("the loss", first.lost()).await, LossReason::Deadline);
    frozen.heal().await.unwrap();
    drop(first);
    let second = within("the next leader", waiting).await.unwrap().unwrap();
    assert!(second.is_leader());
    second.resign().await.unwrap();
    a.close().await;
    b.close().await;
    until("nothing is left", async || {
        server.admin().leases().await.unwrap().is_empty()
            && server.admin().list("/acme/").await.unwrap().is_empty()
    })
    .await;
}

/// The store was wiped: the election recovers, and says why leadership was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_recovers_from_a_wiped_store() {
    let server = server(Version::Etcd35).await;
    let elector = connect(&server, 5).await;
    let first = within("leading", elector.campaign("e")).await.unwrap();
    server.wipe().await.unwrap();
    let reason = within("the loss", first.lost()).await;
    assert!(
        matches!(reason, LossReason::SessionExpired | LossReason::EntryGone | LossReason::Deadline),
        "{reason}"
    );
    drop(first);
    let second = within("leading again", elector.campaign("e")).await.unwrap();
    assert!(second.is_leader());
    elector.close().await;
}
