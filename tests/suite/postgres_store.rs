//! PostgreSQL as a store of records: swaps, epochs, notifications, poolers, and commits that wait.

use std::time::Duration;

use futures::{StreamExt as _, future::join_all};
use tenure::{
    Config, Level,
    postgres::{PostgresConfig, PostgresStore},
    spi::BackendErrorKind,
};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Swap, Version as RecordVersion};
use tenure_containers::{
    PostgresAdmin, PostgresCluster, PostgresServer, PostgresSettings, Replication, SharedPostgres, Version,
};
use tenure_testkit::suite::{until, within};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

const FIRST: Epoch = Epoch(0);

fn config(endpoint: &str, schema: &str) -> PostgresConfig {
    PostgresConfig::new([endpoint], "postgres", "postgres")
        .schema(schema)
        .attempt_timeout(Duration::from_secs(1))
}

fn new_schema() -> String {
    format!("store-{:016x}", fastrand::u64(..))
}

/// A store on the shared server of this version, which lives as long as what is returned.
async fn shared(version: Version) -> (PostgresStore, SharedPostgres, String) {
    let server = SharedPostgres::get(version).await.unwrap_or_else(|error| panic!("{error}"));
    let schema = new_schema();
    let store = PostgresStore::new(config(&server.endpoint(), &schema)).unwrap();
    (store, server, schema)
}

async fn create(store: &PostgresStore, key: &str) -> RecordVersion {
    let body = format!("{:032x}", fastrand::u128(..));
    match store.swap(key, None, epoch(store).await, body.as_bytes()).await.unwrap() {
        Swap::Done(version) => version,
        other => panic!("{other:?}"),
    }
}

async fn epoch(store: &PostgresStore) -> Epoch {
    match store.epoch().await.unwrap() {
        EpochState::Known(epoch) => epoch,
        other => panic!("{other:?}"),
    }
}

async fn keys(store: &PostgresStore, prefix: &str) -> Vec<String> {
    let mut keys: Vec<_> = store.list(prefix).await.unwrap().into_iter().map(|record| record.key).collect();
    keys.sort();
    keys
}

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

/// PgBouncer in transaction mode: requests work, nothing is left in its connections, and elections are polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_share_connections_by_pgbouncer() {
    let settings =
        PostgresSettings::default().pgbouncer(&[("default_pool_size", "1"), ("admin_users", "postgres")]);
    let server = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    let pgbouncer = PostgresAdmin::new(server.pgbouncer_endpoint().unwrap());
    let url = format!("{}?ttl=2s&poll_interval=50ms", pgbouncer.url());
    let electors = join_all((0..3).map(|_| tenure::connect(&url))).await;
    let electors: Vec<_> = electors.into_iter().map(Result::unwrap).collect();
    let first = within("leading", electors[0].campaign("e")).await.unwrap();
    let token = first.fencing_token();
    let waiting: Vec<_> = electors[1..]
        .iter()
        .map(|elector| {
            let elector = elector.clone();
            tokio::spawn(async move { elector.campaign("e").await?.resign().await })
        })
        .collect();
    until("both wait", async || electors[0].candidates("e").await.unwrap().len() == 3).await;
    tenure_tests::wait_for_heartbeats(&first).await;
    first.resign().await.unwrap();
    for waiting in waiting {
        within("the next ones lead", waiting).await.unwrap().unwrap();
    }
    let last = within("leading again", electors[0].campaign("e")).await.unwrap();
    assert!(last.fencing_token() > token);
    last.resign().await.unwrap();
    for setting in ["lock_timeout", "client_min_messages", "synchronous_commit"] {
        let (here, there) = (
            pgbouncer.value(&format!("SHOW {setting}")).await,
            server.admin().value(&format!("SHOW {setting}")).await,
        );
        assert_eq!(here.unwrap(), there.unwrap(), "{setting}");
    }
    for elector in electors {
        elector.close().await;
    }
    // Found out by a notification of its own: otherwise the hints would be there by then.
    let (direct, pooled) = (server.endpoint(), pgbouncer.endpoint());
    let [direct, pooled] =
        [direct.as_str(), pooled].map(|endpoint| PostgresStore::new(config(endpoint, "tenure")).unwrap());
    let console = pgbouncer.in_database("pgbouncer");
    let clients = async || {
        let clients = console.query("SHOW CLIENTS").await.unwrap();
        clients.iter().filter(|client| client[2].as_deref() == Some("postgres")).count()
    };
    assert!(pooled.changes("e/a").is_none());
    until("it listens, and sends a notification", async || clients().await == 2).await;
    until("it listens no longer", async || clients().await == 1).await;
    until("notifications are delivered", async || direct.changes("e/a").is_some()).await;
    assert!(pooled.changes("e/a").is_none());
    direct.close().await;
    pooled.close().await;
}

