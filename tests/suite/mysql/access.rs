//! MariaDB with authentication: passwords, certificates, rights, and servers that may not hold elections.

use std::time::Duration;

use tenure::{
    Config, Connection, Elector, Error, Level,
    mysql::{MysqlConfig, MysqlStore},
    spi::BackendErrorKind,
};
use tenure_cas::{CasStore as _, Epoch, Freshness, Swap};
use tenure_containers::{MysqlAdmin, MysqlServer, MysqlSettings, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{
    Authority, CasServer as _, ClientFiles, Mysql,
    campaign::{campaign, connect, is_retried, leads, refusal},
    wait_for_heartbeats,
};

const README: &str = include_str!("../../../crates/backends/mysql/README.md");

const PASSWORD: &str = "correct-horse-7";
const FIRST: Epoch = Epoch(0);

/// A server with a database `acme`, in which the user `app` may do everything.
async fn server(settings: &MysqlSettings) -> (MysqlServer, MysqlAdmin) {
    let server = MysqlServer::start_with(Version::Mariadb1011, settings).await;
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let acme = server.admin().create_database("acme").await.unwrap();
    acme.add_user("app", PASSWORD).await.unwrap();
    acme.grant_all("app").await.unwrap();
    (server, acme)
}

/// Hazard G8: each refusal is reported within seconds, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_reported() {
    let (server, acme) = server(&MysqlSettings::default()).await;
    let at = server.endpoint();
    leads(&acme.url_of(&format!("app:{PASSWORD}"))).await;
    leads(&format!("mariadb://app:{PASSWORD}@{at}/acme")).await;
    for login in ["app:wrong-horse", "nobody:correct-horse-7", "app"] {
        let refused = refusal(&acme.url_of(login)).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(refused.to_string().contains("check the user, the password, from which hosts"), "{refused}");
    }
    let refused = refusal(&format!("mysql://root@{at}/nowhere")).await;
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("create it, or name another database"), "{refused}");
    let refused = refusal(&format!("mysql://app:{PASSWORD}@{at}/tenure")).await;
    assert!(refused.to_string().contains("Access denied for user 'app'"), "{refused}");
    // One of the hosts may be the one that accepts.
    is_retried(&format!("mysql://app:wrong-horse@{at},127.0.0.1:1/acme"), "connecting to 127.0.0.1:1").await;
}

/// The statements of the error are all that an owner has to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_the_statements_to_run() {
    let (_server, acme) = server(&MysqlSettings::default()).await;
    acme.add_user("least", PASSWORD).await.unwrap();
    acme.execute("GRANT SELECT ON acme.* TO least@'%'").await.unwrap();
    let url = acme.url_of(&format!("least:{PASSWORD}"));
    let refused = refusal(&url).await;
    assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    let text = refused.to_string();
    let (_, statements) = text.split_once("database run: ").unwrap_or_else(|| panic!("{text}"));
    for statement in statements.split("; ") {
        acme.execute(statement).await.unwrap_or_else(|error| panic!("{error}"));
    }
    leads(&url).await;
}

/// What the README grants is all that a user needs, and its tables are those that a candidate creates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_least_rights_takes_part() {
    let (server, acme) = server(&MysqlSettings::default()).await;
    acme.add_user("least", PASSWORD).await.unwrap();
    let statements = README.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
    for statement in statements.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        acme.execute(&statement.replace(" TO app", " TO least"))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let url = acme.url_of(&format!("least:{PASSWORD}"));
    let (first, second) = (connect(&url).await, connect(&url).await);
    let leadership = within("leading", first.campaign("e")).await.unwrap();
    let next = campaign(&second);
    until("it waits", async || first.candidates("e").await.unwrap().len() == 2).await;
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    within("the handover", next).await.unwrap().unwrap().resign().await.unwrap();
    for elector in [first, second] {
        elector.close().await;
    }

    let created = server.admin().create_database("created").await.unwrap();
    leads(&created.url()).await;
    let columns = |schema: &str| {
        format!(
            "SELECT CONCAT_WS(' ', TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, COLUMN_KEY, COALESCE(COLUMN_DEFAULT, '')) \
             FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = '{schema}' ORDER BY 1"
        )
    };
    let written = acme.query(&columns("acme")).await.unwrap();
    assert_eq!(written, acme.query(&columns("created")).await.unwrap());
    assert_eq!(written.len(), 6);
}

/// A driver may count the rows that were changed, or those that were matched. The counter in the row makes both the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_for_the_same_bytes_counts_as_done() {
    let suite = Mysql::new(Version::Mariadb1011).await;
    let backend = suite.backend(&suite.endpoint());
    let store = backend.store();
    let Swap::Done(version) = store.swap("e/a", None, FIRST, b"1").await.unwrap() else { panic!() };
    assert_eq!(store.swap("e/a", Some(&version), FIRST, b"1").await.unwrap(), Swap::Done(version.clone()));
    // Keys that a collation of text would take for the same.
    for key in ["e/A", "e/a ", "e/a\u{301}", "e/á"] {
        assert!(matches!(store.swap(key, None, FIRST, b"2").await.unwrap(), Swap::Done(_)), "{key}");
    }
    assert_eq!(store.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version, version);
    let too_long = store.swap(&format!("e/{}", "x".repeat(600)), None, FIRST, b"1").await.unwrap_err();
    assert_eq!(too_long.kind(), BackendErrorKind::Invalid, "{too_long}");
}

