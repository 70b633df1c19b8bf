//! Faults of a single etcd server.

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

/// Hazard E8: a compaction removes the history that a watch needs while a candidate waits, a leader watches its own entry and
/// an observer observes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_disturbs_no_candidate() {
    for version in Version::ETCD {
        let server = server(version).await;
        let (a, b) = (connect(&server, 5).await, connect(&server, 5).await);
        let mut leaders = b.observe("e");
        assert_eq!(within("no leader", leaders.next()).await.unwrap().unwrap(), None);
        for round in 0..3 {
            let first = within("leading", a.campaign("e")).await.unwrap();
            let elector = Arc::clone(&b);
            let waiting = tokio::spawn(async move { elector.campaign("e").await });
            until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
            for n in 0..50 {
                server.admin().put("/elsewhere", format!("{round} {n}")).await.unwrap();
            }
            server.admin().compact().await.unwrap();
            assert!(first.is_leader() && !waiting.is_finished());
            first.resign().await.unwrap();
            server.admin().compact().await.unwrap();
            let second = within("the handover", waiting).await.unwrap().unwrap();
            let seen = async {
                while leaders.next().await.unwrap().unwrap().and_then(|leader| leader.token)
                    != Some(second.fencing_token())
                {}
            };
            within("the observer to see the leader", seen).await;
            second.resign().await.unwrap();
        }
        a.close().await;
        b.close().await;
    }
}

/// Hazard E15: another client writes between the read and the watch, so that the watch starts at an old revision, and the
/// leader resigns right after the wait began. Every handover still happens. (A benchmark measures how quickly.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handovers_succeed_beside_a_busy_writer() {
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
        until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
        first.resign().await.unwrap();
        within("the handover", waiting).await.unwrap().unwrap().resign().await.unwrap();
    }
    writer.abort();
    a.close().await;
    b.close().await;
}

/// Hazard E12: etcd grants a longer TTL than requested, and the deadline follows the granted one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_follows_the_granted_ttl() {
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
async fn leadership_survives_a_server_restart() {
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

/// Hazards E5, E7: the server is frozen and its connections stay open. Leadership ends by the deadline, and candidates go on
/// once the server thaws.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_ends_leadership_by_the_deadline() {
    let server = server(Version::Etcd35).await;
    let (a, b) = (connect(&server, 3).await, connect(&server, 3).await);
    let first = within("leading", a.campaign("e")).await.unwrap();
    let elector = Arc::clone(&b);
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    until("both candidates have entered", async || a.candidates("e").await.unwrap().len() == 2).await;
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

/// The store is wiped: leadership is lost with a reason, and the election recovers.
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
