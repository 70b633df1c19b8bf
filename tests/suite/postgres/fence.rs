//! Transactions that only the leader can commit, on PostgreSQL.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tenure::{
    Config, Elector, Leadership,
    postgres::{
        FenceError, FenceQuery, fence,
        tokio_postgres::{Client, Error, NoTls, error::SqlState},
    },
};
use tenure_containers::{PostgresAdmin, PostgresServer, Version};
use tenure_testkit::{
    proxy::{Direction, Proxy},
    suite::{until, within},
};
use tokio::task::JoinSet;

const README: &str = include_str!("../../../crates/backends/postgres/README.md");

const TTL: Duration = Duration::from_secs(2);

/// A server with a table `t`, in which the leader writes.
async fn server(version: Version) -> PostgresServer {
    let server = PostgresServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
    server.admin().execute("CREATE TABLE t (n int)").await.unwrap();
    server
}

async fn elector(endpoint: &str) -> Arc<dyn Elector> {
    elector_with_ttl(endpoint, TTL).await
}

async fn elector_with_ttl(endpoint: &str, ttl: Duration) -> Arc<dyn Elector> {
    let url = format!("postgres://postgres@{endpoint}/postgres?poll_interval=50ms&attempt_timeout=1s");
    tenure::connect_with(&url, Config::new().with_ttl(ttl)).await.unwrap()
}

async fn connect(admin: &PostgresAdmin, user: &str) -> Client {
    let url = admin.url().replacen("postgres@", &format!("{user}@"), 1);
    let (client, connection) = tenure::postgres::tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn written(admin: &PostgresAdmin) -> Vec<String> {
    let rows = admin.query("SELECT n FROM t ORDER BY n").await.unwrap();
    rows.into_iter().map(|mut row| row.remove(0).unwrap()).collect()
}

/// A candidate that waits.
fn next_leader(elector: &Arc<dyn Elector>) -> tokio::task::JoinHandle<Leadership> {
    let elector = Arc::clone(elector);
    tokio::spawn(async move { elector.campaign("e").await.unwrap() })
}

/// Runs a query for a fence with sqlx, writes, and commits.
async fn write_with_sqlx(url: &str, query: &FenceQuery, n: i32) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let mut transaction = connection.begin().await?;
    sqlx::query(AssertSqlSafe(query.sql()))
        .bind(query.key())
        .bind(query.token())
        .bind(query.nonce())
        .bind(query.milliseconds())
        .execute(&mut *transaction)
        .await?;
    sqlx::query("INSERT INTO t VALUES ($1)").bind(n).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Hazards G1, G24: the check is in the transaction that writes. With both client libraries, and a role that can do nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_commits() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let admin = server.admin();
        let (first, second) = (elector(&server.endpoint()).await, elector(&server.endpoint()).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        let rights = README.rsplit_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
        let rights = rights.replace("billing", "app");
        admin.execute(&format!("CREATE ROLE app LOGIN; GRANT INSERT ON t TO app; {rights}")).await.unwrap();
        let mut client = connect(admin, "app").await;
        let mut transaction = client.transaction().await.unwrap();
        fence(&mut transaction, &leadership).await.unwrap();
        transaction.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
        // A second time in the same one, too.
        fence(&mut transaction, &leadership).await.unwrap();
        transaction.commit().await.unwrap();
        let url = admin.url().replacen("postgres@", "app@", 1);
        let query = FenceQuery::new(&leadership).unwrap();
        write_with_sqlx(&url, &query, 2).await.unwrap();
        assert_eq!(written(admin).await, ["1", "2"]);

        // After it has resigned, and after the next term.
        let handle = leadership.handle();
        leadership.resign().await.unwrap();
        for n in [3, 4] {
            let refused = write_with_sqlx(&url, &query, n).await.unwrap_err();
            let refused = refused.as_database_error().unwrap();
            assert_eq!(refused.code().as_deref(), Some("22P02"));
            assert!(refused.message().contains("this leadership is over"), "{refused}");
            let mut transaction = client.transaction().await.unwrap();
            let lost = fence(&mut transaction, &handle).await.unwrap_err();
            assert!(matches!(lost, FenceError::Lost(_)), "{lost:?}");
            transaction.rollback().await.unwrap();
            if n == 3 {
                let next = within("leading", second.campaign("e")).await.unwrap();
                write_with_sqlx(&url, &FenceQuery::new(&next).unwrap(), 9).await.unwrap();
                next.resign().await.unwrap();
            }
        }
        assert_eq!(written(admin).await, ["1", "2", "9"]);
    }
}

