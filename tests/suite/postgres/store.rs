//! PostgreSQL as a store of records: swaps, epochs, notifications, and commits that wait.

use std::time::Duration;

use futures::{StreamExt as _, future::join_all};
use tenure::{
    postgres::{PostgresConfig, PostgresStore},
    spi::BackendErrorKind,
};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Swap};
use tenure_containers::{
    PostgresCluster, PostgresServer, PostgresSettings, Replication, SharedPostgres, Version,
};
use tenure_testkit::suite::{until, within};
use tenure_tests::postgres_store::{FIRST, config, create, epoch, keys, new_schema, shared};

/// Each outcome of each request.
#[tokio::test]
async fn a_swap_replaces_one_version() {
    for version in Version::POSTGRES {
        let (store, _server, _) = shared(version).await;
        assert_eq!(store.read("e/a", Freshness::Fresh).await.unwrap(), None);
        assert_eq!(epoch(&store).await, FIRST);
        let Swap::Done(first) = store.swap("e/a", None, FIRST, b"1").await.unwrap() else { panic!() };
        assert_eq!(store.swap("e/a", None, FIRST, b"2").await.unwrap(), Swap::Conflict);
        let found = store.read("e/a", Freshness::MayBeStale).await.unwrap().unwrap();
        assert_eq!((found.key.as_str(), &found.version, &found.body[..]), ("e/a", &first, &b"1"[..]));

        for expected in [None, Some(&first)] {
            let other = store.swap("e/a", expected, Epoch(1), b"3").await.unwrap();
            assert_eq!(other, Swap::EpochChanged, "before the version is compared");
        }
        let Swap::Done(second) = store.swap("e/a", Some(&first), FIRST, b"4").await.unwrap() else {
            panic!()
        };
        assert_ne!(first, second);
        assert_eq!(store.swap("e/a", Some(&first), FIRST, b"5").await.unwrap(), Swap::Conflict);
        assert_eq!(store.swap("e/b", Some(&first), FIRST, b"5").await.unwrap(), Swap::Conflict);
        assert_eq!(store.read("e/a", Freshness::Fresh).await.unwrap().unwrap().body, b"4");

        for key in ["s/%", "s/_", "s/A", "e/b", "S/a"] {
            create(&store, key).await;
        }
        assert_eq!(keys(&store, "s/").await, ["s/%", "s/A", "s/_"]);
        assert_eq!(keys(&store, "e/").await, ["e/a", "e/b"]);
        assert!(!store.delete("e/a", &first).await.unwrap());
        assert!(store.delete("e/a", &second).await.unwrap());
        assert!(!store.delete("e/a", &second).await.unwrap());
        assert_eq!(store.read("e/a", Freshness::Fresh).await.unwrap(), None);
        store.close().await;
    }
}

/// Every candidate that starts creates the tables, all at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_create_the_tables() {
    let server = SharedPostgres::get(Version::Postgres15).await.unwrap();
    let schema = new_schema();
    let stores: Vec<_> =
        (0..12).map(|_| PostgresStore::new(config(&server.endpoint(), &schema)).unwrap()).collect();
    for outcome in join_all(stores.iter().map(CasStore::epoch)).await {
        assert_eq!(outcome.unwrap(), EpochState::Known(FIRST));
    }
}

/// The isolation level of the role is a matter of its other statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_swaps_one_is_done_at_any_isolation_level() {
    let server = PostgresServer::start(Version::Postgres17).await.unwrap();
    for level in ["read committed", "repeatable read", "serializable"] {
        server.admin().set("default_transaction_isolation", level).await.unwrap();
        let schema = new_schema();
        let stores: Vec<_> =
            (0..8).map(|_| PostgresStore::new(config(&server.endpoint(), &schema)).unwrap()).collect();
        for store in &stores {
            store.epoch().await.unwrap();
        }
        let mut version = create(&stores[0], "e/a").await;
        for _ in 0..20 {
            let bodies: Vec<_> = stores.iter().map(|_| format!("{:032x}", fastrand::u128(..))).collect();
            let swaps = stores
                .iter()
                .zip(&bodies)
                .map(|(store, body)| store.swap("e/a", Some(&version), FIRST, body.as_bytes()));
            let outcomes = join_all(swaps).await;
            let mut done = Vec::new();
            for outcome in outcomes {
                match outcome.unwrap() {
                    Swap::Done(version) => done.push(version),
                    other => assert_eq!(other, Swap::Conflict, "{level}"),
                }
            }
            assert_eq!(done.len(), 1, "{level}");
            version = done.remove(0);
        }
    }
}

