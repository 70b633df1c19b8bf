//! Values that are changed while a candidate enters, waits or leads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tenure_core::{
    CampaignOptions, Candidate, Elector, Error,
    memory::{Delivery, Direction, MemoryStore, Op},
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, sleep, until, within},
};

/// The values of the candidates, the leader's first.
fn values(store: &MemoryStore) -> Vec<String> {
    let entries = store.entries("e");
    let decode = |payload: &[u8]| Candidate::decode("", "", payload, None).value_lossy().into_owned();
    entries.iter().map(|entry| decode(&entry.payload)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_waiting_candidate_keeps_its_place_when_its_value_changes() {
    let store = MemoryStore::new();
    let (a, b, c) = (Host::new(&store, "a"), Host::new(&store, "b"), Host::new(&store, "c"));
    let leader = a.lead().await;
    let next = b.enter_queue(&store).await;
    let _last = c.enter_queue(&store).await;
    let before = store.entries("e")[1].clone();
    for value in ["one", "", "three"] {
        b.elector.set_value("e", value.into()).await.unwrap();
        assert_eq!(values(&store), ["", value, ""]);
    }
    a.elector.set_value("e", "leads".into()).await.unwrap();
    assert_eq!(values(&store), ["leads", "three", ""]);
    let after = store.entries("e")[1].clone();
    assert_eq!((after.revision, after.nonce), (before.revision, before.nonce));
    leader.resign().await.unwrap();
    let leadership = within(TTL, next).await.unwrap();
    assert_eq!(leadership.fencing_token().get(), before.revision);
    assert_eq!(values(&store), ["three", ""]);
}

/// A value that was set before the candidate enters, or between two of its terms.
#[tokio::test(start_paused = true)]
async fn a_value_set_without_an_entry_is_that_of_the_next_one() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", Default::default(), |c| c.with_value("configured"));
    host.elector.set_value("e", "first".into()).await.unwrap();
    assert_eq!(store.sessions().len(), 0, "no request was needed");
    let leadership = host.lead().await;
    assert_eq!(values(&store), ["first"]);
    leadership.set_value("of this term").await.unwrap();
    leadership.resign().await.unwrap();
    let leadership = host.lead().await;
    assert_eq!(values(&store), ["first"]);
    leadership.resign().await.unwrap();
    host.elector.set_value("e", "second".into()).await.unwrap();
    let other = host.elector.campaign("f").await.unwrap();
    assert_eq!(host.elector.leader("f").await.unwrap().unwrap().value_lossy(), "configured");
    other.resign().await.unwrap();
    let _leadership = host.lead().await;
    assert_eq!(values(&store), ["second"]);
}

/// Whatever was set last counts.
#[tokio::test(start_paused = true)]
async fn the_last_value_counts() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leader = a.lead().await;
    b.elector.set_value("e", "earlier".into()).await.unwrap();
    let elector = Arc::clone(&b.elector);
    let options = CampaignOptions::new().with_value("of the campaign");
    let next = tokio::spawn(async move { elector.campaign_with("e", options).await.unwrap().unwrap() });
    until("it waits", || values(&store) == ["", "of the campaign"]).await;
    // Its own value also when it has to enter again.
    store.delete_entry("e", store.entries("e")[1].revision);
    until("it waits again", || values(&store) == ["", "of the campaign"]).await;
    b.elector.set_value("e", "later".into()).await.unwrap();
    assert_eq!(values(&store), ["", "later"]);
    store.delete_entry("e", store.entries("e")[1].revision);
    until("it waits again", || values(&store) == ["", "later"]).await;
    leader.resign().await.unwrap();
    let leadership = within(TTL, next).await.unwrap();
    leadership.set_value("of the term").await.unwrap();
    assert_eq!(values(&store), ["of the term"]);
    b.elector.set_value("e", "last".into()).await.unwrap();
    assert_eq!(values(&store), ["last"]);
}

