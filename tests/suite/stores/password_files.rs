//! Passwords in files that are rotated.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Candidate, Config, Connection, Elector, Error, Leaders, Leadership};
use tenure_containers::{
    ConsulServer, ConsulSettings, EtcdServer, MysqlServer, NatsServer, NatsSettings, Permission,
    PostgresServer, PostgresSettings, RedisServer, S3Server, S3Settings, SharedZookeeper, Version,
    ZookeeperServer, ZookeeperSettings,
};
use tenure_testkit::suite::{until, within};
use tenure_tests::{mysql, redis, wait_for_heartbeats};
use tokio::task::JoinHandle;

const OLD: &str = "correct-horse-7";
const NEW: &str = "another-horse-8";

/// Where a password is changed first.
#[derive(Clone, Copy, Debug)]
enum ChangedFirst {
    File,
    Server,
}

const ORDERS: [ChangedFirst; 2] = [ChangedFirst::File, ChangedFirst::Server];

/// A file with a password.
struct PasswordFile(tempfile::TempDir);

impl PasswordFile {
    fn new(password: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.rotate(password);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("password")
    }

    /// Replaces the file atomically, as Kubernetes does: it may be read at any time.
    fn rotate(&self, password: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, format!("{password}\n")).unwrap();
        fs::rename(next, self.path()).unwrap();
    }
}

/// A leader, a waiting candidate, and an observer.
struct Electors {
    electors: [Arc<dyn Elector>; 3],
    leadership: Leadership,
    waiting: JoinHandle<Result<Leadership, Error>>,
    leaders: Leaders,
}

impl Electors {
    async fn start(url: &str, ttl: Duration) -> Self {
        let connect = async || tenure::connect_with(url, Config::new().with_ttl(ttl)).await.unwrap();
        let electors = [connect().await, connect().await, connect().await];
        let [candidate, waiter, observer] = &electors;
        let leadership = within("leading", candidate.campaign("e")).await.unwrap();
        let mut leaders = observer.observe("e");
        within("observing the leader", leaders.next()).await.unwrap().unwrap().unwrap();
        let waiting_elector = Arc::clone(waiter);
        let waiting = tokio::spawn(async move { waiting_elector.campaign("e").await });
        until("both candidates have entered", async || {
            observer.candidates("e").await.is_ok_and(|all| all.len() == 2)
        })
        .await;
        Self { electors, leadership, waiting, leaders }
    }

    /// Whether an elector reports that its password is refused and that the login is retried. Asserts that no report contains
    /// the password.
    fn reports_refused_password(&self) -> bool {
        self.electors.iter().any(|elector| {
            let error = elector.status().last_error.unwrap_or_default();
            assert!(!error.contains("horse"), "{error}");
            assert_ne!(elector.status().connection, Connection::Refused, "{error}");
            error.contains("password_file=") && error.contains("is read again and the login retried for")
        })
    }

    /// Hands leadership over to the waiting candidate and back; the observer sees both.
    async fn hand_over_twice(mut self) {
        wait_for_heartbeats(&self.leadership).await;
        within("resigning", self.leadership.resign()).await.unwrap();
        let second = within("the handover", self.waiting).await.unwrap().unwrap();
        wait_until_observed(&mut self.leaders, &second).await;
        wait_for_heartbeats(&second).await;
        let candidate = Arc::clone(&self.electors[0]);
        let again = tokio::spawn(async move { candidate.campaign("e").await });
        within("resigning", second.resign()).await.unwrap();
        let third = within("leading again", again).await.unwrap().unwrap();
        wait_until_observed(&mut self.leaders, &third).await;
        within("resigning", third.resign()).await.unwrap();
        for elector in self.electors {
            within("closing", elector.close()).await;
        }
    }
}

async fn wait_until_observed(leaders: &mut Leaders, leadership: &Leadership) {
    let token = |leader: Option<Candidate>| leader.and_then(|leader| leader.token);
    let observed =
        async { while token(leaders.next().await.unwrap().unwrap()) != Some(leadership.fencing_token()) {} };
    within("observing the leader", observed).await;
}