/// Only for elections: nobody waits for a heartbeat.
#[tokio::test]
async fn an_election_that_changes_gives_a_hint() {
    for version in Version::POSTGRES {
        let (store, server, schema) = shared(version).await;
        let admin = server.admin();
        assert!(store.changes("s/a").is_none());
        until("notifications are delivered", async || store.changes("e/a").is_some()).await;
        // It has sent nothing else yet.
        let listener = format!("SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN \"tenure.{schema}\"'");
        let pid = admin.value(&listener).await.unwrap();
        let (mut first, mut other) = (store.changes("e/a").unwrap(), store.changes("e/b").unwrap());
        let version = create(&store, "e/a").await;
        within("a hint of the creation", first.next()).await.unwrap();
        store.swap("e/a", Some(&version), FIRST, b"2").await.unwrap();
        within("a hint of the change", first.next()).await.unwrap();

        // The connection fails, and another is made.
        admin.execute(&format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
        assert_eq!(within("the end of the hints", first.next()).await, None);
        assert_eq!(
            within("the end of the hints", other.next()).await,
            None,
            "of another election there was none"
        );
        until("notifications are delivered again", async || store.changes("e/a").is_some()).await;
        let pid = admin.value(&listener).await.unwrap();
        let mut hints = store.changes("e/a").unwrap();
        store.swap("e/a", None, FIRST, b"3").await.unwrap();
        create(&store, "e/b").await;
        create(&store, "s/a").await;
        let version = store.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version;
        store.swap("e/a", Some(&version), FIRST, b"4").await.unwrap();
        within("a hint", hints.next()).await.unwrap();

        // Of another process, which ends at once.
        let other = PostgresStore::new(config(admin.endpoint(), &schema)).unwrap();
        let version = store.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version;
        other.swap("e/a", Some(&version), FIRST, b"5").await.unwrap();
        other.close().await;
        within("a hint", hints.next()).await.unwrap();

        store.close().await;
        assert_eq!(within("the end of the hints", hints.next()).await, None);
        let connections = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
        until("nobody listens", async || admin.value(&connections).await.unwrap() == "0").await;
    }
}

/// A client that listens and does not go on fills the queue of the cluster. Elections go on by polls, and by hints when it is empty again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_of_notifications_fails_no_swap() {
    let settings = PostgresSettings::default().set("max_notify_queue_pages", "64");
    let server = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    let admin = server.admin();
    let store = PostgresStore::new(config(&server.endpoint(), "tenure")).unwrap();
    assert!(store.changes("e/a").is_none());
    until("notifications are delivered", async || store.changes("e/a").is_some()).await;
    let (client, connection) = tokio_postgres::connect(&admin.url(), tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute("LISTEN another").await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    let fill = "SELECT pg_notify('another', repeat('x', 7000) || n) FROM generate_series(1, 20) AS n";
    let mut full = String::new();
    for _ in 0..100 {
        if let Err(error) = admin.execute(fill).await {
            full = error.to_string();
            break;
        }
    }
    assert!(full.contains("too many notifications in the NOTIFY queue"), "{full}");
    // Smaller ones, until none fits.
    until("it is full", async || {
        admin.execute("SELECT pg_notify('another', repeat('x', 10))").await.is_err()
    })
    .await;
    let mut version = create(&store, "e/a").await;
    for n in 0..8_u8 {
        let Swap::Done(next) = store.swap("e/a", Some(&version), FIRST, &[n]).await.unwrap() else {
            panic!()
        };
        version = next;
    }
    client.batch_execute("COMMIT").await.unwrap();
    // Asking for it makes room where everybody has read.
    let has_room = async || admin.value("SELECT pg_notification_queue_usage() < 0.5").await.unwrap() == "t";
    until("there is room", has_room).await;
    until("notifications are delivered", async || store.changes("e/a").is_some()).await;
    let mut hints = store.changes("e/a").unwrap();
    store.swap("e/a", Some(&version), FIRST, b"last").await.unwrap();
    within("a hint", hints.next()).await.unwrap();
    store.close().await;
    driver.abort();
}

/// The primary waits for its replica, which is frozen: nothing is acknowledged, whatever the database's settings say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_not_replicated_is_not_taken_as_done() {
    let cluster = PostgresCluster::start(Version::Postgres17, Replication::Synchronous).await.unwrap();
    let admin = cluster.member(0).admin();
    for setting in ["synchronous_commit = off", "client_min_messages = error", "lock_timeout = '1ms'"] {
        admin.execute(&format!("ALTER DATABASE postgres SET {setting}")).await.unwrap();
    }
    let store = PostgresStore::new(config(admin.endpoint(), "tenure")).unwrap();
    let version = create(&store, "e/a").await;
    let frozen = cluster.member(1).pause().await.unwrap();
    let unanswered = store.swap("e/a", Some(&version), FIRST, b"2").await.unwrap_err();
    assert_eq!(unanswered.kind(), BackendErrorKind::Unavailable, "{unanswered}");
    assert_eq!(
        store.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version,
        version,
        "it has not happened yet"
    );

    // An operator cancels the wait. The server then reports a success, and a warning.
    let waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let cancel = async |count: &str| {
        let waits = async || admin.value(&format!("SELECT count(*) {waiting}")).await.unwrap() == count;
        until("the commit waits", waits).await;
        admin.execute(&format!("SELECT pg_cancel_backend(pid) {waiting}")).await.unwrap();
    };
    cancel("1").await;
    until("it has happened", async || {
        store.read("e/a", Freshness::Fresh).await.is_ok_and(|found| found.unwrap().version != version)
    })
    .await;
    let (swapped, ()) = tokio::join!(store.swap("s/a", None, FIRST, b"1"), cancel("1"));
    let unknown = swapped.unwrap_err();
    assert_eq!(unknown.kind(), BackendErrorKind::Unavailable, "{unknown}");
    assert!(store.read("s/a", Freshness::Fresh).await.unwrap().is_some());

    // However often it is tried, few connections wait.
    for _ in 0..8 {
        store.swap(&format!("s/{:x}", fastrand::u64(..)), None, FIRST, b"1").await.unwrap_err();
    }
    let count: usize = admin.value(&format!("SELECT count(*) {waiting}")).await.unwrap().parse().unwrap();
    assert!((1..=4).contains(&count), "{count}");
    frozen.heal().await.unwrap();
    until("commits are answered again", async || store.swap("s/b", None, FIRST, b"1").await.is_ok()).await;
}