/// A transaction that holds an election's record, as a fenced one does, delays its swaps and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_go_on_while_a_record_is_locked() {
    let server = PostgresServer::start(Version::Postgres15).await.unwrap();
    let elector = tenure::connect_with(&server.admin().url(), Config::new().with_ttl(Duration::from_secs(2)))
        .await
        .unwrap();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let (client, connection) =
        tokio_postgres::connect(&server.admin().url(), tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute("BEGIN; SELECT * FROM tenure.records WHERE key = 'e/e' FOR SHARE").await.unwrap();
    let store = PostgresStore::new(config(&server.endpoint(), "tenure")).unwrap();
    let found = store.read("e/e", Freshness::Fresh).await.unwrap().unwrap();
    let refused = store.swap("e/e", Some(&found.version), FIRST, b"x").await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable);
    assert!(refused.to_string().contains("a transaction holds the record"), "{refused}");
    let changing = tokio::spawn({
        let handle = leadership.handle();
        async move { handle.set_value("new").await }
    });
    for _ in 0..3 {
        tenure_tests::wait_for_heartbeats(&leadership).await;
    }
    assert!(!changing.is_finished());
    client.batch_execute("COMMIT").await.unwrap();
    within("the change", changing).await.unwrap().unwrap();
    leadership.resign().await.unwrap();
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