/// A term that is over in the database only, because an operator has removed the entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_decides() {
    let server = server(Version::Postgres17).await;
    // Without hints and polls the leader does not notice.
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let leader = elector_with_ttl(&proxy.endpoint(), 10 * TTL).await;
    let leadership = within("leading", leader.campaign("e")).await.unwrap();
    proxy.blackhole(Direction::Both);
    let record = "convert_from(body, 'UTF8')::jsonb";
    for changed in [
        format!("{record} || '{{\"token\": 7}}'"),
        format!("{record} || '{{\"queue\": []}}'"),
        "'{}'::jsonb".to_owned(),
    ] {
        let change = format!(
            "UPDATE tenure.records SET body = convert_to(({changed})::text, 'UTF8') WHERE key = 'e/e'"
        );
        server.admin().execute(&change).await.unwrap();
        let mut client = connect(server.admin(), "postgres").await;
        let mut transaction = client.transaction().await.unwrap();
        let over = fence(&mut transaction, &leadership).await.unwrap_err();
        assert!(matches!(over, FenceError::Over), "{over:?}");
        let failed = transaction.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap_err();
        assert_eq!(failed.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
        // PostgreSQL calls this a success, and rolls back.
        let _ = transaction.commit().await;
        assert!(written(server.admin()).await.is_empty());
    }
    server.admin().execute("DELETE FROM tenure.records").await.unwrap();
    let mut client = connect(server.admin(), "postgres").await;
    let mut transaction = client.transaction().await.unwrap();
    let over = fence(&mut transaction, &leadership).await.unwrap_err();
    assert!(matches!(over, FenceError::Over), "{over:?}");
    drop(leadership);
}

/// Nobody else becomes the leader between the fence and the commit, neither by a handover nor by a takeover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_waits_for_the_commit() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let admin = server.admin();
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure' AND wait_event_type = 'Lock'";
        for resigns in [true, false] {
            let proxy = Proxy::start(server.endpoint()).await.unwrap();
            let (first, second) = (elector(&proxy.endpoint()).await, elector(&server.endpoint()).await);
            let leadership = within("leading", first.campaign("e")).await.unwrap();
            let next = next_leader(&second);
            until("it waits", async || second.candidates("e").await.unwrap().len() == 2).await;
            let query = FenceQuery::new(&leadership).unwrap();
            let mut client = connect(admin, "postgres").await;
            // As of a client whose own timeouts are long. It is not frozen.
            let transaction = client.transaction().await.unwrap();
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                [&query.key(), &query.token(), &query.nonce(), &600_000];
            transaction.query(query.sql(), &parameters).await.unwrap();
            match resigns {
                true => leadership.request_resign(),
                false => proxy.blackhole(Direction::Both),
            }
            let resigning = tokio::spawn(async move { leadership.resign().await });
            until("a swap of the record waits", async || admin.value(waits).await.unwrap() != "0").await;
            until("it has ended", async || admin.value(waits).await.unwrap() == "0").await;
            until("it is tried again", async || admin.value(waits).await.unwrap() != "0").await;
            assert!(!next.is_finished());
            transaction.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
            transaction.commit().await.unwrap();
            let next = within("the next one leads", next).await.unwrap();
            assert!(next.fencing_token().get() > u64::try_from(query.token()).unwrap());
            next.resign().await.unwrap();
            proxy.heal();
            let _ = within("the resignation", resigning).await.unwrap();
            for elector in [first, second] {
                elector.close().await;
            }
        }
        assert_eq!(written(admin).await, ["1", "1"]);
    }
}

/// A client is frozen in its transaction, and so is its elector: the server ends the transaction with the window, and the next candidate leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_client_holds_up_nobody() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        let (first, second) = (elector(&proxy.endpoint()).await, elector(&server.endpoint()).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        let next = next_leader(&second);
        until("it waits", async || second.candidates("e").await.unwrap().len() == 2).await;
        let mut client = connect(server.admin(), "postgres").await;
        let mut transaction = client.transaction().await.unwrap();
        fence(&mut transaction, &leadership).await.unwrap();
        transaction.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
        proxy.blackhole(Direction::Both);
        let next = within("the next one leads", next).await.unwrap();
        let failed = transaction.commit().await.unwrap_err();
        assert!(failed.is_closed() || failed.code().is_some(), "{failed:?}");
        assert!(written(server.admin()).await.is_empty());
        drop(leadership);
        next.resign().await.unwrap();
    }
}