/// A promotion raises the epoch. What was sent before it is refused, and so is a former primary that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_raises_the_epoch() {
    for version in Version::POSTGRES {
        let cluster = PostgresCluster::start(version, Replication::Asynchronous).await.unwrap();
        let endpoints = [0, 1].map(|index| cluster.member(index).endpoint());
        let config = PostgresConfig::new(endpoints.clone(), "postgres", "postgres")
            .attempt_timeout(Duration::from_secs(1));
        let store = PostgresStore::new(config.clone()).unwrap();
        let version = create(&store, "e/a").await;
        cluster.wait_for_replica(0).await.unwrap();
        // The former primary is not stopped.
        cluster.promote(1).await.unwrap();
        let after = PostgresStore::new(config).unwrap();
        assert_eq!(epoch(&after).await, Epoch(1), "the later one of two primaries is chosen");
        assert_eq!(after.swap("e/a", Some(&version), FIRST, b"2").await.unwrap(), Swap::EpochChanged);
        let Swap::Done(second) = after.swap("e/a", Some(&version), Epoch(1), b"3").await.unwrap() else {
            panic!()
        };

        // Who is connected to the former one, which lives, learns of it, and never goes back.
        until("it has moved", async || {
            store.epoch().await.is_ok_and(|epoch| epoch == EpochState::Known(Epoch(1)))
        })
        .await;
        assert_eq!(store.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version, second);
        cluster.fence(1).await.unwrap();
        until("the former primary is refused", async || {
            let refused = store.epoch().await.unwrap_err();
            assert_eq!(refused.kind(), BackendErrorKind::Unavailable);
            refused.to_string().contains("it is an earlier primary (timeline 1, and 2 was seen)")
        })
        .await;
    }
}

/// The tables have come to another cluster, whose timeline is lower, as by `pg_upgrade` or from a dump.
#[tokio::test]
async fn the_epoch_rises_when_the_tables_are_moved() {
    let (store, server, schema) = shared(Version::Postgres15).await;
    let admin = server.admin();
    let version = create(&store, "e/a").await;
    let epochs = format!("\"{schema}\".epoch");
    // As it looks after two failovers there.
    admin.execute(&format!("UPDATE {epochs} SET cluster = 1, highest = 2")).await.unwrap();
    assert_eq!(store.swap("e/a", Some(&version), FIRST, b"2").await.unwrap(), Swap::EpochChanged);
    let moved = epoch(&store).await;
    assert!(moved > Epoch(2), "{moved:?}");
    assert_eq!(epoch(&store).await, moved, "once");
    assert!(matches!(store.swap("e/a", Some(&version), moved, b"3").await.unwrap(), Swap::Done(_)));
    // The same cluster with a lower timeline, as from a backup.
    admin.execute(&format!("UPDATE {epochs} SET highest = highest + 3")).await.unwrap();
    let restored = epoch(&store).await;
    assert!(restored > Epoch(moved.0 + 3), "{restored:?}");
    assert_eq!(epoch(&store).await, restored, "once");
}

/// The tables have come to another cluster. It fails over before the epoch that it has begun with was replicated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_is_lost_after_a_move_is_not_repeated() {
    let cluster = PostgresCluster::start(Version::Postgres17, Replication::Asynchronous).await.unwrap();
    let admin = cluster.member(0).admin();
    let [before, after] =
        [0, 1].map(|index| PostgresStore::new(config(&cluster.member(index).endpoint(), "tenure")).unwrap());
    create(&before, "e/a").await;
    let moved = "UPDATE tenure.epoch SET cluster = 1, base = -1, highest = 2";
    admin.execute(moved).await.unwrap();
    let lost = epoch(&before).await;
    admin.execute(moved).await.unwrap();
    cluster.wait_for_replica(0).await.unwrap();
    cluster.fence(0).await.unwrap();
    cluster.promote(1).await.unwrap();
    let next = epoch(&after).await;
    assert!(next > lost, "{next:?} {lost:?}");
    assert_eq!(epoch(&after).await, next, "once");
}
