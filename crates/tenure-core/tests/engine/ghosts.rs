//! Requests that were given up and are carried out long after.

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
    faulty::{self, Call},
    host::{Host, TTL, nothing_left, pass, within},
};

/// So long a campaign is waited for here, before it is given up.
const PATIENCE: Duration = Duration::from_secs(6);

/// Hazard Z10: the ghosts of many elections are all buried.
#[tokio::test(start_paused = true)]
async fn the_ghosts_of_many_elections_are_buried() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    let given_up: Vec<_> = (0..2_000)
        .map(|n| {
            let elector = Arc::clone(&host.elector);
            tokio::spawn(async move {
                tokio::time::timeout(PATIENCE, elector.campaign(&format!("e{n}"))).await.is_err()
            })
        })
        .collect();
    for campaign in given_up {
        assert!(campaign.await.unwrap());
    }
    pass(TTL * 3).await;
    host.link.heal();
    pass(Duration::from_millis(1)).await;
    assert!(store.entry_count() >= 2_000, "the ghosts have come");
    pass(TTL * 5).await;
    assert_eq!(store.entry_count(), 0);
    within(TTL * 2, host.elector.close()).await;
    nothing_left(&store).await;
}

/// Hazards G10, Z10: a ghost that comes late, while withdrawals are repeated, blocks the election for no longer than a crash
/// would.
#[tokio::test(start_paused = true)]
async fn a_late_ghost_blocks_nobody_for_long() {
    let store = MemoryStore::new();
    let (host, other) = (Host::new(&store, "a"), Host::new(&store, "b"));
    host.elector.campaign("first").await.unwrap().resign().await.unwrap();
    host.link.set(&[Op::Enter], Direction::Request, Delivery::Hold);
    assert!(tokio::time::timeout(PATIENCE, host.elector.campaign("e")).await.is_err());
    pass(TTL * 8).await;
    host.link.heal();
    pass(Duration::from_millis(10)).await;
    assert!(!store.entries("e").is_empty(), "the ghost has come");
    assert!(within(TTL * 2, other.lead()).await.is_leader());
}

/// Hazard G31, case 10: a thousand campaigns are given up in a blip. Their withdrawals are repeated for a while, and then the
/// store is asked for nothing more than heartbeats.
#[tokio::test(start_paused = true)]
async fn repeated_withdrawals_end() {
    let store = MemoryStore::new();
    let left = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&left);
    let blip = Arc::new(AtomicBool::new(false));
    let unanswered = Arc::clone(&blip);
    let host = faulty::host(&store, "a", move |call| match call {
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
    pass(Duration::from_secs(120)).await;
    let asked = left.load(SeqCst);
    assert!((2_000..=20_000).contains(&asked), "asked {asked} times");
    pass(Duration::from_secs(3_600)).await;
    assert_eq!(left.load(SeqCst), asked, "it never ends");
    assert!(held.is_leader());
}

/// Hazard G31: the repetition ends, also when the store refuses to withdraw.
#[tokio::test(start_paused = true)]
async fn withdrawals_that_are_refused_are_not_repeated_for_ever() {
    let store = MemoryStore::new();
    let (asked, refuses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, refused) = (Arc::clone(&asked), Arc::clone(&refuses));
    let host = faulty::host(&store, "a", move |call| {
        if call == Call::Leave && refused.load(SeqCst) {
            counted.fetch_add(1, SeqCst);
            return Err(BackendError::new(BackendErrorKind::Unauthorized, "no"));
        }
        Ok(())
    });
    let held = host.elector.campaign("held").await.unwrap();
    host.link.set(&[Op::Enter], Direction::Response, Delivery::Drop);
    assert!(tokio::time::timeout(PATIENCE, host.elector.campaign("e")).await.is_err());
    host.link.heal();
    pass(TTL).await;
    refuses.store(true, SeqCst);
    pass(Duration::from_secs(3_600)).await;
    assert!(held.is_leader());
    let asked = asked.load(SeqCst);
    assert!(asked <= 60, "{asked} requests in an hour for one withdrawal");
}