/// While a fenced transaction is open, candidates enter and leave, and the leader is asked to resign. Only a takeover waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_do_not_wait_for_fenced_transactions() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let (first, second) = (elector(&server.endpoint()).await, elector(&server.endpoint()).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        // It looks as the token of the record.
        leadership.set_value(r#"{"format":"tenure-election/1","token":9"#).await.unwrap();
        let recorded = "SELECT token FROM tenure.records WHERE key = 'e/e'";
        let token = leadership.fencing_token().get();
        assert_eq!(server.admin().value(recorded).await.unwrap(), token.to_string());
        let query = FenceQuery::new(&leadership).unwrap();
        let mut client = connect(server.admin(), "postgres").await;
        let transaction = client.transaction().await.unwrap();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&query.key(), &query.token(), &query.nonce(), &600_000];
        transaction.query(query.sql(), &parameters).await.unwrap();
        for _ in 0..2 {
            let next = next_leader(&second);
            until("it has entered", async || second.candidates("e").await.unwrap().len() == 2).await;
            next.abort();
            until("it has left", async || second.candidates("e").await.unwrap().len() == 1).await;
        }
        let next = next_leader(&second);
        until("it has entered", async || second.candidates("e").await.unwrap().len() == 2).await;
        second.request_resign("e").await.unwrap();
        within("the request", leadership.lost()).await;
        let resigning = tokio::spawn(async move { leadership.resign().await });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure' AND wait_event_type = 'Lock'";
        until("the takeover waits", async || server.admin().value(waits).await.unwrap() != "0").await;
        assert!(!next.is_finished());
        transaction.commit().await.unwrap();
        let next = within("the next one leads", next).await.unwrap();
        let over = within("the resignation", resigning).await.unwrap().unwrap_err();
        assert!(over.to_string().contains("resign"), "{over}");
        assert_eq!(
            server.admin().value(recorded).await.unwrap(),
            next.fencing_token().get().to_string(),
            "it waited because of this column"
        );
        next.resign().await.unwrap();
    }
}

/// The column with the token costs heartbeats no index entry, and stands no body in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_a_token_is_stored() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let admin = server.admin();
        let elector = elector(&server.endpoint()).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let in_place = "SELECT n_tup_hot_upd >= 5 FROM pg_stat_user_tables WHERE relname = 'records'";
        until("heartbeats are updates in place", async || admin.value(in_place).await.unwrap() == "t").await;
        for (n, body) in [
            "''::bytea",
            r"'\x00ff80'",
            "'no JSON'",
            r#"'{"format":"tenure-election/1","token":'"#,
            r#"'{"format":"tenure-election/1","token":-1'"#,
            r#"'{"queue":[{"value":"{\\"token\\":5}"}],"token":5}'"#,
            "convert_to(repeat('ä', 300000), 'UTF8')",
            "convert_to('{\"format\":\"tenure-election/1\",\"token\":' || repeat('9', 300000), 'UTF8')",
        ]
        .into_iter()
        .enumerate()
        {
            let insert = format!("INSERT INTO tenure.records (key, body) VALUES ('e/x{n}', {body})");
            admin.execute(&insert).await.unwrap_or_else(|error| panic!("{body}: {error}"));
        }
        let tokens = "SELECT count(token) FROM tenure.records WHERE key LIKE 'e/x%'";
        assert_eq!(admin.value(tokens).await.unwrap(), "1", "of the last one, cut off");
        leadership.resign().await.unwrap();
    }
}

/// A table without the column that a fence locks is not used, because its next leader would not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_tokens_fences_nothing() {
    let server = server(Version::Postgres15).await;
    let elector = elector(&server.endpoint()).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    server.admin().execute("ALTER TABLE tenure.records DROP COLUMN token").await.unwrap();
    let mut client = connect(server.admin(), "postgres").await;
    let mut transaction = client.transaction().await.unwrap();
    let refused = fence(&mut transaction, &leadership).await.unwrap_err();
    let FenceError::Database(error) = refused else { panic!("{refused:?}") };
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_COLUMN));
    leadership.resign().await.unwrap();
}

/// Somebody holds the record, as a swap that waits for a replica does: a fence does not wait for longer than the leadership may last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_waits_for_no_longer_than_the_leadership() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let elector = elector(&server.endpoint()).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let holder = connect(server.admin(), "postgres").await;
        holder
            .batch_execute("BEGIN; SELECT * FROM tenure.records WHERE key = 'e/e' FOR UPDATE")
            .await
            .unwrap();
        let mut client = connect(server.admin(), "postgres").await;
        let mut transaction = client.transaction().await.unwrap();
        let refused = within("the fence", fence(&mut transaction, &leadership)).await.unwrap_err();
        let FenceError::Database(error) = refused else { panic!("{refused:?}") };
        // PostgreSQL 17 ends the transaction at the same time.
        if version == Version::Postgres15 {
            assert_eq!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
        }
        holder.batch_execute("COMMIT").await.unwrap();
        leadership.resign().await.unwrap();
    }
}

