//! `Elector::check`: a store that cannot be used is reported at once, in the words of the first campaign.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Elector, Error,
    memory::{Delivery, Direction, MemoryStore, Op, Proof},
    spi::{BackendError, BackendErrorKind},
};
use tokio::time::Instant;

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, sleep, within},
};

/// The default.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_passes_and_nothing_is_left() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    within(TTL, host.elector.check()).await.unwrap();
    assert_nothing_left(&store).await;
    let leadership = host.lead().await;
    let session = host.elector.status().session;
    within(TTL, host.elector.check()).await.unwrap();
    assert!(leadership.is_leader());
    assert_eq!(host.elector.status().session, session);
    leadership.resign().await.unwrap();
    host.elector.close().await;
    assert!(matches!(host.elector.check().await, Err(Error::Closed)));
    assert_nothing_left(&store).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_fails_in_time() {
    let store = MemoryStore::new();
    for (ops, delivery, text) in [
        (&Op::ALL[..], Delivery::Drop, "the store cannot be reached: opening a session: no answer within 5s"),
        (&[Op::Open], Delivery::Fail, "the store cannot be reached: Open: the connection was reset"),
        (&[Op::Read], Delivery::Fail, "the store cannot be reached: Read: the connection was reset"),
        (&[Op::Read], Delivery::Drop, "the store cannot be reached: reading the leader: no answer in time"),
    ] {
        let host = Host::new(&store, "a");
        host.link.set(ops, Direction::Request, delivery);
        let begun = Instant::now();
        let error = host.elector.check().await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)));
        assert_eq!(error.to_string(), text);
        assert!((REQUEST_TIMEOUT..=REQUEST_TIMEOUT * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert!(host.elector.status().last_error.is_some());
        host.link.heal();
        drop(host);
        assert_nothing_left(&store).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_no_failure() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    host.link.set(&[Op::Open], Direction::Request, Delivery::Fail);
    let elector = Arc::clone(&host.elector);
    let check = tokio::spawn(async move { elector.check().await });
    sleep(Duration::from_secs(2)).await;
    assert!(!check.is_finished());
    host.link.heal();
    within(REQUEST_TIMEOUT, check).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_the_words_of_the_first_campaign() {
    let store = MemoryStore::new();
    let wrong_password = |call| match call {
        Call::Open => Err(BackendError::new(BackendErrorKind::Unauthorized, "wrong password")),
        _ => Ok(()),
    };
    let unsuitable = || {
        let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap: TTL / 2 });
        Host::with(&store, "a", Default::default(), |c| c.with_grace_period(TTL / 3))
    };
    for host in [faulty_backend::host(&store, "a", wrong_password), unsuitable()] {
        let begun = Instant::now();
        let checked = host.elector.check().await.unwrap_err();
        let campaigned = host.elector.campaign("e").await.unwrap_err();
        assert!(matches!(checked, Error::Unauthorized(_) | Error::InvalidConfig(_)), "{checked}");
        assert_eq!(checked.to_string(), campaigned.to_string());
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}