/// A campaign that queues up behind another one of the same elector has the value that was set meanwhile.
#[tokio::test(start_paused = true)]
async fn a_value_reaches_campaigns_that_have_no_entry_yet() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let first = host.lead().await;
    let elector = Arc::clone(&host.elector);
    let options = CampaignOptions::new().with_value("of the campaign");
    let second = tokio::spawn(async move { elector.campaign_with("e", options).await.unwrap().unwrap() });
    sleep(Duration::from_millis(10)).await;
    host.elector.set_value("e", "later".into()).await.unwrap();
    first.resign().await.unwrap();
    let _second = within(TTL, second).await.unwrap();
    assert_eq!(values(&store), ["later"]);
}

/// The value changes while the request to enter, or its answer, is in flight. The entry gets it, and no second entry is made.
#[tokio::test(start_paused = true)]
async fn a_value_set_while_entering_is_stored_in_the_same_entry() {
    for direction in [Direction::Request, Direction::Response] {
        let store = MemoryStore::new();
        let host = Host::new(&store, "a");
        host.link.set(&[Op::Enter], direction, Delivery::Hold);
        let elector = Arc::clone(&host.elector);
        let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
        sleep(Duration::from_secs(1)).await;
        host.elector.set_value("e", "new".into()).await.unwrap();
        // The request is repeated after its timeout; both are carried out.
        sleep(Duration::from_secs(5)).await;
        let nonces: Vec<u128> = store.entries("e").iter().map(|entry| entry.nonce).collect();
        host.link.heal();
        let leadership = within(TTL, campaign).await.unwrap();
        until("it is stored", || values(&store) == ["new"]).await;
        assert!(nonces.iter().all(|nonce| *nonce == store.entries("e")[0].nonce));
        leadership.resign().await.unwrap();
        sleep(TTL).await;
        assert_eq!(store.entry_count(), 0, "{direction:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_enters_again_has_the_new_value() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _leader = a.lead().await;
    let _next = b.enter_queue(&store).await;
    b.elector.set_value("e", "new".into()).await.unwrap();
    let entry = store.entries("e")[1].clone();
    store.delete_entry("e", entry.revision);
    until("it has entered again", || values(&store) == ["", "new"]).await;
    assert_ne!(store.entries("e")[1].nonce, entry.nonce);
    store.expire_session(entry.session);
    until("it has entered again", || values(&store) == ["", "new"]).await;
    // Its entry is deleted just before the value is set, and the engine does not know that yet.
    b.link.set(&[Op::Watch], Direction::Response, Delivery::Drop);
    store.delete_entry("e", store.entries("e")[1].revision);
    within(TTL, b.elector.set_value("e", "newer".into())).await.unwrap();
    b.link.heal();
    until("it has entered again", || values(&store) == ["", "newer"]).await;
}

/// Values are stored in the order in which they were set, however late a request is carried out.
#[tokio::test(start_paused = true)]
async fn values_are_stored_in_order_through_an_outage() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leader = a.lead().await;
    let next = b.enter_queue(&store).await;
    b.link.set(&[Op::Update], Direction::Request, Delivery::Fail);
    let mut calls = Vec::new();
    for value in ["one", "two", "three"] {
        let elector = Arc::clone(&b.elector);
        calls.push(tokio::spawn(async move { elector.set_value("e", value.into()).await }));
        sleep(Duration::from_millis(200)).await;
    }
    // The caller of the last one has gone: the value is stored all the same.
    assert!(b.elector.set_value("e", "four".into()).now_or_never().is_none());
    sleep(Duration::from_secs(2)).await;
    assert!(calls.iter().all(|call| !call.is_finished()));
    assert_eq!(values(&store), ["", ""]);
    // It begins to lead meanwhile.
    leader.resign().await.unwrap();
    let leadership = within(TTL, next).await.unwrap();
    b.link.heal();
    for call in calls {
        within(TTL, call).await.unwrap().unwrap();
    }
    assert_eq!(values(&store), ["four"]);
    sleep(TTL).await;
    assert_eq!(values(&store), ["four"]);
    assert!(leadership.is_leader());
}

/// However often a value is set during an outage, and however often its caller gives up, one request at a time is sent.
#[tokio::test(start_paused = true)]
async fn an_outage_piles_up_no_values() {
    let store = MemoryStore::new();
    let (fails, updates) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (failing, counted) = (Arc::clone(&fails), Arc::clone(&updates));
    let host = faulty_backend::host(&store, "a", move |call| match call {
        Call::Update => {
            counted.fetch_add(1, SeqCst);
            let outage = || BackendError::new(BackendErrorKind::Unavailable, "the store is down");
            if failing.load(SeqCst) { Err(outage()) } else { Ok(()) }
        }
        _ => Ok(()),
    });
    let leadership = host.lead().await;
    for n in 0..1_000 {
        assert!(host.elector.set_value("e", format!("{n}").into()).now_or_never().is_none());
        sleep(Duration::from_millis(10)).await;
    }
    let during = updates.load(SeqCst);
    assert!((3..50).contains(&during), "{during} requests in 10 s");
    fails.store(false, SeqCst);
    until("the last is stored", || values(&store) == ["999"]).await;
    sleep(TTL).await;
    assert!(updates.load(SeqCst) <= during + 3 && leadership.is_leader());
    assert_eq!(values(&store), ["999"]);
}

/// A panic of the backend while it stores a value is an error of that call, and the next value is stored.
#[tokio::test(start_paused = true)]
async fn a_panic_while_storing_a_value_is_an_error() {
    let store = MemoryStore::new();
    let panics = Arc::new(AtomicBool::new(true));
    let panicking = Arc::clone(&panics);
    let host = faulty_backend::host(&store, "a", move |call| {
        assert!(call != Call::Update || !panicking.load(SeqCst), "on purpose");
        Ok(())
    });
    let leadership = host.lead().await;
    let error = within(TTL, host.elector.set_value("e", "one".into())).await.unwrap_err();
    assert!(error.to_string().contains("aborted"), "{error}");
    let error = within(TTL, leadership.set_value("two")).await.unwrap_err();
    assert!(error.to_string().contains("aborted"), "{error}");
    panics.store(false, SeqCst);
    within(TTL, host.elector.set_value("e", "three".into())).await.unwrap();
    assert_eq!(values(&store), ["three"]);
    assert!(leadership.is_leader());
}

/// A value that cannot be stored keeps neither a withdrawal nor the elector.
#[tokio::test(start_paused = true)]
async fn a_value_that_is_not_stored_yet_delays_nothing() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.set(&[Op::Update], Direction::Request, Delivery::Drop);
    let elector = Arc::clone(&host.elector);
    let pending = tokio::spawn(async move { elector.set_value("e", "new".into()).await });
    sleep(Duration::from_secs(1)).await;
    within(Duration::from_secs(1), leadership.resign()).await.unwrap();
    assert_eq!(store.entry_count(), 0);
    within(Duration::from_secs(1), host.elector.close()).await;
    assert!(matches!(within(TTL, pending).await.unwrap(), Err(Error::Closed)));
    assert!(matches!(host.elector.set_value("e", "late".into()).await, Err(Error::Closed)));
    assert_nothing_left(&store).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_value_ends_nothing_and_is_said() {
    let store = MemoryStore::new();
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = Arc::clone(&refuses);
    let host = faulty_backend::host(&store, "a", move |call| match call {
        Call::Update if refusing.load(SeqCst) => {
            Err(BackendError::new(BackendErrorKind::Unauthorized, "no permission to write"))
        }
        _ => Ok(()),
    });
    let leadership = host.lead().await;
    let error = host.elector.set_value("e", "refused".into()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error}");
    let error = leadership.set_value("refused").await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error}");
    assert!(matches!(
        host.elector.set_value("e", vec![0; 65 * 1024]).await,
        Err(Error::ValueTooLarge { .. })
    ));
    assert!(matches!(host.elector.set_value("..", Vec::new()).await, Err(Error::InvalidElection(_))));
    assert!(leadership.is_leader());
    assert_eq!(values(&store), [""]);
    refuses.store(false, SeqCst);
    host.elector.set_value("e", "accepted".into()).await.unwrap();
    assert_eq!(values(&store), ["accepted"]);
}

/// A resign request that was made just before the value is kept.
#[tokio::test(start_paused = true)]
async fn a_value_does_not_overwrite_a_resign_request() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.set(&[Op::Watch], Direction::Response, Delivery::Drop);
    host.elector.request_resign("e").await.unwrap();
    host.elector.set_value("e", "new".into()).await.unwrap();
    assert_eq!(values(&store), ["new"]);
    assert!(leadership.is_leader());
    host.link.heal();
    within(TTL, leadership.lost()).await;
}
