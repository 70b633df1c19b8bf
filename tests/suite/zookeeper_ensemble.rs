//! An ensemble of three ZooKeeper servers, one of which is killed, frozen or isolated.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector};
use tenure_containers::{Version, ZookeeperEnsemble, ZookeeperSettings};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::ZookeeperProxy;
use tokio::time::Instant;

async fn ensemble() -> ZookeeperEnsemble {
    ZookeeperEnsemble::start(Version::Zookeeper39).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect(endpoints: &[String], ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    tenure::connect_with(&format!("zookeeper://{}/acme", endpoints.join(",")), config).await.unwrap()
}

/// With one server of three killed, then frozen, no campaign fails and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_with_one_server_down_still_elects() {
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

/// Hazards Z1, Z18: a follower that is isolated from its peers goes on answering the pings of its clients. A leader that is
/// connected to it alone stops before the next one leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_with_an_isolated_follower_never_has_two_leaders() {
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
        let isolated = ensemble.isolate_from_peers(follower).await.unwrap();
        let reason = within("the loss", first.lost()).await;
        let stopped = Instant::now();
        let (won, second) = within("the next leader", next).await.unwrap().unwrap();
        assert!(stopped < won, "{reason}: the next one had led for {:?}", stopped - won);
        assert!(!first.is_leader() && second.fencing_token() > first.fencing_token());
        isolated.heal().await.unwrap();
        drop((first, second));
        a.close().await;
        b.close().await;
    }
}

/// The ensemble's leader is frozen, then killed; a leadership with a TTL of 5 s is kept, whichever server it was connected to,
/// and a waiting candidate still gets its turn. (The followers notice a frozen leader after two ticks of half a second. No
/// session outlasts an ensemble that takes longer than the session's timeout.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_whose_leader_is_frozen_or_killed_keeps_its_leaderships() {
    let settings = ZookeeperSettings::default().set("syncLimit", "2");
    let ensemble = ZookeeperEnsemble::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let url = format!("zookeeper://{}/acme?ttl=5s&tick=500ms", ensemble.endpoints().join(","));
    for freeze in [true, false, true, false] {
        let leader = ensemble.leader().await.unwrap();
        let (a, b) = (tenure::connect(&url).await.unwrap(), tenure::connect(&url).await.unwrap());
        let first = within("leading", a.campaign("e")).await.unwrap();
        let next = tokio::spawn({
            let b = Arc::clone(&b);
            async move { b.campaign("e").await }
        });
        until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline).await;
        let member = ensemble.member(leader);
        let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
        ensemble.successor_of(leader).await.unwrap();
        for _ in 0..3 {
            let deadline = first.deadline();
            until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader())
                .await;
            assert!(first.is_leader(), "frozen: {freeze}; {:?}; {:?}", first.loss(), a.status());
        }
        first.resign().await.unwrap();
        let second = within("the handover", next).await.unwrap().unwrap();
        assert!(second.is_leader());
        second.resign().await.unwrap();
        a.close().await;
        b.close().await;
        fault.heal().await.unwrap();
    }
}

/// A former leader of the ensemble that thaws answers for a moment from its old state: it does not know sessions and entries
/// that were created meanwhile. No leadership is lost by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_whose_old_leader_thaws_loses_no_leadership() {
    let ensemble = ensemble().await;
    for (round, older_session) in [false, true, false, true].into_iter().enumerate() {
        let leader = ensemble.leader().await.unwrap();
        let follower = (leader + 1) % 3;
        let proxy = ZookeeperProxy::start(ensemble.member(follower).endpoint()).await.unwrap();
        let elector = connect(&[proxy.endpoint()], 15).await;
        let other = match older_session {
            true => Some(within("leading", elector.campaign("other")).await.unwrap()),
            false => None,
        };
        let frozen = ensemble.member(leader).pause().await.unwrap();
        ensemble.successor_of(leader).await.unwrap();
        let leadership = within("leading", elector.campaign(&format!("e{round}"))).await.unwrap();
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
        // The client resumes its session at the frozen server, which answers when it thaws.
        let before = proxy.connections();
        proxy.redirect_to(ensemble.member(leader).endpoint());
        proxy.cut();
        until("the client has connected to it", async || proxy.connections() > before).await;
        let thawed = tokio::spawn(frozen.heal());
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || {
            leadership.deadline() > deadline || !leadership.is_leader()
        })
        .await;
        assert!(leadership.is_leader(), "round {round}: {:?}", leadership.loss());
        assert!(other.as_ref().is_none_or(|other| other.is_leader()));
        thawed.await.unwrap().unwrap();
        drop((leadership, other));
        elector.close().await;
    }
}

/// A leader whose slow connections are reset repeatedly keeps its leadership: a server that has resumed the session does not
/// lose it to the next server that the client tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_behind_slow_unreliable_connections_loses_no_leadership() {
    let ensemble = ensemble().await;
    let mut proxies = Vec::new();
    for endpoint in ensemble.endpoints() {
        let proxy = Proxy::start(endpoint).await.unwrap();
        proxy.delay(Duration::from_millis(70));
        proxies.push(proxy);
    }
    let endpoints: Vec<_> = proxies.iter().map(Proxy::endpoint).collect();
    let elector = connect(&endpoints, 6).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    for round in 0..8 {
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || {
            leadership.deadline() > deadline || !leadership.is_leader()
        })
        .await;
        assert!(leadership.is_leader(), "round {round}: {:?}; {:?}", leadership.loss(), elector.status());
        for proxy in &proxies {
            proxy.reset_connections();
        }
    }
    within("resigning", leadership.resign()).await.unwrap();
    elector.close().await;
}
