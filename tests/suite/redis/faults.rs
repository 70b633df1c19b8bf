//! Redis and Valkey servers that restart, lose records, freeze, and fail over; and what the doctor says of them.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector, Level};
use tenure_containers::{RedisAdmin, RedisCluster, RedisServer, RedisSettings, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{campaign::campaign, promptly, redis::begin_first_epoch, wait_for_heartbeats};
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(3);

async fn connect(url: &str) -> Arc<dyn Elector> {
    let url = format!("{url}{}attempt_timeout=500ms", if url.contains('?') { '&' } else { '?' });
    tenure::connect_with(&url, Config::new().with_ttl(TTL))
        .await
        .unwrap_or_else(|error| panic!("{url}: {error}"))
}

async fn first_epoch(server: &RedisServer) {
    begin_first_epoch(server.admin(), "tenure").await;
}

/// What takes the records away from a leader.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The server is killed, and has written nothing to its disk.
    Restart,
    /// The server is killed, and has only the records of a while ago.
    Rollback,
    /// Somebody deletes everything.
    Flush,
    /// The server's memory is full.
    Eviction,
}

/// Hazard C5: what the server forgets, nobody leads beside the leader that it has forgotten, and no token repeats. A newcomer, who knows nothing of
/// earlier epochs, waits as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_server_forgets_there_is_one_leader_and_tokens_rise() {
    for version in Version::REDIS {
        for loss in [Loss::Restart, Loss::Rollback, Loss::Flush, Loss::Eviction] {
            let server = RedisServer::start(version).await.unwrap();
            first_epoch(&server).await;
            let url = format!("redis://{}/0", server.endpoint());
            let (old, new) = (connect(&url).await, connect(&url).await);
            let earlier = within("leading", old.campaign("e")).await.unwrap();
            earlier.resign().await.unwrap();
            if let Loss::Rollback = loss {
                server.admin().run(&["SAVE"]).await.unwrap();
            }
            let leadership = within("leading", old.campaign("e")).await.unwrap();
            wait_for_heartbeats(&leadership).await;
            let token = leadership.fencing_token();
            match loss {
                Loss::Restart | Loss::Rollback => server.kill().await.unwrap().heal().await.unwrap(),
                Loss::Flush => server.admin().run(&["FLUSHALL"]).await.map(drop).unwrap(),
                // The hash is the only key.
                Loss::Eviction => {
                    let admin = server.admin();
                    admin.run(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]).await.unwrap();
                    admin.run(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
                    until("it is evicted", async || admin.info("evicted_keys").await.unwrap() != "0").await;
                    admin.run(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
                }
            }
            let began = Instant::now();
            let next = within("leading", new.campaign("e")).await.unwrap();
            assert!(!leadership.is_leader(), "{version} {loss:?}: two leaders");
            assert!(began.elapsed() >= TTL, "{version} {loss:?}: it has waited for {:?}", began.elapsed());
            assert!(
                next.fencing_token() > token,
                "{version} {loss:?}: {token} is not below {}",
                next.fencing_token()
            );
            next.resign().await.unwrap();
            for elector in [old, new] {
                elector.close().await;
            }
        }
    }
}

/// Hazard C5: also when no candidate is left that knows of the lost ones, and twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_when_all_is_lost_and_all_candidates_are_new() {
    let server = RedisServer::start(Version::Redis70).await.unwrap();
    let mut tokens = Vec::new();
    let elector = connect(&format!("redis://{}/0", server.endpoint())).await;
    for _ in 0..2 {
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        tokens.push(leadership.fencing_token().get());
        leadership.resign().await.unwrap();
        server.wipe().await.unwrap();
    }
    elector.close().await;
    assert!(tokens[0] < tokens[1] && tokens[0] >> 40 > 1_000, "{tokens:?}");
}