/// Hazard G33: on etcd a leader, a waiting candidate and an observer continue when the password is changed, first in the file
/// or first in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_on_etcd() {
    for (version, first) in Version::ETCD.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let server = EtcdServer::start_with(version, &["--bcrypt-cost=4"]).await.unwrap();
        server.admin().add_user("app", OLD, Permission::ReadWrite, "/acme/").await.unwrap();
        let root = server.admin().enable_auth("root-password").await.unwrap();
        let file = PasswordFile::new(OLD);
        let url = format!("etcd://app@{}/acme?password_file={}", server.endpoint(), file.path().display());
        let electors = Electors::start(&url, Duration::from_secs(9)).await;
        match first {
            ChangedFirst::File => {
                file.rotate(NEW);
                wait_for_heartbeats(&electors.leadership).await;
                root.change_password("app", NEW).await.unwrap();
            }
            ChangedFirst::Server => {
                root.change_password("app", NEW).await.unwrap();
                until("the refusal is reported", async || electors.reports_refused_password()).await;
                file.rotate(NEW);
            }
        }
        electors.hand_over_twice().await;
    }
}

/// Hazard G33: the same for a SASL user of ZooKeeper. The server reads a new password when it restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_on_zookeeper() {
    for (version, first) in
        Version::ZOOKEEPER.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let settings = ZookeeperSettings::default().sasl_users(&[("app", OLD)]);
        let server = ZookeeperServer::start_with(version, &settings).await.unwrap();
        let file = PasswordFile::new(OLD);
        let (endpoint, path) = (server.endpoint(), file.path());
        let url = format!("zookeeper://app@{endpoint}/acme?auth=sasl&password_file={}", path.display());
        // Longer than the server takes to restart.
        let electors = Electors::start(&url, Duration::from_secs(25)).await;
        if matches!(first, ChangedFirst::File) {
            file.rotate(NEW);
        }
        server.replace_users(&[("app", NEW)]).await.unwrap();
        server.stop().await.unwrap().heal().await.unwrap();
        if matches!(first, ChangedFirst::Server) {
            until("the refusal is reported", async || electors.reports_refused_password()).await;
            file.rotate(NEW);
        }
        electors.hand_over_twice().await;
    }
}

/// A PostgreSQL server whose user `app` has this password, and may create a schema.
async fn postgres(version: Version, password: &str) -> PostgresServer {
    let settings = PostgresSettings::default().access_rules(&["host all all all scram-sha-256"]);
    let server = PostgresServer::start_with(version, &settings).await.unwrap();
    server.admin().add_user("app", password).await.unwrap();
    server.admin().execute("GRANT CREATE ON DATABASE postgres TO app").await.unwrap();
    server
}

/// Hazard G33: the same for PostgreSQL, which asks for the password when a connection is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_on_postgres() {
    for (version, first) in
        Version::POSTGRES.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let server = postgres(version, OLD).await;
        let change = async || {
            server.admin().execute(&format!("ALTER ROLE app PASSWORD '{NEW}'")).await.unwrap();
            assert!(server.admin().terminate_connections().await.unwrap() > 0);
        };
        let file = PasswordFile::new(OLD);
        let url =
            format!("postgres://app@{}/postgres?password_file={}", server.endpoint(), file.path().display());
        let electors = Electors::start(&url, Duration::from_secs(9)).await;
        match first {
            ChangedFirst::File => {
                file.rotate(NEW);
                wait_for_heartbeats(&electors.leadership).await;
                change().await;
            }
            ChangedFirst::Server => {
                change().await;
                until("the refusal is reported", async || electors.reports_refused_password()).await;
                file.rotate(NEW);
            }
        }
        electors.hand_over_twice().await;
    }
}

/// A MariaDB server whose user `app` has this password, and may use the database `tenure`.
async fn mysql(password: &str) -> MysqlServer {
    let server = MysqlServer::start(Version::Mariadb1011).await.unwrap();
    server.admin().add_user("app", password).await.unwrap();
    server.admin().grant_all("app").await.unwrap();
    mysql::begin_first_epoch(server.admin()).await;
    server
}

/// Hazard G33: the same for MariaDB, which asks for the password when a connection is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_on_mysql() {
    for first in ORDERS {
        let server = mysql(OLD).await;
        let admin = server.admin();
        let change = async || {
            admin.execute(&format!("ALTER USER app@'%' IDENTIFIED BY '{NEW}'")).await.unwrap();
            admin.execute("KILL USER app@'%'").await.unwrap();
        };
        let file = PasswordFile::new(OLD);
        let url = format!("{}?password_file={}", admin.url_of("app"), file.path().display());
        let electors = Electors::start(&url, Duration::from_secs(9)).await;
        match first {
            ChangedFirst::File => {
                file.rotate(NEW);
                wait_for_heartbeats(&electors.leadership).await;
                change().await;
            }
            ChangedFirst::Server => {
                change().await;
                until("the refusal is reported", async || electors.reports_refused_password()).await;
                file.rotate(NEW);
            }
        }
        electors.hand_over_twice().await;
    }
}