/// The findings that are not good, by their subject, and their texts.
async fn findings(store: &PostgresStore) -> Vec<(String, String)> {
    let found = store.diagnose().await.into_iter().filter(|found| found.level != Level::Good);
    found
        .map(|found| (found.subject, format!("{} {}", found.text, found.advice.unwrap_or_default())))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_is_wrong() {
    let settings = PostgresSettings::default().set("fsync", "on").pgbouncer(&[]);
    let server = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    let admin = server.admin();
    let store = PostgresStore::new(config(&server.endpoint(), "tenure")).unwrap();
    assert_eq!(findings(&store).await, []);
    let all = format!("{:?}", store.diagnose().await);
    for expected in ["PostgreSQL 17.", "a primary, timeline 1", "no standby is connected", "delivered"] {
        assert!(all.contains(expected), "{all}");
    }
    let pooled = PostgresStore::new(config(&server.pgbouncer_endpoint().unwrap(), "tenure")).unwrap();
    let [(subject, text)] = &findings(&pooled).await[..] else { panic!() };
    assert!(subject == "notifications" && text.contains("not delivered, as through PgBouncer"), "{text}");

    admin
        .execute(
            "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA tenure TO app; GRANT SELECT ON ALL TABLES IN SCHEMA tenure TO app; \
             ALTER ROLE app SET statement_timeout = 300; ALTER ROLE app SET transaction_timeout = 300; \
             ALTER ROLE app SET idle_session_timeout = '1min'; ALTER TABLE tenure.records SET UNLOGGED; \
             ALTER ROLE app SET synchronous_commit = local",
        )
        .await
        .unwrap();
    for setting in ["fsync", "full_page_writes"] {
        admin.set(setting, "off").await.unwrap();
        until("it is off", async || admin.value(&format!("SHOW {setting}")).await.unwrap() == "off").await;
    }
    let app =
        PostgresConfig::new([server.endpoint()], "app", "postgres").attempt_timeout(Duration::from_secs(1));
    let app = PostgresStore::new(app).unwrap();
    let found = findings(&app).await;
    let subjects: Vec<_> = found.iter().map(|(subject, _)| subject.as_str()).collect();
    let timeouts = ["statement_timeout", "transaction_timeout", "idle_session_timeout"];
    assert_eq!(subjects, [&["fsync", "full_page_writes", "rights", "tables"][..], &timeouts].concat());
    assert!(
        format!("{:?}", app.diagnose().await).contains("synchronous_commit is local, and on for elections")
    );
    // The advice works.
    for (subject, text) in &found {
        if let Some((_, statements)) = text.split_once("run: ") {
            admin.execute(statements).await.unwrap_or_else(|error| panic!("{subject}: {error}"));
        }
    }
    for setting in ["fsync", "full_page_writes"] {
        admin.set(setting, "on").await.unwrap();
        until("it is on", async || admin.value(&format!("SHOW {setting}")).await.unwrap() == "on").await;
    }
    app.close().await;
    assert_eq!(findings(&app).await, []);
    let _killed = server.kill().await.unwrap();
    let subjects: Vec<_> = findings(&app).await.into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, [format!("host {}", server.endpoint()), "database".to_owned()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_of_two_primaries() {
    let settings = PostgresSettings::default().set("fsync", "on");
    let cluster =
        PostgresCluster::start_with(Version::Postgres15, Replication::Synchronous, &settings).await.unwrap();
    let endpoints = [0, 1].map(|index| cluster.member(index).endpoint());
    let config =
        PostgresConfig::new(endpoints, "postgres", "postgres").attempt_timeout(Duration::from_secs(1));
    let store = PostgresStore::new(config).unwrap();
    assert_eq!(findings(&store).await, []);
    let all = format!("{:?}", store.diagnose().await);
    assert!(
        all.contains("a standby, or read-only") && all.contains("synchronous with \\\"*\\\", 1 connected"),
        "{all}"
    );

    cluster.replicate_asynchronously(0).await.unwrap();
    until("replication is asynchronous", async || {
        let found = findings(&store).await;
        matches!(&found[..], [(subject, text)] if subject == "replication" && text.contains("nobody leads for one TTL"))
    })
    .await;
    cluster.promote(1).await.unwrap();
    let found = findings(&store).await;
    assert!(
        found.iter().any(|(subject, text)| subject == "hosts" && text.contains("more than one is a primary")),
        "{found:?}"
    );
}

/// Hazard G34: two clusters in one URL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_two_clusters_are_refused() {
    let servers = [Version::Postgres15, Version::Postgres17].map(PostgresServer::start);
    let servers = join_all(servers).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let endpoints: Vec<_> = servers.iter().map(PostgresServer::endpoint).collect();
    let store = PostgresStore::new(PostgresConfig::new(endpoints, "postgres", "postgres")).unwrap();
    let refused = store.epoch().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Invalid);
    assert!(
        refused.to_string().contains("belong to different clusters: two candidates could lead"),
        "{refused}"
    );
    assert!(findings(&store).await.iter().any(|(subject, _)| subject == "hosts"));
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

/// A pooler may go over to a server without the tables, and back. Nobody gives up for that.
#[tokio::test]
async fn tables_that_are_gone_are_waited_for() {
    let (store, server, schema) = shared(Version::Postgres15).await;
    create(&store, "e/a").await;
    server.admin().execute(&format!("ALTER TABLE \"{schema}\".records RENAME TO hidden")).await.unwrap();
    let missing = store.read("e/a", Freshness::Fresh).await.unwrap_err();
    assert_eq!(missing.kind(), BackendErrorKind::Unavailable, "{missing}");
    assert!(missing.to_string().contains("or the server is another one"), "{missing}");
    server.admin().execute(&format!("ALTER TABLE \"{schema}\".hidden RENAME TO records")).await.unwrap();
    assert!(store.read("e/a", Freshness::Fresh).await.unwrap().is_some());
}

/// Somebody holds a lock on one of the tables. Whoever would create the others waits for it, and no longer than it is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_cannot_go_on_ends() {
    let server = PostgresServer::start(Version::Postgres17).await.unwrap();
    let admin = server.admin();
    let store = PostgresStore::new(config(&server.endpoint(), "tenure")).unwrap();
    store.epoch().await.unwrap();
    store.close().await;
    admin.execute("DROP TABLE tenure.records").await.unwrap();
    let (client, connection) = tokio_postgres::connect(&admin.url(), tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute("BEGIN; LOCK TABLE tenure.epoch").await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure' AND wait_event_type = 'Lock'";
    let stores = [(); 3].map(|()| PostgresStore::new(config(&server.endpoint(), "tenure")).unwrap());
    let refusals = join_all(stores.iter().map(CasStore::epoch));
    let waits = until("they wait", async || admin.value(waiting).await.unwrap() != "0");
    let (refusals, ()) = tokio::join!(refusals, waits);
    for refused in refusals {
        assert_eq!(refused.unwrap_err().kind(), BackendErrorKind::Unavailable);
    }
    until("nothing waits", async || admin.value(waiting).await.unwrap() == "0").await;
    client.batch_execute("COMMIT").await.unwrap();
    for store in &stores {
        until("it goes on", async || store.epoch().await.is_ok()).await;
    }
    driver.abort();
}

/// An endpoint that stands for the server which `server` names at the time. A change resets all connections. Each connection begins late.
async fn relay(server: watch::Receiver<String>, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = server.clone();
            tokio::spawn(async move {
                sleep(delay).await;
                let upstream = server.borrow_and_update().clone();
                let Ok(mut upstream) = TcpStream::connect(upstream).await else { return };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut upstream) => {}
                    _ = server.changed() => {}
                }
            });
        }
    });
    endpoint
}

