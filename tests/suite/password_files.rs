//! Passwords in files that rotate.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Candidate, Config, Connection, Elector, Error, Leaders, Leadership};
use tenure_containers::{
    EtcdServer, Permission, SharedZookeeper, Version, ZookeeperServer, ZookeeperSettings,
};
use tenure_testkit::suite::{until, within};
use tenure_tests::goes_on;
use tokio::task::JoinHandle;

const OLD: &str = "correct-horse-7";
const NEW: &str = "another-horse-8";

/// In which order a password is changed.
#[derive(Clone, Copy, Debug)]
enum First {
    File,
    Server,
}

const ORDERS: [First; 2] = [First::File, First::Server];

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

    /// In one step, as Kubernetes does: it may be read at any time.
    fn rotate(&self, password: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, format!("{password}\n")).unwrap();
        fs::rename(next, self.path()).unwrap();
    }
}

/// A leader, a candidate that waits, and an observer.
struct Three {
    electors: [Arc<dyn Elector>; 3],
    leader: Leadership,
    waiting: JoinHandle<Result<Leadership, Error>>,
    seen: Leaders,
}

impl Three {
    async fn begin(url: &str, ttl: Duration) -> Self {
        let connect = async || tenure::connect_with(url, Config::new().with_ttl(ttl)).await.unwrap();
        let electors = [connect().await, connect().await, connect().await];
        let [leads, waits, observes] = &electors;
        let leader = within("leading", leads.campaign("e")).await.unwrap();
        let mut seen = observes.observe("e");
        within("the leader is seen", seen.next()).await.unwrap().unwrap().unwrap();
        let candidate = Arc::clone(waits);
        let waiting = tokio::spawn(async move { candidate.campaign("e").await });
        until("both stand", async || observes.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        Self { electors, leader, waiting, seen }
    }

    /// Whether anybody says that its password is refused and tried again. Nobody may say what it is.
    fn says_refused(&self) -> bool {
        self.electors.iter().any(|elector| {
            let said = elector.status().last_error.unwrap_or_default();
            assert!(!said.contains("horse"), "{said}");
            assert_ne!(elector.status().connection, Connection::Refused, "{said}");
            said.contains("password_file=") && said.contains("is read again and the login retried for")
        })
    }

    /// Leadership goes from one to the other and back, and the observer sees it.
    async fn go_on(mut self) {
        goes_on(&self.leader).await;
        within("resigning", self.leader.resign()).await.unwrap();
        let second = within("the hand-over", self.waiting).await.unwrap().unwrap();
        sees(&mut self.seen, &second).await;
        goes_on(&second).await;
        let leads = Arc::clone(&self.electors[0]);
        let again = tokio::spawn(async move { leads.campaign("e").await });
        within("resigning", second.resign()).await.unwrap();
        let third = within("leading again", again).await.unwrap().unwrap();
        sees(&mut self.seen, &third).await;
        within("resigning", third.resign()).await.unwrap();
        for elector in self.electors {
            within("closing", elector.close()).await;
        }
    }
}

async fn sees(seen: &mut Leaders, leadership: &Leadership) {
    let token = |leader: Option<Candidate>| leader.and_then(|leader| leader.token);
    let seen =
        async { while token(seen.next().await.unwrap().unwrap()) != Some(leadership.fencing_token()) {} };
    within("it is seen to lead", seen).await;
}

/// Hazard G33: on etcd a leader, a waiter and an observer go on when the password is changed, in their file first or in the
/// store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_on_etcd() {
    for (version, first) in Version::ETCD.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let server = EtcdServer::start_with(version, &["--bcrypt-cost=4"]).await.unwrap();
        server.admin().add_user("app", OLD, Permission::ReadWrite, "/acme/").await.unwrap();
        let root = server.admin().enable_auth("root-password").await.unwrap();
        let file = PasswordFile::new(OLD);
        let url = format!("etcd://app@{}/acme?password_file={}", server.endpoint(), file.path().display());
        let three = Three::begin(&url, Duration::from_secs(9)).await;
        match first {
            First::File => {
                file.rotate(NEW);
                goes_on(&three.leader).await;
                root.change_password("app", NEW).await.unwrap();
            }
            First::Server => {
                root.change_password("app", NEW).await.unwrap();
                until("it says so", async || three.says_refused()).await;
                file.rotate(NEW);
            }
        }
        three.go_on().await;
    }
}