/// Hazard G33: the same for ZooKeeper's digest scheme, where a new password makes a new user: an operator grants it the
/// permissions of the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_by_a_digest_user() {
    /// All of ZooKeeper's permission bits.
    const ALL: i32 = 31;
    for (version, first) in
        Version::ZOOKEEPER.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let server = SharedZookeeper::get(version).await.unwrap();
        let root = format!("/rotated-{:016x}", fastrand::u64(..));
        let file = PasswordFile::new(OLD);
        let url =
            format!("zookeeper://app@{}{root}?password_file={}", server.endpoint(), file.path().display());
        let electors = Electors::start(&url, Duration::from_secs(10)).await;
        let [old, new] =
            [OLD, NEW].map(|password| server.admin().with_auth("digest", &format!("app:{password}")));
        let (scheme, id) = new.identity().await.unwrap();
        let permit = async || {
            for path in [format!("{root}/e"), root.clone()] {
                old.set_acl(&path, &[(ALL, scheme.as_str(), id.as_str())]).await.unwrap();
            }
        };
        match first {
            ChangedFirst::File => {
                file.rotate(NEW);
                permit().await;
            }
            ChangedFirst::Server => {
                permit().await;
                let observer = Arc::clone(&electors.electors[2]);
                let reading = tokio::spawn(async move { observer.candidates("e").await });
                until("the refusal is reported", async || electors.reports_refused_password()).await;
                assert!(!reading.is_finished());
                file.rotate(NEW);
            }
        }
        electors.hand_over_twice().await;
    }
}

/// Hazard G33: a candidate that starts with a wrong password in its file reports it, and leads once the file has the right
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_file_is_read_again() {
    let server = EtcdServer::start_with(Version::Etcd35, &["--bcrypt-cost=4"]).await.unwrap();
    server.admin().add_user("app", NEW, Permission::ReadWrite, "/acme/").await.unwrap();
    server.admin().enable_auth("root-password").await.unwrap();
    let settings = ZookeeperSettings::default().sasl_users(&[("app", NEW)]);
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let postgres = postgres(Version::Postgres17, NEW).await;
    let settings = ConsulSettings::default().acl().hcl(format!("acl {{ tokens {{ master = \"{NEW}\" }} }}"));
    let consul = ConsulServer::start_with(Version::Consul18, &settings).await.unwrap();
    let settings = NatsSettings::default().user("app", NEW, "");
    let nats = NatsServer::start_with(Version::Nats215, &settings).await.unwrap();
    let keys = S3Settings::default().identity("app", NEW, &["Read:suite", "Write:suite", "List:suite"]);
    let s3 = S3Server::start_with(Version::Seaweedfs4, &keys).await.unwrap();
    let mysql = mysql(NEW).await;
    let redis = RedisServer::start(Version::Valkey81).await.unwrap();
    redis.admin().set_user("app", NEW, &["~tenure", "&tenure", "+@all"]).await.unwrap();
    redis::begin_first_epoch(redis.admin(), "tenure").await;
    for store in [
        format!("etcd://app@{}/acme?", server.endpoint()),
        format!("zookeeper://app@{}/acme?auth=sasl&", zookeeper.endpoint()),
        format!("postgres://app@{}/postgres?", postgres.endpoint()),
        format!("consul://{}/acme?", consul.endpoint()),
        format!("nats://app@{}/billing?", nats.endpoint()),
        format!("s3://app@suite/acme?endpoint=http://{}&", s3.endpoint()),
        format!("{}?", mysql.admin().url_of("app")),
        format!("redis://app@{}/0?", redis.endpoint()),
    ] {
        let file = PasswordFile::new(OLD);
        let url = format!("{store}password_file={}", file.path().display());
        let elector = tenure::connect(&url).await.unwrap();
        let candidate = Arc::clone(&elector);
        let campaign = tokio::spawn(async move { candidate.campaign("e").await });
        let is_reported = async || {
            let error = elector.status().last_error.unwrap_or_default();
            assert!(!error.contains("horse") && !campaign.is_finished(), "{error}");
            error.contains("is read again and the login retried for")
        };
        until("the refusal is reported", is_reported).await;
        file.rotate(NEW);
        let leadership = within("leading", campaign).await.unwrap().unwrap();
        within("resigning", leadership.resign()).await.unwrap();
        elector.close().await;
    }
}
