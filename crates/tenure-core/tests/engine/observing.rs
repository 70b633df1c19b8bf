//! Observing elections.

use std::time::Duration;

use futures::StreamExt;
use tenure_core::{Elector, Error, Leaders, memory::MemoryStore};

use crate::host::{Host, TTL, sleep, within};

async fn next(leaders: &mut Leaders) -> Option<String> {
    within(TTL * 2, leaders.next()).await.unwrap().unwrap().map(|leader| leader.id)
}

/// Hazard G19: an observer sees that there is no leader.
#[tokio::test(start_paused = true)]
async fn an_observer_sees_every_leader_and_every_vacancy() {
    let store = MemoryStore::new();
    let (a, b, watcher) = (Host::new(&store, "a"), Host::new(&store, "b"), Host::new(&store, "w"));
    let mut leaders = watcher.elector.observe("e");
    assert_eq!(next(&mut leaders).await, None);
    let leadership = a.lead().await;
    assert_eq!(next(&mut leaders).await.as_deref(), Some("a"));
    leadership.resign().await.unwrap();
    assert_eq!(next(&mut leaders).await, None);
    let _leadership = b.lead().await;
    assert_eq!(next(&mut leaders).await.as_deref(), Some("b"));
    assert!(store.sessions().len() == 2, "observing opened a session");
}

/// An observation continues across an outage, and yields the change that it missed.
#[tokio::test(start_paused = true)]
async fn an_observer_survives_an_outage() {
    let store = MemoryStore::new();
    let (a, watcher) = (Host::new(&store, "a"), Host::new(&store, "w"));
    let mut leaders = watcher.elector.observe("e");
    assert_eq!(next(&mut leaders).await, None);
    watcher.link.cut();
    let _leadership = a.lead().await;
    assert!(tokio::time::timeout(TTL, leaders.next()).await.is_err());
    watcher.link.heal();
    assert_eq!(next(&mut leaders).await.as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn an_observation_ends_with_its_elector_or_an_illegal_name() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let mut bad = host.elector.observe("a/b");
    assert!(matches!(bad.next().await, Some(Err(Error::InvalidElection(_)))));
    assert!(bad.next().await.is_none());
    let mut leaders = host.elector.observe("e");
    assert_eq!(next(&mut leaders).await, None);
    host.elector.close().await;
    assert!(leaders.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn every_elector_reads_the_same_leader() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    assert_eq!(b.elector.leader("e").await.unwrap(), None);
    let leadership = a.lead().await;
    sleep(Duration::from_secs(7)).await;
    let leader = b.elector.leader("e").await.unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.token), ("a", Some(leadership.fencing_token())));
    assert!(leader.age.unwrap() >= Duration::from_secs(7));
}