/// Hazard G33: the same where ZooKeeper's servers know the user by SASL. They take a new password when they start again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_on_zookeeper() {
    for (version, first) in
        Version::ZOOKEEPER.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let settings = ZookeeperSettings::default().users(&[("app", OLD)]);
        let server = ZookeeperServer::start_with(version, &settings).await.unwrap();
        let file = PasswordFile::new(OLD);
        let (endpoint, path) = (server.endpoint(), file.path());
        let url = format!("zookeeper://app@{endpoint}/acme?auth=sasl&password_file={}", path.display());
        // Longer than the server takes to start again.
        let three = Three::begin(&url, Duration::from_secs(25)).await;
        if matches!(first, First::File) {
            file.rotate(NEW);
        }
        server.replace_users(&[("app", NEW)]).await.unwrap();
        server.stop().await.unwrap().heal().await.unwrap();
        if matches!(first, First::Server) {
            until("it says so", async || three.says_refused()).await;
            file.rotate(NEW);
        }
        three.go_on().await;
    }
}

/// Hazard G33: the same for ZooKeeper's own scheme, where a new password is a new user: an operator permits it what the old one
/// was permitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_followed_by_a_digest_user() {
    /// All that can be permitted, as ZooKeeper counts it.
    const ALL: i32 = 31;
    for (version, first) in
        Version::ZOOKEEPER.into_iter().flat_map(|version| ORDERS.map(|first| (version, first)))
    {
        let server = SharedZookeeper::get(version).await.unwrap();
        let root = format!("/rotated-{:016x}", fastrand::u64(..));
        let file = PasswordFile::new(OLD);
        let url =
            format!("zookeeper://app@{}{root}?password_file={}", server.endpoint(), file.path().display());
        let three = Three::begin(&url, Duration::from_secs(10)).await;
        let [before, now] =
            [OLD, NEW].map(|password| server.admin().with_auth("digest", &format!("app:{password}")));
        let (scheme, id) = now.identity().await.unwrap();
        let permit = async || {
            for path in [format!("{root}/e"), format!("{root}/~sessions"), root.clone()] {
                before.set_acl(&path, &[(ALL, scheme.as_str(), id.as_str())]).await.unwrap();
            }
        };
        match first {
            First::File => {
                file.rotate(NEW);
                permit().await;
            }
            First::Server => {
                permit().await;
                let observer = Arc::clone(&three.electors[2]);
                let looking = tokio::spawn(async move { observer.candidates("e").await });
                until("it says so", async || three.says_refused()).await;
                assert!(!looking.is_finished());
                file.rotate(NEW);
            }
        }
        three.go_on().await;
    }
}

/// Hazard G33: a candidate that starts with a wrong password in its file says so, and leads once the right one is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_file_is_read_again() {
    let server = EtcdServer::start_with(Version::Etcd35, &["--bcrypt-cost=4"]).await.unwrap();
    server.admin().add_user("app", NEW, Permission::ReadWrite, "/acme/").await.unwrap();
    server.admin().enable_auth("root-password").await.unwrap();
    let settings = ZookeeperSettings::default().users(&[("app", NEW)]);
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    for store in [
        format!("etcd://app@{}/acme?", server.endpoint()),
        format!("zookeeper://app@{}/acme?auth=sasl&", zookeeper.endpoint()),
    ] {
        let file = PasswordFile::new(OLD);
        let url = format!("{store}password_file={}", file.path().display());
        let elector = tenure::connect(&url).await.unwrap();
        let candidate = Arc::clone(&elector);
        let campaign = tokio::spawn(async move { candidate.campaign("e").await });
        let says_so = async || {
            let said = elector.status().last_error.unwrap_or_default();
            assert!(!said.contains("horse") && !campaign.is_finished(), "{said}");
            said.contains("is read again and the login retried for")
        };
        until("it says so", says_so).await;
        file.rotate(NEW);
        let leadership = within("leading", campaign).await.unwrap().unwrap();
        within("resigning", leadership.resign()).await.unwrap();
        elector.close().await;
    }
}
