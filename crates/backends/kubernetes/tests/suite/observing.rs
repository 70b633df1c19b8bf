//! What others see of an election: observers, who asks a leader to resign, and candidates of client-go.

use std::time::Duration;

use futures::StreamExt as _;
use tenure_core::spi::{Backend as _, BackendErrorKind, EntryEvent};

use crate::{
    api_server::ApiServer,
    candidate::{LIFETIME, Process, TTL, election, kill, leader, next_event, within},
};

/// Observers see a leader, its value and its token, a vacancy, and a leader that has died: the last by their own clock.
#[tokio::test]
async fn an_observer_sees_leaders_with_their_tokens() {
    let server = ApiServer::start();
    let process = Process::with(server.backend(), Duration::from_secs(1));
    let mut leaders = process.backend.observe(&election()).await.unwrap();
    let mut next = async || within("the next leader", leaders.next()).await.unwrap().unwrap();
    assert_eq!(next().await, None);
    let (a, won) = process.leader("a").await;
    a.session.heartbeat().await.unwrap();
    let leader = next().await.unwrap();
    assert_eq!(
        (leader.id.as_str(), leader.value_lossy().as_ref(), leader.token),
        ("a", "10.0.0.1:80", Some(won.token))
    );
    kill(a);
    assert_eq!(next().await, None);
    assert!(server.holder("e").starts_with("a_"));
    assert_eq!(process.backend.elections().await.unwrap(), []);
}

/// A resign request reaches the leader, and a renewal keeps it.
#[tokio::test]
async fn a_resign_request_reaches_the_leader() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, won) = process.leader("a").await;
    let asked = server.backend().request_resign(&election()).await.unwrap().unwrap();
    assert_eq!(asked.id, "a");
    a.session.heartbeat().await.unwrap();
    let mut watcher = a.watch(&won);
    assert_eq!(next_event(&mut watcher).await, EntryEvent::ResignRequested);
    let again = server.backend().leader(&election()).await.unwrap().unwrap();
    assert_eq!((again.id.as_str(), again.value_lossy().as_ref()), ("a", "10.0.0.1:80"));
}

/// A holder that is not of tenure is shown by its identity, without what client-go leaves of the holder before it, and reads no resign
/// requests.
#[tokio::test]
async fn a_foreign_holder_is_shown_and_not_asked() {
    let (server, a, _) = leader().await;
    a.session.heartbeat().await.unwrap();
    kill(a);
    server.edit("e", |lease| {
        lease["spec"]["holderIdentity"] = "host_0c9d1f".into();
        lease["spec"]["leaseTransitions"] = 1.into();
    });
    let backend = server.backend();
    let leader = backend.leader(&election()).await.unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.token, leader.value.len()), ("host_0c9d1f", None, 0));
    assert_eq!(backend.elections().await.unwrap(), []);
    let refused = backend.request_resign(&election()).await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Invalid, "{refused}");
    // It never renews, and is taken over like any other.
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "host_0c9d1f");
    process.clock.advance(LIFETIME);
    b.win().await;
    assert_eq!(server.spec("e")["leaseTransitions"], 2);
}

/// Unequal durations are unsafe beside challengers that wait for their own: they are said once.
#[tokio::test]
async fn unequal_durations_are_said_once() {
    let (server, _a, _) = leader().await;
    let process = Process::with(server.backend(), TTL * 2);
    let log = crate::log::Log::start();
    let b = process.campaign("b").await;
    for _ in 0..3 {
        b.held_by().await;
    }
    let lines = log.lines_with("lease duration is 10s, and the TTL here is 20s");
    assert_eq!(lines, 1, "{log:?}");
    // It waits for what the Lease says.
    process.clock.advance(LIFETIME);
    b.win().await;
}

/// Elections whose names are no names of objects have Leases with computed names, and are listed by their own.
#[tokio::test]
async fn any_election_has_a_lease() {
    let (server, a, _) = leader().await;
    let names = ["Billing", "a_b", "-", "tenure-x-1", "a..b", "a.b-c"];
    let process = Process::new(&server);
    let mut held = Vec::new();
    for name in names {
        let campaign = process.campaign_in(name, "b").await;
        campaign.win().await;
        held.push(campaign);
    }
    let mut listed: Vec<_> =
        process.backend.elections().await.unwrap().iter().map(ToString::to_string).collect();
    listed.sort();
    assert_eq!(listed, ["-", "Billing", "a..b", "a.b-c", "a_b", "e", "tenure-x-1"]);
    assert!(server.lease("a.b-c").is_some() && server.lease("tenure-x-1").is_none());
    drop(a);
}
