//! An ensemble of three ZooKeeper servers, one of which is killed, frozen or isolated.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;

use tenure::{Config, Elector, Error};
use tenure_containers::{Version, ZookeeperEnsemble, ZookeeperSettings};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{ZookeeperProxy, wait_for_heartbeats};
use tokio::time::{Instant, timeout};

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

/// The connections of the sessions with this timeout: each session's id, its server, and when the connection was established.
async fn connections(ensemble: &ZookeeperEnsemble, ttl: Duration) -> BTreeSet<(String, usize, String)> {
    let mut found = BTreeSet::new();
    for index in 0..3 {
        let text = ensemble.member(index).admin().four_letter_command("cons").await.unwrap();
        for line in text.lines() {
            let value = |key: &str| {
                let (_, rest) = line.split_once(&format!("{key}="))?;
                rest.split([',', ')']).next().map(str::to_owned)
            };
            if value("to") == Some(ttl.as_millis().to_string())
                && let (Some(session), Some(established)) = (value("sid"), value("est"))
            {
                found.insert((session, index, established));
            }
        }
    }
    found
}

/// Hazard Z21: the whole ensemble stalls for 1.0 s, then for 1.5 s, at a TTL of 5 s. The leader keeps its leadership, and neither
/// it nor any of ten waiting candidates gets another connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_that_stalls_as_a_whole_breaks_no_connection() {
    const TTL: Duration = Duration::from_secs(5);
    let ensemble = ensemble().await;
    for stall in [1_000, 1_500].map(Duration::from_millis) {
        let endpoints = ensemble.endpoints();
        let leader = connect(&endpoints, TTL.as_secs()).await;
        let leadership = within("leading", leader.campaign("e")).await.unwrap();
        let followers = join_all((0..10).map(|_| connect(&endpoints, TTL.as_secs()))).await;
        let campaigns = followers.iter().cloned().map(|follower| async move { follower.campaign("e").await });
        let waiting: Vec<_> = campaigns.map(tokio::spawn).collect();
        until("they wait", async || leader.candidates("e").await.unwrap().len() == 11).await;
        wait_for_heartbeats(&leadership).await;
        let before = connections(&ensemble, TTL).await;
        assert_eq!(before.len(), 11, "{before:?}");
        let deadline = leadership.deadline();
        until("a heartbeat was proven", async || leadership.deadline() > deadline).await;
        let paused = join_all((0..3).map(|index| ensemble.member(index).pause())).await;
        let lost = timeout(stall, leadership.lost()).await;
        assert!(lost.is_err(), "{lost:?} during a stall of {stall:?}");
        join_all(paused.into_iter().map(|fault| fault.unwrap().heal())).await;
        wait_for_heartbeats(&leadership).await;
        let after = connections(&ensemble, TTL).await;
        assert!(after.is_superset(&before), "{before:?} became {after:?} after {stall:?}");
        within("resigning", leadership.resign()).await.unwrap();
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        join_all(waiting).await;
        join_all(followers.iter().map(|follower| follower.close())).await;
        leader.close().await;
    }
}

/// Hazard Z21: one server of three is frozen alone, a follower to which the leader's session is connected. The session moves to
/// another server in time, at a TTL of 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_whose_follower_is_frozen_keeps_its_leaderships() {
    const TTL: Duration = Duration::from_secs(5);
    let ensemble = ensemble().await;
    for _ in 0..3 {
        let follower = (ensemble.leader().await.unwrap() + 1) % 3;
        let elector = loop {
            let elector = connect(&ensemble.endpoints(), TTL.as_secs()).await;
            elector.check().await.unwrap();
            if connections(&ensemble, TTL).await.iter().any(|(_, index, _)| *index == follower) {
                break elector;
            }
            elector.close().await;
        };
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        wait_for_heartbeats(&leadership).await;
        let frozen = ensemble.member(follower).pause().await.unwrap();
        wait_for_heartbeats(&leadership).await;
        within("resigning", leadership.resign()).await.unwrap();
        elector.close().await;
        frozen.heal().await.unwrap();
    }
}

/// Hazard Z22: sessions of servers with `localSessionsEnabled` that are not upgraded cannot have entries. That is refused at once,
/// in words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensemble_with_local_sessions_only_is_refused() {
    let settings = ZookeeperSettings::default().set("localSessionsEnabled", "true");
    let ensemble = ZookeeperEnsemble::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let elector = connect(&ensemble.endpoints(), 5).await;
    let refused = within("the refusal", elector.campaign("e")).await.unwrap_err();
    let Error::Refused(reason) = &refused else { panic!("{refused:?}") };
    assert!(reason.to_string().contains("localSessionsUpgradingEnabled=true"), "{reason}");
    elector.close().await;
}
