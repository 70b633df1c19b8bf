//! Stores that speak well, and lie.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{BootClock, Clock as _, Config, Elector, Error};
use tenure_testkit::suite::until;

use crate::{
    is_fit_to_be_printed,
    liar::{Liar, Lie},
    never_held_more_than, soon,
};

const TTL: Duration = Duration::from_secs(3);

async fn connect(liar: &Liar) -> Arc<dyn Elector> {
    let url = format!("etcd://{}/acme", liar.endpoint);
    tenure::connect_with(&url, Config::new().with_ttl(TTL)).await.unwrap()
}

/// Whoever waits, observes and asks goes on without end, or is told in words; it closes in seconds, and memory stays
/// as it is.
async fn is_borne(lie: Lie) {
    let liar = Liar::start(lie).await;
    let elector = connect(&liar).await;
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await.map(drop) })
    };
    let observing = {
        let mut leaders = elector.observe("e");
        tokio::spawn(async move { while leaders.next().await.is_some_and(|seen| seen.is_ok()) {} })
    };
    let asking = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move {
            drop(elector.leader("e").await);
            drop(elector.candidates("e").await);
            drop(elector.request_resign("e").await);
        })
    };
    let begun = std::time::Instant::now();
    until("it was borne for three heartbeats", async || {
        let said = elector.status().last_error;
        assert!(said.as_ref().is_none_or(|said| is_fit_to_be_printed(said)), "{said:?}");
        begun.elapsed() > TTL
    })
    .await;
    soon("closing", elector.close()).await;
    let outcome = soon("the campaign's end", campaign).await;
    assert!(outcome.is_ok(), "it panicked: {outcome:?}");
    soon("the observer's end", observing).await.unwrap();
    soon("the answers", asking).await.unwrap();
    never_held_more_than(256);
}

macro_rules! borne {
    ($($name:ident: $lie:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                is_borne($lie).await;
            }
        )*
    };
}

borne! {
    etcd_that_has_more_of_the_same_for_ever: Lie::MoreOfTheSame;
    etcd_that_has_more_keys_for_ever: Lie::More;
    etcd_whose_revisions_are_negative: Lie::Revision(-7);
    etcd_whose_revisions_are_zero: Lie::Revision(0);
    etcd_whose_revisions_are_the_least: Lie::Revision(i64::MIN);
    etcd_whose_revisions_are_the_largest: Lie::Revision(i64::MAX);
    etcd_that_grants_nothing: Lie::Ttl(0);
    etcd_that_grants_less_than_nothing: Lie::Ttl(i64::MIN);
    etcd_that_tells_of_events_for_ever: Lie::Events;
    etcd_that_refuses_every_watch: Lie::NoWatch;
}

/// A page that comes again is told from the next one, so that nobody reads it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_come_again_are_an_error() {
    let liar = Liar::start(Lie::MoreOfTheSame).await;
    let elector = connect(&liar).await;
    let asking = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.candidates("e").await })
    };
    until("the status says so", async || {
        elector.status().last_error.is_some_and(|said| said.contains("no keys in order"))
    })
    .await;
    soon("closing", elector.close()).await;
    assert!(matches!(soon("the answer", asking).await.unwrap(), Err(Error::Closed)));
}

/// What was not asked for is not believed: leadership ends with a store that goes, whatever TTL that granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_that_was_not_asked_for_is_not_believed() {
    for ttl in [1_000_000, i64::MAX] {
        let liar = Liar::start(Lie::Ttl(ttl)).await;
        let elector = connect(&liar).await;
        let leadership = soon("leading", elector.campaign("e")).await.unwrap();
        let left = leadership.deadline().since(BootClock.now());
        assert!(left <= Duration::from_secs(75), "{left:?}");
        drop(liar);
        drop(leadership);
        soon("closing", elector.close()).await;
    }
}