/// A limit for transactions of the role runs already. Short statements, and short pauses between them, do not make it longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_the_role_is_shortened() {
    let server = server(Version::Postgres17).await;
    server.admin().execute("ALTER ROLE postgres SET transaction_timeout = '1h'").await.unwrap();
    let elector = elector(&server.endpoint()).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let mut client = connect(server.admin(), "postgres").await;
    let mut transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
    fence(&mut transaction, &leadership).await.unwrap();
    let busy = async {
        loop {
            if let Err(error) = transaction.execute("SELECT pg_sleep(0.05)", &[]).await {
                return error;
            }
        }
    };
    let ended = within("the end of the transaction", busy).await;
    // 25P04, which the client library has no name for; or the connection's end is noticed first.
    assert!(ended.is_closed() || ended.code().is_some_and(|code| code.code() == "25P04"), "{ended:?}");
    assert!(written(server.admin()).await.is_empty());
    leadership.resign().await.unwrap();
}

/// Fenced transactions of a busy leader overlap all the time. Other candidates enter and leave all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_transactions_starve_no_candidate() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let (first, second) = (elector(&server.endpoint()).await, elector(&server.endpoint()).await);
        let leadership = Arc::new(within("leading", first.campaign("e")).await.unwrap());
        let (committed, mut writers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        for _ in 0..6 {
            let (leadership, committed) = (Arc::clone(&leadership), Arc::clone(&committed));
            let mut client = connect(server.admin(), "postgres").await;
            writers.spawn(async move {
                loop {
                    let mut transaction = client.transaction().await.unwrap();
                    match fence(&mut transaction, &leadership).await {
                        Err(FenceError::Lost(_)) => return,
                        fenced => fenced.unwrap(),
                    }
                    let takes = format!("SELECT pg_sleep({})", 0.01 + 0.04 * fastrand::f64());
                    transaction.batch_execute(&takes).await.unwrap();
                    transaction.commit().await.unwrap();
                    committed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            let before = committed.load(Ordering::Relaxed);
            let next = next_leader(&second);
            until("it has entered", async || second.candidates("e").await.unwrap().len() == 2).await;
            next.abort();
            until("it has left", async || second.candidates("e").await.unwrap().len() == 1).await;
            until("they go on", async || committed.load(Ordering::Relaxed) > before + 20).await;
        }
        assert!(leadership.is_leader() && writers.try_join_next().is_none());
        second.request_resign("e").await.unwrap();
        within("the request", leadership.lost()).await;
        while let Some(ended) = within("the writers", writers.join_next()).await {
            ended.unwrap();
        }
        let over = Arc::into_inner(leadership).unwrap().resign().await.unwrap_err();
        assert!(over.to_string().contains("resign"), "{over}");
    }
}

/// A statement of a leader that has died takes long; and shorter timeouts of one's own stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_transaction_is_bounded() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let elector = elector(&server.endpoint()).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let mut client = connect(server.admin(), "postgres").await;
        let show = async |client: &tokio_postgres::Transaction<'_>, setting: &str| -> i32 {
            let query =
                format!("SELECT (extract(epoch FROM current_setting('{setting}')::interval) * 1000)::int");
            client.query_one(&query, &[]).await.unwrap().get(0)
        };
        let mut settings = vec!["lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout"];
        if version == Version::Postgres17 {
            settings.push("transaction_timeout");
        }
        for own in [0, 77, 3_600_000] {
            for setting in &settings {
                client.batch_execute(&format!("SET {setting} = {own}")).await.unwrap();
            }
            let mut transaction = client.transaction().await.unwrap();
            fence(&mut transaction, &leadership).await.unwrap();
            for setting in &settings {
                let limit = show(&transaction, setting).await;
                match own {
                    77 => assert_eq!(limit, 77, "{setting}"),
                    _ => assert!((1..=2_000).contains(&limit), "{setting} {limit}"),
                }
            }
            transaction.rollback().await.unwrap();
            for setting in &settings {
                let transaction = client.transaction().await.unwrap();
                assert_eq!(show(&transaction, setting).await, own, "{setting} after it");
            }
        }
        for setting in &settings {
            client.batch_execute(&format!("RESET {setting}")).await.unwrap();
        }
        let mut transaction = client.transaction().await.unwrap();
        fence(&mut transaction, &leadership).await.unwrap();
        let ended: Result<u64, Error> =
            within("the end", transaction.execute("SELECT pg_sleep(600)", &[])).await;
        ended.unwrap_err();
        leadership.resign().await.unwrap();
    }
}

#[tokio::test]
async fn a_leadership_of_another_store_is_refused() {
    let elector = tenure::connect("memory:").await.unwrap();
    let leadership = elector.campaign("e").await.unwrap();
    let refused = FenceQuery::new(&leadership).unwrap_err();
    assert!(matches!(refused, FenceError::OtherStore), "{refused:?}");
    leadership.resign().await.unwrap();
}
