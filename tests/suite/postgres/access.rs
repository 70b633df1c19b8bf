//! PostgreSQL with authentication: passwords and where they are from, certificates, rights, and what is printed.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenure::{Config, Connection, Elector, Error};
use tenure_containers::{
    PostgresAdmin, PostgresCluster, PostgresServer, PostgresSettings, Replication, Version,
};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{
    Authority, ClientFiles,
    campaign::{campaign, connect, is_retried, leads, refusal},
    promptly, wait_for_heartbeats,
};
use tracing_subscriber::filter::LevelFilter;

const README: &str = include_str!("../../../crates/backends/postgres/README.md");

const OLD: &str = "correct-horse-7";
const NEW: &str = "another-horse-8";

/// A server on which the user `app` needs a password, and owns the schema `tenure`.
async fn server(version: Version) -> PostgresServer {
    let rules = ["host all rejected all reject", "host all all all scram-sha-256"];
    let settings = PostgresSettings::default().access_rules(&rules);
    let server =
        PostgresServer::start_with(version, &settings).await.unwrap_or_else(|error| panic!("{error}"));
    server.admin().add_user("app", OLD).await.unwrap();
    server.admin().add_user("rejected", OLD).await.unwrap();
    server.admin().execute("CREATE SCHEMA tenure AUTHORIZATION app").await.unwrap();
    server
}

/// Hazard G8: each refusal is reported within seconds, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_reported() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let at = server.endpoint();
        leads(&format!("postgres://app:{OLD}@{at}/postgres")).await;
        for (url, expected) in [
            (format!("postgres://app:wrong-horse@{at}/postgres"), "check the user and the password"),
            (format!("postgres://nobody:{OLD}@{at}/postgres"), "check the user and the password"),
            (
                format!("postgres://app@{at}/postgres"),
                "the server asks for a password, and none is given; set PGPASSWORD",
            ),
            (format!("postgres://rejected:{OLD}@{at}/postgres"), "check the user and pg_hba.conf"),
        ] {
            let refused = refusal(&url).await;
            assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
            assert!(refused.to_string().contains(expected), "{refused}");
        }
        let refused = refusal(&format!("postgres://app:{OLD}@{at}/nowhere")).await;
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains("create it, or name another database"), "{refused}");
        // One of the hosts may be the one that accepts.
        let elector = connect(&format!("postgres://app:wrong-horse@{at},127.0.0.1:1/postgres")).await;
        let waiting = tokio::time::timeout(Duration::from_secs(2), elector.campaign("e"));
        assert!(waiting.await.is_err(), "it waits");
        let error = elector.status().last_error.unwrap();
        assert!(
            error.contains("check the user and the password") && error.contains("127.0.0.1:1"),
            "{error}"
        );
        elector.close().await;
    }
}

/// A standby alone is waited for: it may be promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_waited_for() {
    let cluster = PostgresCluster::start(Version::Postgres15, Replication::Asynchronous).await.unwrap();
    let elector = connect(&cluster.member(1).admin().url()).await;
    let campaign = campaign(&elector);
    until("it says why", async || {
        elector.status().last_error.is_some_and(|error| error.contains("it is read-only, as a standby is"))
    })
    .await;
    cluster.fence(0).await.unwrap();
    cluster.promote(1).await.unwrap();
    within("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
}

/// The statement of the error is all that a role needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_the_statement_to_run() {
    let server = server(Version::Postgres15).await;
    let admin = server.admin();
    admin.add_user("least", OLD).await.unwrap();
    let long = "s".repeat(48);
    admin.execute("CREATE SCHEMA made").await.unwrap();
    for (schema, is_made) in [(long.as_str(), false), ("made", true)] {
        let url = format!("postgres://least:{OLD}@{}/postgres?schema={schema}", server.endpoint());
        if is_made {
            // Without `USAGE`, it is not known whether the tables exist.
            let refused = refusal(&url).await.to_string();
            assert!(
                refused.contains("permission denied for schema made")
                    && refused.contains("has to run: GRANT USAGE, CREATE ON SCHEMA \"made\" TO \"least\""),
                "{refused}"
            );
            admin.execute("GRANT USAGE ON SCHEMA made TO least").await.unwrap();
        }
        let refused = refusal(&url).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        let text = refused.to_string();
        let (_, statement) = text.split_once("has to run: ").unwrap_or_else(|| panic!("{text}"));
        admin.execute(statement).await.unwrap();
        leads(&url).await;
    }
}

