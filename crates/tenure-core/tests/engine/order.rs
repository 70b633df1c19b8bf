//! The order of succession: promises S2 and L2.

use std::{sync::Arc, time::Duration};

use tenure_core::{Elector, FencingToken, memory::MemoryStore};

use crate::host::{Host, TTL, assert_nothing_left, sleep, until, within};

#[tokio::test(start_paused = true)]
async fn leadership_follows_the_order_of_arrival_with_rising_tokens() {
    let store = MemoryStore::new();
    let hosts: Vec<_> = (0..10).map(|n| Host::new(&store, &format!("c{n}"))).collect();
    let mut queue = Vec::new();
    for host in &hosts {
        queue.push(host.enter_queue(&store).await);
    }
    let names: Vec<_> = hosts[0].elector.candidates("e").await.unwrap().into_iter().map(|c| c.id).collect();
    assert_eq!(names, (0..10).map(|n| format!("c{n}")).collect::<Vec<_>>());
    let mut last: Option<FencingToken> = None;
    for (n, campaign) in queue.into_iter().enumerate() {
        let leadership = within(TTL, campaign).await.unwrap();
        assert_eq!(leadership.candidate_id().as_str(), format!("c{n}"));
        assert!(last < Some(leadership.fencing_token()));
        last = Some(leadership.fencing_token());
        leadership.resign().await.unwrap();
    }
}

/// A candidate in the middle of the queue leaves: its successor is not promoted.
#[tokio::test(start_paused = true)]
async fn a_departure_in_the_middle_promotes_no_candidate() {
    let store = MemoryStore::new();
    let hosts: Vec<_> = (0..3).map(|n| Host::new(&store, &format!("c{n}"))).collect();
    let leadership = hosts[0].lead().await;
    let middle = hosts[1].enter_queue(&store).await;
    let last = hosts[2].enter_queue(&store).await;
    middle.abort();
    until("the candidate in the middle has left", || store.entries("e").len() == 2).await;
    sleep(TTL * 2).await;
    assert!(leadership.is_leader() && !last.is_finished());
    leadership.resign().await.unwrap();
    drop(within(Duration::from_millis(200), last).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn try_campaign_does_not_wait() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.elector.try_campaign("e").await.unwrap().unwrap();
    assert!(b.elector.try_campaign("e").await.unwrap().is_none());
    assert!(a.elector.try_campaign("e").await.unwrap().is_none());
    assert_eq!(store.entries("e").len(), 1);
    leadership.resign().await.unwrap();
    assert!(b.elector.try_campaign("e").await.unwrap().is_some());
}

/// Two campaigns of one elector for one election: one leads, the other waits for it.
#[tokio::test(start_paused = true)]
async fn campaigns_of_one_elector_wait_for_each_other() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let first = host.lead().await;
    let elector = Arc::clone(&host.elector);
    let second = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
    sleep(TTL).await;
    assert!(!second.is_finished() && store.entries("e").len() == 1);
    first.resign().await.unwrap();
    assert!(within(TTL, second).await.unwrap().is_leader());
}

#[tokio::test(start_paused = true)]
async fn all_elections_of_an_elector_share_one_session() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let mut held = Vec::new();
    for n in 0..100 {
        held.push(host.elector.campaign(&format!("e{n}")).await.unwrap());
    }
    assert_eq!((store.sessions().len(), store.entry_count()), (1, 100));
    sleep(TTL * 3).await;
    assert!(held.iter().all(|leadership| leadership.is_leader()));
    host.link.cut();
    for leadership in &held {
        within(TTL, leadership.lost()).await;
    }
}

/// Hazard G18: elections whose names begin alike do not touch each other.
#[tokio::test(start_paused = true)]
async fn elections_with_a_common_name_prefix_are_separate() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let one = a.elector.campaign("e").await.unwrap();
    let two = within(TTL, b.elector.campaign("e.b")).await.unwrap();
    assert!(one.is_leader() && two.is_leader());
}

/// Ten candidates and an outage, in which no candidate leads. After it, exactly one leads.
#[tokio::test(start_paused = true)]
async fn after_an_outage_exactly_one_leads() {
    let store = MemoryStore::new();
    let hosts: Vec<_> = (0..10).map(|n| Host::new(&store, &format!("c{n}"))).collect();
    let leadership = hosts[0].lead().await;
    let mut queue = Vec::new();
    for host in &hosts[1..] {
        queue.push(host.enter_queue(&store).await);
    }
    for host in &hosts {
        host.link.cut();
    }
    sleep(TTL * 2).await;
    assert!(!leadership.is_leader() && queue.iter().all(|c| !c.is_finished()));
    drop(leadership);
    for host in &hosts {
        host.link.heal();
    }
    until("a candidate leads", || queue.iter().any(|c| c.is_finished())).await;
    sleep(TTL * 5).await;
    assert_eq!(queue.iter().filter(|c| c.is_finished()).count(), 1);
    assert_eq!(store.entries("e").len(), 9, "exactly one entry for each candidate");
}

/// Hazard Z5: the store was wiped. The election recovers.
#[tokio::test(start_paused = true)]
async fn an_election_recovers_from_a_wiped_store() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = a.lead().await;
    let next = b.enter_queue(&store).await;
    store.wipe();
    within(TTL, leadership.lost()).await;
    let second = within(TTL * 2, next).await.unwrap();
    assert!(second.is_leader() && second.fencing_token() > leadership.fencing_token());
}

/// The store is down at first: the candidate leads once it is up.
#[tokio::test(start_paused = true)]
async fn a_campaign_waits_for_its_store() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.link.cut();
    let elector = Arc::clone(&host.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
    sleep(Duration::from_secs(300)).await;
    assert!(!campaign.is_finished());
    host.link.heal();
    assert!(within(TTL, campaign).await.unwrap().is_leader());
}

/// After a resignation the same elector can campaign again at once, also with `try_campaign`.
#[tokio::test(start_paused = true)]
async fn an_election_is_free_once_a_resignation_is_confirmed() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    for _ in 0..100 {
        let leadership = host.elector.try_campaign("e").await.unwrap();
        leadership.expect("the election is not free").resign().await.unwrap();
    }
    host.elector.close().await;
    assert_nothing_left(&store).await;
}