/// After a restart of a server whose writes are on its disk, the candidate that waits leads, with a higher token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_across_a_restart_with_an_append_only_file() {
    for version in Version::REDIS {
        let settings = RedisSettings::default().set("appendonly", "yes").set("appendfsync", "always");
        let server = RedisServer::start_with(version, &settings).await.unwrap();
        first_epoch(&server).await;
        let url = format!("redis://{}/0", server.endpoint());
        let (first, second) = (connect(&url).await, connect(&url).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        let token = leadership.fencing_token();
        let waiting = campaign(&second);
        until("it waits", async || first.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        server.kill().await.unwrap().heal().await.unwrap();
        within("the loss", leadership.lost()).await;
        drop(leadership);
        let next = within("leading", waiting).await.unwrap().unwrap();
        assert!(next.fencing_token() > token);
        next.resign().await.unwrap();
        for elector in [first, second] {
            elector.close().await;
        }
    }
}

/// A server that answers nothing for a moment costs no leadership, and one that answers nothing for longer ends it in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_ends_a_leadership_by_its_deadline() {
    for version in Version::REDIS {
        let server = RedisServer::start(version).await.unwrap();
        first_epoch(&server).await;
        let elector = connect(&format!("redis://{}/0", server.endpoint())).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        server.pause().await.unwrap().heal().await.unwrap();
        wait_for_heartbeats(&leadership).await;
        let frozen = server.pause().await.unwrap();
        promptly("the loss", leadership.lost()).await;
        // Nobody waits for the server.
        promptly("dropping", async { drop(leadership) }).await;
        let reading = promptly("reading", tokio::time::timeout(TTL, elector.leader("e"))).await;
        assert!(!matches!(reading, Ok(Ok(_))), "{reading:?}");
        frozen.heal().await.unwrap();
        within("leading", elector.campaign("e")).await.unwrap().resign().await.unwrap();
        elector.close().await;
    }
}

/// A stopped server that is started again is found, and closed connections are replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connections_are_replaced() {
    let server = RedisServer::start(Version::Valkey81).await.unwrap();
    first_epoch(&server).await;
    let elector = connect(&format!("redis://{}/0", server.endpoint())).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    for _ in 0..5 {
        server.admin().run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await.unwrap();
        server.admin().run(&["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
        wait_for_heartbeats(&leadership).await;
    }
    leadership.resign().await.unwrap();
    elector.close().await;
}

async fn set_epoch(admin: &RedisAdmin, number: u64) {
    let run = admin.info("run_id").await.unwrap();
    admin.run(&["HSET", "tenure", "epoch", &format!("{number} {run} 0123")]).await.unwrap();
}

/// Hazard C5: a failover whose former primary is gone is followed, as a restart is. `failover=unsafe` allows several hosts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_leads_on_if_the_former_primary_is_gone() {
    for version in Version::REDIS {
        let cluster = RedisCluster::start(version).await.unwrap();
        first_epoch(cluster.member(0)).await;
        let url = format!("redis://{}/0?failover=unsafe", cluster.endpoints().join(","));
        let (first, second) = (connect(&url).await, connect(&url).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        let token = leadership.fencing_token();
        cluster.wait_for_replica().await.unwrap();
        let _gone = cluster.member(0).kill().await.unwrap();
        cluster.promote(1).await.unwrap();
        let next = within("leading", second.campaign("e")).await.unwrap();
        assert!(!leadership.is_leader());
        assert!(next.fencing_token() > token);
        next.resign().await.unwrap();
        for elector in [first, second] {
            elector.close().await;
        }
    }
}

/// Hazard C5, and what the first line of the documentation says: a failover whose former primary lives on has two leaders, and their tokens can be equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_beside_a_living_primary_has_two_leaders_with_one_token() {
    let cluster = RedisCluster::start(Version::Redis70).await.unwrap();
    // Above what the time of day gives.
    set_epoch(cluster.member(0).admin(), 4_100_000).await;
    cluster.wait_for_replica().await.unwrap();
    cluster.promote(1).await.unwrap();
    // As after a restart.
    cluster.member(0).admin().run(&["HSET", "tenure", "epoch", "4100000 0 0"]).await.unwrap();
    let [a, b] = [0, 1].map(|index| format!("redis://{}/0", cluster.member(index).endpoint()));
    let (a, b) = (connect(&a).await, connect(&b).await);
    let (a, b) = (
        within("leading", a.campaign("e")).await.unwrap(),
        within("leading", b.campaign("e")).await.unwrap(),
    );
    assert!(a.is_leader() && b.is_leader());
    assert_eq!(a.fencing_token(), b.fencing_token());
}

/// A replica is waited for: it may be promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_not_used() {
    let cluster = RedisCluster::start(Version::Valkey81).await.unwrap();
    let elector = connect(&format!("redis://{}/0", cluster.member(1).endpoint())).await;
    let waiting = campaign(&elector);
    until("it says why", async || {
        elector
            .status()
            .last_error
            .is_some_and(|error| error.contains("its role is \"slave\"; name the primary"))
    })
    .await;
    cluster.promote(1).await.unwrap();
    let leadership = within("leading", waiting).await.unwrap().unwrap();
    // It becomes a replica under a living connection, and loses what it had.
    let primary = cluster.ip(0);
    cluster.member(1).admin().run(&["REPLICAOF", &primary, "6379"]).await.unwrap();
    within("the loss", leadership.lost()).await;
    let reading = tokio::spawn({
        let elector = elector.clone();
        async move { elector.leader("e").await }
    });
    until("a replica is not read", async || {
        elector.status().last_error.is_some_and(|error| error.contains("its role is \"slave\""))
    })
    .await;
    assert!(!reading.is_finished());
    reading.abort();
    elector.close().await;
}

