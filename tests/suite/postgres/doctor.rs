//! The diagnosis of PostgreSQL for an operator.

use std::time::Duration;

use futures::future::join_all;
use tenure::{
    Level,
    postgres::{PostgresConfig, PostgresStore},
    spi::BackendErrorKind,
};
use tenure_cas::CasStore as _;
use tenure_containers::{PostgresCluster, PostgresServer, PostgresSettings, Replication, Version};
use tenure_testkit::suite::until;
use tenure_tests::postgres_store::config;

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
        matches!(&found[..], [(subject, text)] if subject == "replication" && text.contains("nobody leads for the TTL and a tenth of it"))
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