/// Whatever the server's isolation level is for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_server_change_no_session() {
    let settings = MysqlSettings::default()
        .set("transaction-isolation", "READ-UNCOMMITTED")
        .set("autocommit", "0")
        .set("sql-mode", "ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH")
        .set("innodb-lock-wait-timeout", "100")
        .set("query-cache-type", "1")
        .set("query-cache-size", "1M");
    let server = MysqlServer::start_with(Version::Mariadb1011, &settings)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    server.admin().execute("SET GLOBAL tx_read_only = 1").await.unwrap();
    let url = server.admin().url();
    let (first, second) = (connect(&url).await, connect(&url).await);
    let leadership = within("leading", first.campaign("e")).await.unwrap();
    assert_eq!(second.leader("e").await.unwrap().unwrap().token, Some(leadership.fencing_token()));
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    assert_eq!(second.leader("e").await.unwrap(), None);
    for elector in [first, second] {
        elector.close().await;
    }
}

/// Hazard C5: a server that loses acknowledged writes in a crash, or whose replicas would not have them, is refused, with the setting to change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loses_writes_is_refused() {
    let settings = MysqlSettings::default().set("log-bin", "binlog").set("sync-binlog", "1");
    let (server, acme) = server(&settings).await;
    let url = acme.url_of(&format!("app:{PASSWORD}"));
    for (wrong, right, expected) in [
        (
            "innodb_flush_log_at_trx_commit = 2",
            "innodb_flush_log_at_trx_commit = 1",
            "innodb_flush_log_at_trx_commit=2",
        ),
        ("sync_binlog = 0", "sync_binlog = 1", "log_bin and sync_binlog=0"),
        ("binlog_format = 'STATEMENT'", "binlog_format = 'MIXED'", "binlog_format=STATEMENT"),
        (
            "max_allowed_packet = 65536",
            "max_allowed_packet = 16777216",
            "a max_allowed_packet of less than 1M",
        ),
    ] {
        acme.execute(&format!("SET GLOBAL {wrong}")).await.unwrap();
        let refused = refusal(&url).await;
        assert!(
            matches!(refused, Error::Refused(_)) && refused.to_string().contains(expected),
            "{refused:?}"
        );
        if expected.contains("=0") {
            leads(&format!("{url}?durability=unsafe")).await;
        }
        acme.execute(&format!("SET GLOBAL {right}")).await.unwrap();
    }
    acme.execute("SET GLOBAL read_only = 1").await.unwrap();
    is_retried(&url, "is read-only, as a replica is").await;
    acme.execute("SET GLOBAL read_only = 0").await.unwrap();
    // It becomes read-only while a leader leads. The user would be allowed to write.
    let elector = connect(&acme.url()).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    acme.execute("SET GLOBAL read_only = 1").await.unwrap();
    within("the loss", leadership.lost()).await;
    acme.execute("SET GLOBAL read_only = 0").await.unwrap();
    drop(leadership);
    within("leading again", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    elector.close().await;
    drop(server);
}

/// Leaders go on when the server restarts in time or ends their connections; while it is frozen they stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_outlasts_a_restart_and_not_a_frozen_server() {
    let (server, acme) = server(&MysqlSettings::default()).await;
    let url = acme.url_of(&format!("app:{PASSWORD}"));
    let elector = tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(15))).await.unwrap();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let connections = "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'app'";
    let open = acme.query(connections).await.unwrap();
    assert!((1..=8).contains(&open.len()), "{open:?}");
    for id in open.into_iter().flatten().flatten() {
        // It may have ended by itself.
        let _ = acme.execute(&format!("KILL {id}")).await;
    }
    wait_for_heartbeats(&leadership).await;
    server.stop().await.unwrap().heal().await.unwrap();
    wait_for_heartbeats(&leadership).await;
    server.kill().await.unwrap().heal().await.unwrap();
    wait_for_heartbeats(&leadership).await;
    let token = leadership.fencing_token();
    leadership.resign().await.unwrap();
    elector.close().await;

    let elector = connect(&url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    assert!(
        leadership.fencing_token() > token && leadership.fencing_token().get() >> 40 == token.get() >> 40
    );
    let frozen = server.pause().await.unwrap();
    within("the loss", leadership.lost()).await;
    drop(leadership);
    frozen.heal().await.unwrap();
    within("leading again", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    elector.close().await;
}

fn settings(client: &ClientFiles) -> String {
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| client.path(name).display().to_string());
    format!("ca={ca}&cert={cert}&key={key}")
}

