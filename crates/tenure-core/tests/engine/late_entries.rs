//! Late entries: requests of withdrawn campaigns that the store carries out much later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tenure_core::{
    Elector,
    memory::{Delivery, Direction, MemoryStore, Op},
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, sleep, within},
};

/// The time after which a campaign is dropped here.
const CAMPAIGN_TIMEOUT: Duration = Duration::from_secs(6);

/// Hazard Z10: the late entries of many elections are all removed.
#[tokio::test(start_paused = true)]
async fn late_entries_of_many_elections_are_removed() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    let given_up: Vec<_> = (0..2_000)
        .map(|n| {
            let elector = Arc::clone(&host.elector);
            tokio::spawn(async move {
                tokio::time::timeout(CAMPAIGN_TIMEOUT, elector.campaign(&format!("e{n}"))).await.is_err()
            })
        })
        .collect();
    for campaign in given_up {
        assert!(campaign.await.unwrap());
    }
    sleep(TTL * 3).await;
    host.link.heal();
    sleep(Duration::from_millis(1)).await;
    assert!(store.entry_count() >= 2_000, "the late entries have been made");
    sleep(TTL * 5).await;
    assert_eq!(store.entry_count(), 0);
    within(TTL * 2, host.elector.close()).await;
    assert_nothing_left(&store).await;
}

/// Hazards G10, Z10: an entry that is made while withdrawals are retried blocks the election no longer than a crash
/// would.
#[tokio::test(start_paused = true)]
async fn a_late_entry_blocks_an_election_no_longer_than_a_crash() {
    let store = MemoryStore::new();
    let (host, other) = (Host::new(&store, "a"), Host::new(&store, "b"));
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    assert!(tokio::time::timeout(CAMPAIGN_TIMEOUT, host.elector.campaign("e")).await.is_err());
    sleep(TTL * 8).await;
    host.link.heal();
    sleep(Duration::from_millis(10)).await;
    assert!(!store.entries("e").is_empty(), "the late entry has been made");
    assert!(within(TTL * 2, other.lead()).await.is_leader());
}

/// Hazard G31, case 10: 1000 campaigns are dropped in a short outage. Their withdrawals are retried for a limited time; after
/// that, the store receives only heartbeats.
#[tokio::test(start_paused = true)]
async fn repeated_withdrawals_end() {
    let store = MemoryStore::new();
    let left = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&left);
    let blip = Arc::new(AtomicBool::new(false));
    let unanswered = Arc::clone(&blip);
    let host = faulty_backend::host(&store, "a", move |call| match call {
        Call::Leave => {
            counted.fetch_add(1, SeqCst);
            Ok(())
        }
        Call::Enter if unanswered.load(SeqCst) => {
            Err(BackendError::new(BackendErrorKind::Unavailable, "no answer"))
        }
        _ => Ok(()),
    });
    let held = host.lead().await;
    blip.store(true, SeqCst);
    let given_up = (0..1_000).map(|n| {
        let elector = Arc::clone(&host.elector);
        let blip = Duration::from_millis(500);
        async move { tokio::time::timeout(blip, elector.campaign(&format!("e{n}"))).await.is_err() }
    });
    assert!(futures::future::join_all(given_up).await.into_iter().all(|given_up| given_up));
    blip.store(false, SeqCst);
    sleep(Duration::from_secs(120)).await;
    let asked = left.load(SeqCst);
    assert!((2_000..=20_000).contains(&asked), "{asked} requests");
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(left.load(SeqCst), asked, "the retries never end");
    assert!(held.is_leader());
}

/// Hazard G31: the retries end, also when the store refuses the withdrawal.
#[tokio::test(start_paused = true)]
async fn withdrawals_that_are_refused_are_not_repeated_for_ever() {
    let store = MemoryStore::new();
    let (asked, refuses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, refused) = (Arc::clone(&asked), Arc::clone(&refuses));
    let host = faulty_backend::host(&store, "a", move |call| {
        if call == Call::Leave && refused.load(SeqCst) {
            counted.fetch_add(1, SeqCst);
            return Err(BackendError::new(BackendErrorKind::Unauthorized, "no"));
        }
        Ok(())
    });
    let held = host.elector.campaign("held").await.unwrap();
    host.link.set(&[Op::Enter], Direction::Response, Delivery::Drop);
    assert!(tokio::time::timeout(CAMPAIGN_TIMEOUT, host.elector.campaign("e")).await.is_err());
    host.link.heal();
    sleep(TTL).await;
    refuses.store(true, SeqCst);
    sleep(Duration::from_secs(3_600)).await;
    assert!(held.is_leader());
    let asked = asked.load(SeqCst);
    assert!(asked <= 60, "{asked} requests in an hour for one withdrawal");
}