/// What the README grants is all that a role needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_the_least_rights_takes_part() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let admin = server.admin();
        admin.add_user("least", OLD).await.unwrap();
        let statements = README.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
        let statements = statements.replace("tenure", "acme").replace(" TO app", " TO least");
        admin.execute(&statements).await.unwrap();
        let url = format!("postgres://least:{OLD}@{}/postgres?schema=acme", server.endpoint());

        let (first, second) = (connect(&url).await, connect(&url).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        let next = campaign(&second);
        until("it waits", async || first.candidates("e").await.unwrap().len() == 2).await;
        wait_for_heartbeats(&leadership).await;
        leadership.resign().await.unwrap();
        within("the handover", next).await.unwrap().unwrap().resign().await.unwrap();
        // Without one of the rights.
        admin.execute("REVOKE USAGE ON SCHEMA acme FROM least").await.unwrap();
        let refused = refusal(&url).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        let text = refused.to_string();
        let (_, statements) = text.split_once("has to run: ").unwrap_or_else(|| panic!("{text}"));
        admin.execute(statements).await.unwrap();
        within("leading", first.campaign("e")).await.unwrap().resign().await.unwrap();
        admin.execute("REVOKE UPDATE ON acme.records FROM least").await.unwrap();
        let refused = promptly("the refusal", first.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(refused.to_string().contains("permission denied for table records"), "{refused}");
        for elector in [first, second] {
            elector.close().await;
        }
    }
}

/// The README's statements make the same tables as a candidate. Without one of their keys a fence would not hold up the next leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_in_the_readme_are_those_that_a_candidate_creates() {
    for version in Version::POSTGRES {
        let server = server(version).await;
        let admin = server.admin();
        let statements = README.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
        admin.execute(&statements.replace("tenure", "acme")).await.unwrap();
        leads(&format!("postgres://app:{OLD}@{}/postgres", server.endpoint())).await;
        let tables = async |schema: &str| {
            let of = format!("relnamespace = '{schema}'::regnamespace");
            let columns = format!(
                "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull::text, attgenerated::text, \
                 attcollation::regcollation::text, pg_get_expr(adbin, adrelid), reloptions::text, relpersistence::text \
                 FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum \
                 WHERE {of} AND relkind = 'r' AND attnum > 0 ORDER BY relname, attnum"
            );
            let keys = format!(
                "SELECT relname, pg_get_constraintdef(pg_constraint.oid) FROM pg_class JOIN pg_constraint ON conrelid = pg_class.oid \
                 WHERE {of} ORDER BY 1, 2"
            );
            [admin.query(&columns).await.unwrap(), admin.query(&keys).await.unwrap()].concat()
        };
        let (written, created) = (tables("acme").await, tables("tenure").await);
        assert_eq!(written, created);
        assert!(created.len() > 7, "{created:?}");
    }
}

/// A file that is replaced atomically and that nobody else may read.
struct SecretFile(tempfile::TempDir);

impl SecretFile {
    fn new(text: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.replace(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    fn replace(&self, text: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, text).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(next, self.path()).unwrap();
    }
}

/// Hazard G33: a leader goes on when its password is changed, in a file with the password alone and in one of libpq's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_is_followed() {
    let server = server(Version::Postgres17).await;
    let (host, port) = ("127.0.0.1", "*");
    for (setting, before, after) in [
        ("passfile", format!("{host}:{port}:postgres:app:{OLD}\n"), format!("{host}:{port}:*:app:{NEW}\n")),
        ("password_file", format!("{NEW}\n"), format!("{OLD}\n")),
    ] {
        let file = SecretFile::new(&before);
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        let url = format!("postgres://app@{}/postgres?{setting}={}", proxy.endpoint(), file.path().display());
        let elector =
            tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(20))).await.unwrap();
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let password = if setting == "passfile" { NEW } else { OLD };
        server.admin().execute(&format!("ALTER ROLE app PASSWORD '{password}'")).await.unwrap();
        proxy.reset_connections();
        until("the refusal is reported", async || {
            let error = elector.status().last_error.unwrap_or_default();
            assert!(!error.contains("horse"), "{error}");
            error.contains(&format!("{setting}="))
                && error.contains("is read again and the login retried for")
        })
        .await;
        file.replace(&after);
        wait_for_heartbeats(&leadership).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// As libpq's programs do. A process cannot safely set its own variables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_has_the_password() {
    const URL: &str = "TENURE_TEST_URL";
    if let Ok(url) = std::env::var(URL) {
        return leads(&url).await;
    }
    let server = server(Version::Postgres17).await;
    let file = SecretFile::new(&format!("*:*:*:app:{OLD}\n"));
    let home = tempfile::tempdir().unwrap();
    fs::copy(file.path(), home.path().join(".pgpass")).unwrap();
    let url = format!("postgres://app@{}/postgres", server.endpoint());
    for (variable, value) in [
        ("PGPASSWORD", OLD.to_owned()),
        ("PGPASSFILE", file.path().display().to_string()),
        ("HOME", home.path().display().to_string()),
    ] {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "access::the_environment_has_the_password", "--nocapture"])
            .kill_on_drop(true);
        command.env_remove("PGPASSWORD").env_remove("PGPASSFILE").env(URL, &url).env(variable, value);
        assert!(command.status().await.unwrap().success(), "{variable}");
    }
}

fn settings(client: &ClientFiles) -> String {
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| client.path(name).display().to_string());
    format!("sslmode=verify-full&sslrootcert={ca}&sslcert={cert}&sslkey={key}")
}