/// The server's name and certificate are checked, and it checks the client's. Nobody can pose as the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_both_sides() {
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = |name: &str| MysqlSettings::default().tls(authority.server_files_for(name, &authority.pem()));
    let ((_tls, acme), (_impostor, impostor)) =
        (server(&tls("127.0.0.1")).await, server(&tls("impostor.example")).await);
    let (_plain, plain) = server(&MysqlSettings::default()).await;
    for (user, requirement) in [("tls", "SSL"), ("cert", "X509")] {
        acme.execute(&format!("CREATE USER {user}@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE {requirement}"))
            .await
            .unwrap();
        acme.grant_all(user).await.unwrap();
    }
    let client = ClientFiles::new(&authority.pem(), &authority.issue("app"));
    let ca = format!("ca={}", client.path("ca").display());
    leads(&format!("{}?{ca}", acme.url_of(&format!("tls:{PASSWORD}")))).await;
    leads(&format!("{}?{}", acme.url_of(&format!("cert:{PASSWORD}")), settings(&client))).await;
    for refused in [
        refusal(&acme.url_of(&format!("tls:{PASSWORD}"))).await,
        refusal(&format!("{}?{ca}", acme.url_of(&format!("cert:{PASSWORD}")))).await,
    ] {
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    }
    acme.execute("SET GLOBAL require_secure_transport = 1").await.unwrap();
    let refused = refusal(&acme.url_of(&format!("app:{PASSWORD}"))).await.to_string();
    assert!(refused.contains("and whether it has to use TLS"), "{refused}");
    // Retried: files and servers may change.
    let distrustful = ClientFiles::new(&other.pem(), &authority.issue("app"));
    for (url, expected) in [
        (format!("{}?{ca}", impostor.url_of(&format!("app:{PASSWORD}"))), "not valid for name \"127.0.0.1\""),
        (
            format!("{}?{}", acme.url_of(&format!("app:{PASSWORD}")), settings(&distrustful)),
            "invalid peer certificate: UnknownIssuer",
        ),
        (format!("{}?{ca}", plain.url_of(&format!("app:{PASSWORD}"))), "the server does not offer TLS"),
    ] {
        is_retried(&url, expected).await;
    }
}

/// The next connection uses certificates that were replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem(), new.pem());
    let (server, acme) =
        server(&MysqlSettings::default().tls(old.server_files_for("127.0.0.1", &new.pem()))).await;
    acme.execute(&format!("CREATE USER cert@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE X509")).await.unwrap();
    acme.grant_all("cert").await.unwrap();
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let client = ClientFiles::new(&both, &old.issue("app"));
    let elector =
        connect(&format!("mysql://cert:{PASSWORD}@{}/acme?{}", proxy.endpoint(), settings(&client))).await;
    let campaign = campaign(&elector);
    until("its certificate is refused", async || elector.status().connection == Connection::Retrying).await;
    client.replace_identity(&new.issue("app"));
    let leadership = within("leading", campaign).await.unwrap().unwrap();
    proxy.reset_connections();
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    elector.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_is_wrong() {
    let (server, acme) = server(&MysqlSettings::default()).await;
    let config = MysqlConfig::new([server.endpoint()], "root", "acme").allow_unsafe_durability();
    let store = MysqlStore::new(config).unwrap();
    let findings = async || {
        let found = store.diagnose().await.into_iter().filter(|found| found.level != Level::Good);
        found.map(|found| (found.subject, found.text)).collect::<Vec<_>>()
    };
    assert_eq!(findings().await, []);
    let all = format!("{:?}", store.diagnose().await);
    assert!(
        all.contains("MariaDB 10.11.") && all.contains("a primary") && all.contains("answered in"),
        "{all}"
    );
    acme.execute("ALTER TABLE tenure_records ENGINE=MyISAM").await.unwrap();
    acme.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 0").await.unwrap();
    let found = findings().await;
    let subjects: Vec<_> = found.iter().map(|(subject, _)| subject.as_str()).collect();
    assert_eq!(subjects, ["durability", "tables"], "{found:?}");
    assert!(found[1].1.contains("tenure_records MyISAM"), "{found:?}");
    acme.execute("ALTER TABLE tenure_records ENGINE=InnoDB").await.unwrap();

    acme.add_user("reader", PASSWORD).await.unwrap();
    acme.execute("GRANT SELECT ON acme.* TO reader@'%'").await.unwrap();
    let reader =
        MysqlConfig::new([server.endpoint()], "reader", "acme").password(tenure::Secret::new(PASSWORD));
    let reader = MysqlStore::new(reader.allow_unsafe_durability()).unwrap();
    let text = format!("{:?}", reader.diagnose().await);
    assert!(
        text.contains("UPDATE command denied") && text.contains("GRANT SELECT, INSERT, UPDATE, DELETE ON"),
        "{text}"
    );
    let _killed = server.kill().await.unwrap();
    let found = findings().await;
    let subjects: Vec<_> = found.into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, [format!("host {}", server.endpoint()), "database".to_owned()]);
}
