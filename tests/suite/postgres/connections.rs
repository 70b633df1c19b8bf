//! The connections to PostgreSQL: poolers, several hosts, failovers, and requests that are not answered.

use std::time::Duration;

use futures::future::join_all;
use tenure::{
    Config,
    postgres::{PostgresConfig, PostgresStore},
    spi::BackendErrorKind,
};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Swap};
use tenure_containers::{
    PostgresAdmin, PostgresCluster, PostgresServer, PostgresSettings, Replication, SharedPostgres, Version,
};
use tenure_testkit::suite::{until, within};
use tenure_tests::{
    CapturedLog,
    postgres_store::{FIRST, config, create, epoch, keys, new_schema, shared},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

/// Hazard C7: PgBouncer in transaction mode: requests work, nothing is left in its connections, and elections are polled.
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

/// A listener that cannot connect is reported once, and only while requests are served: otherwise these report the outage.
#[tokio::test]
async fn a_listener_that_cannot_connect_is_reported_while_requests_are_served() {
    let (store, server, schema) = shared(Version::Postgres17).await;
    create(&store, "e/a").await;
    store.close().await;
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let warnings = || log.lines_with(" WARN ");
    let failures = || log.lines_with("cannot listen for notifications").len();

    let unreachable = PostgresStore::new(config("127.0.0.1:1", &schema)).unwrap();
    assert!(unreachable.changes("e/a").is_none());
    until("it fails", async || failures() == 4).await;
    assert_eq!(warnings(), Vec::<String>::new());
    unreachable.close().await;

    // One connection is for requests, and there is no other.
    let role = schema.replace('-', "_");
    let grants = format!(
        "CREATE ROLE {role} LOGIN CONNECTION LIMIT 1; GRANT USAGE ON SCHEMA {schema:?} TO {role}; \
         GRANT ALL ON ALL TABLES IN SCHEMA {schema:?} TO {role}"
    );
    server.admin().execute(&grants).await.unwrap();
    let limited = PostgresConfig::new([server.endpoint()], role.clone(), "postgres").schema(&schema);
    let limited = PostgresStore::new(limited).unwrap();
    assert!(limited.read("e/a", Freshness::Fresh).await.unwrap().is_some());
    assert!(limited.changes("e/a").is_none());
    until("it is reported", async || !warnings().is_empty()).await;
    until("it fails again", async || failures() == 4 + 4).await;
    let [warning] = &warnings()[..] else { panic!("{:?}", warnings()) };
    assert!(warning.contains("records are polled") && warning.contains("too many connections"), "{warning}");
    limited.close().await;
    server.admin().execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
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

/// Another transaction holds a lock on one of the tables. A candidate that creates the others waits for it for a bounded time.
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