/// A node of a cluster, and a Sentinel, are refused with the reason; the former unless `failover=unsafe`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_and_sentinel_are_refused() {
    for version in Version::REDIS {
        let settings = RedisSettings::default().set("cluster-enabled", "yes");
        let server = RedisServer::start_with(version, &settings).await.unwrap();
        let admin = server.admin();
        let url = format!("redis://{}/0", server.endpoint());
        let elector = connect(&url).await;
        let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err().to_string();
        assert!(refused.contains("a node of a cluster") && refused.contains("loses safety"), "{refused}");
        elector.close().await;
        let elector = connect(&format!("{url}?failover=unsafe")).await;
        let waiting = campaign(&elector);
        until("it says why", async || {
            elector
                .status()
                .last_error
                .is_some_and(|error| error.contains("name the one that has the slot of tenure"))
        })
        .await;
        admin.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await.unwrap();
        let leadership = within("leading", waiting).await.unwrap().unwrap();
        let [first, ..] = &elector.diagnose().await[..] else { panic!() };
        assert!(first.level == Level::Warning && first.text.contains("cluster"), "{first:?}");
        leadership.resign().await.unwrap();
        elector.close().await;

        let sentinel = RedisServer::start_with(version, &RedisSettings::sentinel()).await.unwrap();
        let elector = connect(&format!("redis://{}/0?failover=unsafe", sentinel.endpoint())).await;
        let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err().to_string();
        assert!(refused.contains("it is a Sentinel") && refused.contains("loses safety"), "{refused}");
        elector.close().await;
    }
}

/// The findings that are not good, and all texts.
async fn findings(elector: &Arc<dyn Elector>) -> (Vec<String>, String) {
    let found = elector.diagnose().await;
    let all = format!("{found:?}");
    (found.into_iter().filter(|found| found.level != Level::Good).map(|found| found.subject).collect(), all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_is_wrong() {
    for (version, name) in [(Version::Redis70, "Redis 7.0"), (Version::Valkey81, "Valkey 8.1")] {
        let settings = RedisSettings::default().set("appendonly", "yes");
        let server = RedisServer::start_with(version, &settings).await.unwrap();
        first_epoch(&server).await;
        let (admin, url) = (server.admin(), format!("redis://{}/0", server.endpoint()));
        let elector = connect(&url).await;
        let (wrong, all) = findings(&elector).await;
        assert!(wrong.is_empty(), "{all}");
        for expected in [
            name,
            "a primary with 0 replicas",
            "a failover to a replica loses safety",
            "appendfsync everysec",
        ] {
            assert!(all.contains(expected), "{all}");
        }
        elector.close().await;
        for (setting, value) in
            [("appendonly", "no"), ("maxmemory", "1gb"), ("maxmemory-policy", "allkeys-lru")]
        {
            admin.run(&["CONFIG", "SET", setting, value]).await.unwrap();
        }
        admin.set_user("app", "secret", &["~tenure", "+eval", "+evalsha", "+info", "+hget"]).await.unwrap();
        let app = connect(&format!("redis://app:secret@{}/0", server.endpoint())).await;
        let (wrong, all) = findings(&app).await;
        assert_eq!(wrong, ["persistence", "memory", "rights", "session"], "{all}");
        for expected in [
            "appendonly no",
            "allkeys-lru: the server removes the records",
            "may not use HSET, HDEL, HSCAN, TIME, PUBLISH, SUBSCRIBE",
        ] {
            assert!(all.contains(expected), "{all}");
        }
        app.close().await;

        let gone = server.kill().await.unwrap();
        let elector = connect(&url).await;
        let (wrong, all) = findings(&elector).await;
        assert!(wrong[0].starts_with("server 127.0.0.1") && all.contains("loses safety"), "{all}");
        elector.close().await;
        gone.heal().await.unwrap();
    }
    let cluster = RedisCluster::start(Version::Redis70).await.unwrap();
    let elector = connect(&format!("redis://{}/0", cluster.member(0).endpoint())).await;
    let (wrong, all) = findings(&elector).await;
    assert!(wrong[0].starts_with("server ") && all.contains("a primary with 1 replicas"), "{all}");
    elector.close().await;
}