async fn tls_server(authority: &Authority, name: &str, rules: &[&str]) -> PostgresServer {
    let settings = PostgresSettings::default()
        .tls(authority.server_files_for(name, &authority.pem()))
        .access_rules(rules);
    PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn add_app(admin: &PostgresAdmin) {
    admin.add_user("app", OLD).await.unwrap();
    admin.execute("CREATE SCHEMA tenure AUTHORIZATION app").await.unwrap();
}

/// A certificate is a user, and a password is bound to the TLS session. Nobody can pose as the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_both_sides() {
    let (authority, other) = (Authority::new(), Authority::new());
    let cert = tls_server(&authority, "127.0.0.1", &["hostssl all all all cert"]).await;
    let scram = tls_server(&authority, "127.0.0.1", &["hostssl all all all scram-sha-256"]).await;
    let impostor = tls_server(&authority, "impostor.example", &["hostssl all all all scram-sha-256"]).await;
    let plain = server(Version::Postgres17).await;
    for server in [&cert, &scram, &impostor] {
        add_app(server.admin()).await;
    }
    let client = ClientFiles::new(&authority.pem(), &authority.issue("app"));
    let (cert, scram) = (cert.endpoint(), scram.endpoint());
    let ca = format!("sslrootcert={}", client.path("ca").display());
    leads(&format!("postgres://app@{cert}/postgres?{}", settings(&client))).await;
    leads(&format!("postgres://app:{OLD}@{scram}/postgres?{ca}")).await;

    let refused = refusal(&format!("postgres://app:{OLD}@{scram}/postgres")).await.to_string();
    assert!(refused.contains("no encryption") && refused.contains("give sslrootcert=/path"), "{refused}");
    let nobody = ClientFiles::new(&authority.pem(), &authority.issue("nobody"));
    let refused = refusal(&format!("postgres://app@{cert}/postgres?{}", settings(&nobody))).await;
    assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    // Retried: files and servers may change.
    let distrustful = ClientFiles::new(&other.pem(), &authority.issue("app"));
    let untrusted = ClientFiles::new(&authority.pem(), &other.issue("app"));
    for (url, expected) in [
        (
            format!("postgres://app:{OLD}@{}/postgres?{ca}", impostor.endpoint()),
            "certificate not valid for name \"127.0.0.1\"",
        ),
        (
            format!("postgres://app:{OLD}@{scram}/postgres?{}", settings(&distrustful)),
            "invalid peer certificate: UnknownIssuer",
        ),
        (format!("postgres://app:{OLD}@{cert}/postgres?{}", settings(&untrusted)), "received fatal alert"),
        (format!("postgres://app:{OLD}@{}/postgres?{ca}", plain.endpoint()), "server does not support TLS"),
    ] {
        is_retried(&url, expected).await;
    }
}

/// The next connection uses certificates that were replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem(), new.pem());
    let settings_of_server = PostgresSettings::default()
        .tls(old.server_files_for("127.0.0.1", &new.pem()))
        .access_rules(&["hostssl all all all cert"]);
    let server = PostgresServer::start_with(Version::Postgres17, &settings_of_server).await.unwrap();
    add_app(server.admin()).await;
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let client = ClientFiles::new(&both, &old.issue("app"));
    let elector =
        connect(&format!("postgres://app@{}/postgres?{}", proxy.endpoint(), settings(&client))).await;
    let campaign = campaign(&elector);
    until("its certificate is refused", async || elector.status().connection == Connection::Retrying).await;
    client.replace_identity(&new.issue("app"));
    let leadership = within("leading", campaign).await.unwrap().unwrap();
    proxy.reset_connections();
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// Captured log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Design rule: no password appears in logs at any level, errors, `Debug`, or printed URLs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_printed_holds_a_password() {
    // Before anything is captured: its user is made with a password.
    let server = server(Version::Postgres15).await;
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let at = server.endpoint();
    let passfile = SecretFile::new(&format!("*:*:*:app:{OLD}\n"));
    for (login, settings) in [
        (format!("app:{OLD}"), String::new()),
        ("app".to_owned(), format!("&passfile={}", passfile.path().display())),
    ] {
        let elector =
            connect(&format!("postgres://{login}@{at}/postgres?attempt_timeout=1s{settings}")).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let fault = server.kill().await.unwrap();
        within("the loss", leadership.lost()).await;
        write!(log.clone(), "{elector:?} {leadership:?} {:?}", elector.status()).unwrap();
        fault.heal().await.unwrap();
        drop(leadership);
        elector.close().await;
    }
    passfile.replace("*:*:*:app:wrong-horse\n");
    refusal(&format!("postgres://app:wrong-horse@{at}/postgres")).await;
    let elector =
        connect(&format!("postgres://app@{at}/postgres?passfile={}", passfile.path().display())).await;
    let campaign = campaign(&elector);
    until("it retries", async || {
        elector.status().last_error.is_some_and(|error| error.contains("the login retried"))
    })
    .await;
    campaign.abort();
    elector.close().await;
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("tenure_postgres") && text.contains("password authentication failed"), "{text}");
    for secret in ["horse", "Y29ycmVjdC1ob3JzZS03"] {
        assert!(!text.contains(secret), "{:?}", text.lines().find(|line| line.contains(secret)));
    }
    let bytes = format!("{:?}", "horse".as_bytes());
    assert!(!text.contains(bytes.trim_matches(['[', ']'])));
}
