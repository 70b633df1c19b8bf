//! Stores that speak the protocol correctly and return wrong answers.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{BootClock, Clock as _, Config, Elector, Error};
use tenure_testkit::suite::until;

use crate::{
    assert_peak_memory_mib,
    fake_etcd::{FakeEtcd, WrongAnswer},
    is_printable, promptly,
};

const TTL: Duration = Duration::from_secs(3);

async fn connect(server: &FakeEtcd) -> Arc<dyn Elector> {
    let url = format!("etcd://{}/acme", server.endpoint);
    tenure::connect_with(&url, Config::new().with_ttl(TTL)).await.unwrap()
}

/// Asserts that campaigns, observers and reads go on or fail with a printable error, that closing takes seconds, and that
/// memory stays bounded.
async fn assert_survives(wrong: WrongAnswer) {
    let server = FakeEtcd::start(wrong).await;
    let elector = connect(&server).await;
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await.map(drop) })
    };
    let observing = {
        let mut leaders = elector.observe("e");
        tokio::spawn(async move { while leaders.next().await.is_some_and(|seen| seen.is_ok()) {} })
    };
    let reading = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move {
            drop(elector.leader("e").await);
            drop(elector.candidates("e").await);
            drop(elector.request_resign("e").await);
        })
    };
    let begun = std::time::Instant::now();
    until("three heartbeats have passed", async || {
        let error = elector.status().last_error;
        assert!(error.as_ref().is_none_or(|error| is_printable(error)), "{error:?}");
        begun.elapsed() > TTL
    })
    .await;
    promptly("closing", elector.close()).await;
    let outcome = promptly("the campaign's end", campaign).await;
    assert!(outcome.is_ok(), "it panicked: {outcome:?}");
    promptly("the observer's end", observing).await.unwrap();
    promptly("the answers", reading).await.unwrap();
    assert_peak_memory_mib(256);
}

macro_rules! survived {
    ($($name:ident: $wrong:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                assert_survives($wrong).await;
            }
        )*
    };
}

survived! {
    etcd_that_repeats_a_page_forever: WrongAnswer::SamePageForever;
    etcd_that_has_more_keys_forever: WrongAnswer::NewPageForever;
    etcd_whose_revisions_are_negative: WrongAnswer::Revision(-7);
    etcd_whose_revisions_are_zero: WrongAnswer::Revision(0);
    etcd_whose_revisions_are_the_least: WrongAnswer::Revision(i64::MIN);
    etcd_whose_revisions_are_the_largest: WrongAnswer::Revision(i64::MAX);
    etcd_that_grants_nothing: WrongAnswer::Ttl(0);
    etcd_that_grants_less_than_nothing: WrongAnswer::Ttl(i64::MIN);
    etcd_that_sends_events_forever: WrongAnswer::EndlessEvents;
    etcd_that_cancels_every_watch: WrongAnswer::CancelledWatches;
}

/// A repeated page is detected, so that the client does not read it forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_page_is_an_error() {
    let server = FakeEtcd::start(WrongAnswer::SamePageForever).await;
    let elector = connect(&server).await;
    let reading = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.candidates("e").await })
    };
    until("the status says so", async || {
        elector.status().last_error.is_some_and(|error| error.contains("no keys in order"))
    })
    .await;
    promptly("closing", elector.close()).await;
    assert!(matches!(promptly("the answer", reading).await.unwrap(), Err(Error::Closed)));
}

/// A granted TTL far above the requested one is limited, so that leadership ends soon after the store has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_excessive_granted_ttl_is_not_used() {
    for ttl in [1_000_000, i64::MAX] {
        let server = FakeEtcd::start(WrongAnswer::Ttl(ttl)).await;
        let elector = connect(&server).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        let left = leadership.deadline().since(BootClock.now());
        assert!(left <= Duration::from_secs(75), "{left:?}");
        drop(server);
        drop(leadership);
        promptly("closing", elector.close()).await;
    }
}
