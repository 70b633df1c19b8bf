//! Three ZooKeeper servers, and one of them dead, frozen or cut off.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector};
use tenure_testkit::{
    containers::{Version, ZookeeperEnsemble},
    suite::{until, within},
};
use tokio::time::Instant;

async fn ensemble() -> ZookeeperEnsemble {
    ZookeeperEnsemble::start(Version::Zookeeper39).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect(endpoints: &[String], ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("zookeeper://{}/acme", endpoints.join(",")), config).await.unwrap()
}

/// With one server of three dead, then frozen, no campaign fails and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_with_one_server_down_elects_as_ever() {
    let ensemble = ensemble().await;
    for down in 0..3 {
        for freeze in [false, true] {
            let member = ensemble.member(down);
            let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
            for _ in 0..3 {
                let elector = connect(&ensemble.endpoints(), 5).await;
                for n in 0..3 {
                    let leadership =
                        within("leading with one server down", elector.campaign(&format!("e{n}"))).await;
                    within("resigning with one server down", leadership.unwrap().resign()).await.unwrap();
                }
                within("closing", elector.close()).await;
            }
            fault.heal().await.unwrap();
            ensemble.leader().await.unwrap();
        }
    }
}

/// Hazards Z1, Z18: a follower that is cut off from its peers goes on answering the pings of its clients;
/// a leader that reaches nobody else stops before the others can elect another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_that_cuts_a_follower_off_never_has_two_leaders() {
    let ensemble = ensemble().await;
    for _ in 0..3 {
        let leader = ensemble.leader().await.unwrap();
        let follower = (leader + 1) % 3;
        let a = connect(&[ensemble.member(follower).endpoint()], 6).await;
        let b = connect(&[ensemble.member(leader).endpoint()], 6).await;
        let first = within("leading", a.campaign("e")).await.unwrap();
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline).await;
        let next = tokio::spawn({
            let b = Arc::clone(&b);
            async move { b.campaign("e").await.map(|leadership| (Instant::now(), leadership)) }
        });
        until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
        let cut_off = ensemble.cut_off(follower).await.unwrap();
        let reason = within("the loss", first.lost()).await;
        let stopped = Instant::now();
        let (won, second) = within("the next leader", next).await.unwrap().unwrap();
        assert!(stopped < won, "{reason}: the next one led {:?} before", stopped - won);
        assert!(!first.is_leader() && second.fencing_token() > first.fencing_token());
        cut_off.heal().await.unwrap();
        drop((first, second));
        a.close().await;
        b.close().await;
    }
}

/// The ensemble's leader is killed; a leadership with a TTL of 10 s is kept, whichever server it was
/// connected to, and a waiting candidate still gets its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_whose_leader_is_killed_keeps_its_leaderships() {
    let ensemble = ensemble().await;
    for _ in 0..3 {
        let leader = ensemble.leader().await.unwrap();
        let (a, b) = (connect(&ensemble.endpoints(), 10).await, connect(&ensemble.endpoints(), 10).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let next = tokio::spawn({
            let b = Arc::clone(&b);
            async move { b.campaign("e").await }
        });
        until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline).await;
        let killed = ensemble.member(leader).kill().await.unwrap();
        ensemble.successor_of(leader).await.unwrap();
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader()).await;
        assert!(first.is_leader(), "{:?}", first.loss());
        first.resign().await.unwrap();
        let second = within("the hand-over", next).await.unwrap().unwrap();
        assert!(second.is_leader());
        second.resign().await.unwrap();
        a.close().await;
        b.close().await;
        killed.heal().await.unwrap();
    }
}