/// Hazard G34: a host becomes one of another cluster, whose timeline is the same. Its epochs are no later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_cluster_is_refused() {
    let servers = join_all(Version::POSTGRES.map(SharedPostgres::get)).await;
    let servers: Vec<_> = servers.into_iter().map(Result::unwrap).collect();
    let endpoints: Vec<_> = servers.iter().map(SharedPostgres::endpoint).collect();
    let (server, changes) = watch::channel(endpoints[0].clone());
    let store = PostgresStore::new(config(&relay(changes, Duration::ZERO).await, &new_schema())).unwrap();
    let version = create(&store, "e/a").await;
    create(&store, "s/a").await;
    server.send(endpoints[1].clone()).unwrap();
    for key in ["e/b", "s/b"] {
        until("it is refused", async || {
            let refused = store.swap(key, None, FIRST, b"1").await.unwrap_err();
            assert_eq!(refused.kind(), BackendErrorKind::Unavailable);
            refused.to_string().contains("it belongs to another cluster than before")
        })
        .await;
    }
    server.send(endpoints[0].clone()).unwrap();
    until("the former one is used", async || {
        store
            .read("e/a", Freshness::Fresh)
            .await
            .is_ok_and(|found| found.is_some_and(|found| found.version == version))
    })
    .await;
}

/// Two primaries live. Who starts then takes the later one, although it answers late, and names both.
#[tokio::test]
async fn the_later_of_two_primaries_is_awaited() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let writer = std::sync::Mutex::new(log.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let cluster = PostgresCluster::start(Version::Postgres15, Replication::Asynchronous).await.unwrap();
    cluster.promote(1).await.unwrap();
    let (_server, changes) = watch::channel(cluster.member(1).endpoint());
    let endpoints = [cluster.member(0).endpoint(), relay(changes, Duration::from_millis(800)).await];
    let store = PostgresStore::new(PostgresConfig::new(&endpoints, "postgres", "postgres")).unwrap();
    assert_eq!(epoch(&store).await, Epoch(1));
    create(&store, "s/a").await;
    let log = std::fs::read_to_string(log.path()).unwrap();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("several primaries")).collect();
    let [warning] = warnings[..] else { panic!("{log}") };
    let [former, later] = &endpoints;
    assert!(warning.contains(&format!("{former} (timeline 1) and {later} (timeline 2)")), "{warning}");
}

/// Makes the creation of records whose key begins with `e/stuck` wait until the gate is opened.
async fn close_gate(admin: &PostgresAdmin) {
    admin
        .execute(
            "CREATE TABLE gate (is_open bool); INSERT INTO gate VALUES (false); \
             CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             WHILE NOT (SELECT is_open FROM public.gate) LOOP PERFORM pg_sleep(0.02); END LOOP; RETURN NEW; END $$; \
             CREATE TRIGGER wait BEFORE INSERT ON tenure.records FOR EACH ROW \
             WHEN (starts_with(NEW.key, 'e/stuck')) EXECUTE FUNCTION wait()",
        )
        .await
        .unwrap();
}

async fn open_gate(admin: &PostgresAdmin) {
    admin.execute("UPDATE gate SET is_open = true").await.unwrap();
}

/// A server of the test's own whose gate is closed, and a store there.
async fn gated(attempt_timeout: Duration) -> (PostgresServer, PostgresStore) {
    let server = PostgresServer::start(Version::Postgres15).await.unwrap();
    let config = config(&server.endpoint(), "tenure").attempt_timeout(attempt_timeout);
    let store = PostgresStore::new(config).unwrap();
    store.epoch().await.unwrap();
    close_gate(server.admin()).await;
    (server, store)
}

/// A swap that waits, and a caller that does not.
async fn drop_stuck_swap(store: &PostgresStore, key: &str) {
    let dropped = timeout(Duration::from_millis(200), store.swap(key, None, FIRST, key.as_bytes())).await;
    assert!(dropped.is_err(), "{dropped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_do_not_wait_for_swaps_of_elections() {
    let (server, store) = gated(Duration::from_secs(60)).await;
    let stuck = async {
        assert!(matches!(store.swap("e/stuck", None, FIRST, b"1").await.unwrap(), Swap::Done(_)));
    };
    let heartbeats = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        until("it waits", async || server.admin().value(waiting).await.unwrap() == "1").await;
        for key in ["s/a", "s/b", "s/c"] {
            let swapped = within("a heartbeat", store.swap(key, None, FIRST, key.as_bytes())).await;
            assert!(matches!(swapped.unwrap(), Swap::Done(_)));
        }
        assert_eq!(server.admin().value(waiting).await.unwrap(), "1");
        open_gate(server.admin()).await;
    };
    tokio::join!(stuck, heartbeats);
}

/// Callers have time limits of their own, below that of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_replaced_although_no_caller_waits_long_enough() {
    let (_server, store) = gated(Duration::from_secs(2)).await;
    drop_stuck_swap(&store, "e/stuck").await;
    until("another connection is used", async || {
        let read = timeout(Duration::from_millis(800), store.read("e/a", Freshness::Fresh)).await;
        read.is_ok_and(|read| read.is_ok())
    })
    .await;
}

/// What was dropped is not answered yet, and counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_swaps_are_in_flight_although_callers_drop_them() {
    let (server, store) = gated(Duration::from_secs(60)).await;
    for number in 0..8 {
        drop_stuck_swap(&store, &format!("e/stuck{number}")).await;
    }
    open_gate(server.admin()).await;
    assert_eq!(keys(&store, "e/").await, [0, 1, 2, 3].map(|number| format!("e/stuck{number}")));
}

/// The former primary answers no more on as many connections as there may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_connections_do_not_hold_up_a_failover() {
    let cluster = PostgresCluster::start(Version::Postgres15, Replication::Asynchronous).await.unwrap();
    let endpoints = [0, 1].map(|index| cluster.member(index).endpoint());
    let config =
        PostgresConfig::new(endpoints, "postgres", "postgres").attempt_timeout(Duration::from_millis(500));
    let store = PostgresStore::new(config).unwrap();
    store.epoch().await.unwrap();
    close_gate(cluster.member(0).admin()).await;
    until("every connection is stuck", async || {
        let key = format!("e/stuck{:x}", fastrand::u64(..));
        let failed = store.swap(&key, None, FIRST, key.as_bytes()).await.unwrap_err();
        failed.to_string().contains("has not answered the requests on 4 connections")
    })
    .await;
    cluster.wait_for_replica(0).await.unwrap();
    cluster.promote(1).await.unwrap();
    until("the new primary is used", async || {
        store.epoch().await.is_ok_and(|epoch| epoch == EpochState::Known(Epoch(1)))
    })
    .await;
}

/// Connections that have ended do not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_replaced_again_and_again() {
    let server = PostgresServer::start(Version::Postgres15).await.unwrap();
    let store = PostgresStore::new(config(&server.endpoint(), "tenure")).unwrap();
    for _ in 0..10 {
        until("a request is answered", async || store.epoch().await.is_ok()).await;
        server.admin().terminate_connections().await.unwrap();
    }
}
