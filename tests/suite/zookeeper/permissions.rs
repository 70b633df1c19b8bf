//! ZooKeeper's permissions: which are enough, which other users should not have, and what happens when they are revoked.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use tenure::{Candidate, Config, Connection, Diagnosis, Elector, Error, Level, StatusHandle};
use tenure_containers::{AclEntry, CreateMode, SharedZookeeper, Version, ZookeeperAdmin, ZookeeperServer};
use tenure_testkit::suite::{until, within};
use tenure_tests::{promptly, wait_for_heartbeats};

const PASSWORD: &str = "correct-horse-7";
const ALL: i32 = 31;
const READ: i32 = 1;
const CREATE: i32 = 4;
const DELETE: i32 = 8;
const ANYONE: (&str, &str) = ("world", "anyone");

/// Captured log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Captures the log of this process. Each test has a process of its own.
    fn capture() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        log
    }

    /// The warnings that contain all of these words.
    fn warnings(&self, words: &[&str]) -> Vec<String> {
        let log = self.0.lock().unwrap();
        let lines = String::from_utf8_lossy(&log);
        let lines = lines.lines().filter(|line| line.contains(" WARN "));
        lines.filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A user of ZooKeeper's `digest` scheme.
struct User {
    login: String,
    admin: ZookeeperAdmin,
    id: (String, String),
}

impl User {
    async fn new(admin: &ZookeeperAdmin, name: &str) -> Self {
        let login = format!("{name}:{PASSWORD}");
        let admin = admin.with_auth("digest", &login);
        let id = admin.identity().await.unwrap();
        Self { login, admin, id }
    }

    /// An entry of an access control list that grants this user these permissions.
    fn acl(&self, permissions: i32) -> AclEntry<'_> {
        (permissions, &self.id.0, &self.id.1)
    }

    async fn connect(&self, endpoint: &str, root: &str) -> Arc<dyn Elector> {
        connect(endpoint, &format!("{}@", self.login), root).await
    }
}

async fn connect(endpoint: &str, login: &str, root: &str) -> Arc<dyn Elector> {
    let url = format!("zookeeper://{login}{endpoint}{root}");
    tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(3))).await.unwrap()
}

fn unique_root() -> String {
    format!("/permissions-{:016x}", fastrand::u64(..))
}

/// Creates a persistent znode with this access control list.
async fn create_znode(admin: &ZookeeperAdmin, path: &str, acl: &[AclEntry<'_>]) {
    let mut session = admin.session().await.unwrap();
    session.create_with_acl(path, "", CreateMode::Persistent, acl).await.unwrap();
    session.close().await.unwrap();
}

fn warnings_of<'a>(diagnoses: &'a [Diagnosis], words: &[&str]) -> Vec<&'a Diagnosis> {
    let has = |diagnosis: &&Diagnosis| words.iter().all(|word| diagnosis.text.contains(word));
    diagnoses.iter().filter(|diagnosis| diagnosis.level == Level::Warning).filter(has).collect()
}

/// Hazard Z19: an operator has created an ancestor of entries and granted other users permissions. A warning says which znode
/// and who may do what, and the diagnosis says what to do. Neither mentions znodes of this user alone, nor the hash of a
/// password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_of_others_over_entries_are_warned_about() {
    let log = Log::capture();
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let app = User::new(server.admin(), "app").await;
    let other = User::new(server.admin(), "other").await;
    let everything = "may create below it, delete below it, change its ACL";
    for (znode, granted, words) in [
        ("", (ALL, ANYONE.0, ANYONE.1), format!("everybody {everything}")),
        ("/e", (ALL, ANYONE.0, ANYONE.1), format!("everybody {everything}")),
        ("", other.acl(CREATE), "digest:other".to_owned()),
        ("/e", other.acl(DELETE), "may delete below it".to_owned()),
        ("/e", other.acl(ALL), "change its ACL".to_owned()),
    ] {
        let root = unique_root();
        let paths = [root.clone(), format!("{root}/e")];
        let path = format!("{root}{znode}");
        for created in paths.iter().filter(|created| path.starts_with(created.as_str())) {
            match *created == path {
                true => create_znode(&app.admin, created, &[app.acl(ALL), granted]).await,
                false => create_znode(&app.admin, created, &[app.acl(ALL)]).await,
            }
        }
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        // The election's znode is checked last.
        let path_field = format!("path=\"{path}\"");
        until("the warning is logged", async || !log.warnings(&[&path_field, &words]).is_empty()).await;
        let diagnoses = within("the diagnoses", elector.diagnose()).await;
        let found = warnings_of(&diagnoses, &[&path, &words]);
        assert_eq!(found.len(), 1, "{path}: {diagnoses:?}");
        assert!(found[0].advice.as_ref().is_some_and(|advice| advice.contains("setAcl")), "{found:?}");
        let more: Vec<_> = warnings_of(&diagnoses, &[" may "]);
        assert_eq!(more.len(), 1, "znodes of this user alone are not mentioned: {diagnoses:?}");
        if znode == "/e" {
            let others = log.warnings(&["a user that may create znodes there", &root]);
            assert_eq!(others.len(), 1, "znodes of this user alone are not mentioned: {others:?}");
        }
        let all = format!("{:?}{diagnoses:?}", log.warnings(&[]));
        let hash = other.id.1.split_once(':').unwrap().1;
        assert!(!all.contains(hash), "a password's hash is printed: {all}");
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard Z19: a znode whose permissions cannot be read may grant permissions to anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_that_cannot_be_read_are_warned_about() {
    let log = Log::capture();
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let app = User::new(server.admin(), "app").await;
        let root = unique_root();
        create_znode(&app.admin, &root, &[app.acl(CREATE | DELETE)]).await;
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        let expected = [&*format!("path=\"{root}\""), "this user may not read its ACL"];
        until("the warning is logged", async || !log.warnings(&expected).is_empty()).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard Z15: from ZooKeeper 3.9 on, an unreadable znode cannot be distinguished from a candidate's entry. A user who may
/// create znodes beside entries can create one that is waited for as long as it exists, as a candidate could. The status and
/// the diagnosis name its path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_foreign_znode_is_named() {
    let log = Log::capture();
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let other = User::new(server.admin(), "other").await;
        let root = unique_root();
        server.admin().create(&format!("{root}/e"), "").await.unwrap();
        let name = format!("c-{:032x}-0000000000", fastrand::u128(..));
        let foreign = format!("{root}/e/{name}");
        create_znode(&other.admin, &foreign, &[other.acl(ALL)]).await;
        let elector = connect(&server.endpoint(), "", &root).await;
        let campaign = {
            let elector = Arc::clone(&elector);
            tokio::spawn(async move { elector.campaign("e").await })
        };
        if version == Version::Zookeeper38 {
            // ZooKeeper 3.8 shows whether an unreadable znode has an owner.
            promptly("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
            elector.close().await;
            continue;
        }
        let expected = [&*format!("path=\"{foreign}\""), "this user may not read this znode"];
        until("the warning is logged", async || !log.warnings(&expected).is_empty()).await;
        let status =
            StatusHandle::with_refresh(Arc::clone(&elector), "e", Duration::from_millis(100)).unwrap();
        let is_foreign = |leader: &Candidate| leader.id == name && leader.session == "unknown";
        until("the status names it", async || status.get().leader.as_ref().is_some_and(is_foreign)).await;
        until("the candidate is behind it in the queue", async || status.get().queue_position == Some(2))
            .await;
        let diagnoses = within("the diagnoses", elector.diagnose()).await;
        let found = warnings_of(&diagnoses, &[&foreign, "nobody leads before"]);
        assert!(found.len() == 1 && found[0].subject == "election e", "{diagnoses:?}");
        assert!(!campaign.is_finished());
        assert_eq!(log.warnings(&expected).len(), 1, "the warning is logged once");
        assert!(server.admin().delete(&foreign).await.unwrap());
        promptly("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
        drop(status);
        elector.close().await;
    }
}

/// Hazard Z19: other users cannot create znodes below the ancestors of entries that a user has created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_users_cannot_create_znodes_beside_entries() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let (app, other) = (User::new(server.admin(), "app").await, User::new(server.admin(), "other").await);
        let root = unique_root();
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        let mut session = other.admin.session().await.unwrap();
        for parent in [root.clone(), format!("{root}/e")] {
            let path = format!("{parent}/c-{:032x}-0000000000", 0);
            let refused = session.create(&path, "", CreateMode::Persistent).await.unwrap_err().to_string();
            assert!(refused.contains("code -102"), "NoAuth: {refused}");
        }
        session.close().await.unwrap();
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// The minimum that a user needs: a root that an operator has created for it, below a znode that it may not read, in a store
/// without any other permission. A user that may only read the root can observe. Without the root the error names the znode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_of_its_own_is_all_that_a_user_needs() {
    for version in Version::ZOOKEEPER {
        let server = ZookeeperServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        let users = ["operator", "app", "reader"].map(|name| User::new(server.admin(), name));
        let [operator, app, reader] = users;
        let (operator, app, reader) = (operator.await, app.await, reader.await);
        create_znode(&operator.admin, "/foreign", &[operator.acl(ALL)]).await;
        // The same as the commands in the threat model.
        create_znode(&operator.admin, "/foreign/acme", &[app.acl(ALL), reader.acl(READ)]).await;
        operator.admin.set_acl("/", &[operator.acl(ALL)]).await.unwrap();

        let endpoint = server.endpoint();
        let [elector, second] = [(), ()].map(|()| app.connect(&endpoint, "/foreign/acme"));
        let (elector, second) = (elector.await, second.await);
        let first = promptly("leading", elector.campaign("e")).await.unwrap();
        wait_for_heartbeats(&first).await;
        let waiting = {
            let second = Arc::clone(&second);
            tokio::spawn(async move { second.campaign("e").await })
        };
        until("it waits", async || elector.candidates("e").await.unwrap().len() == 2).await;
        let mut leaders = second.observe("e");
        let seen = promptly("observing", leaders.next()).await.unwrap().unwrap();
        assert_eq!(seen.map(|leader| leader.id), Some(first.candidate_id().to_string()));
        first.resign().await.unwrap();
        let next = promptly("the handover", waiting).await.unwrap().unwrap();
        wait_for_heartbeats(&next).await;
        let diagnoses = within("the diagnoses", elector.diagnose()).await;
        let refused: Vec<_> =
            diagnoses.iter().filter(|f| f.level == Level::Problem || f.text.contains(" may ")).collect();
        assert!(refused.is_empty(), "{refused:?}");

        // The znodes of elections belong to their creator alone; a reader may read the root.
        let observer = reader.connect(&endpoint, "/foreign/acme").await;
        let refused = promptly("the refusal", observer.campaign("other")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert_eq!(promptly("reading", observer.leader("none")).await.unwrap(), None);
        let refused = promptly("the refusal", observer.leader("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");

        for (user, root, words) in [
            (&app, "/foreign/other", "creating /foreign/other"),
            (&app, "/foreign/other/deeper", "creating /foreign/other"),
            (&app, "/acme", "creating /acme"),
            (&reader, "/foreign/acme", "creating /foreign/acme/"),
        ] {
            let denied = user.connect(&endpoint, root).await;
            let refused = promptly("the refusal", denied.campaign("new")).await.unwrap_err();
            assert!(matches!(refused, Error::Unauthorized(_)), "{version:?} {root}: {refused:?}");
            let text = refused.to_string();
            assert!(text.contains(words) && text.contains("not authorized"), "{version:?} {root}: {text}");
            assert_eq!(denied.status().connection, Connection::Refused);
            denied.close().await;
        }
        assert!(next.is_leader());
        next.resign().await.unwrap();
        for elector in [elector, second, observer] {
            elector.close().await;
        }
    }
}

/// Hazard G8: the permissions for the ancestors of entries are revoked during a term. A new candidate gets an error within
/// seconds, an observer at its next read. The leader goes on, safely: heartbeats need no permission, and its entry still belongs to it. It
/// cannot delete its entry any more, so that resigning closes the session; then the waiting candidate leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_permissions_end_no_term_and_begin_none() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let (app, operator) =
            (User::new(server.admin(), "app").await, User::new(server.admin(), "operator").await);
        let (root, endpoint) = (unique_root(), server.endpoint());
        // So that no slow response closes a connection, which would make the client read everything again.
        let url = format!("zookeeper://{}@{endpoint}{root}?attempt_timeout=10s", app.login);
        let config = Config::new().with_ttl(Duration::from_secs(10));
        let electors = [(), (), (), ()].map(|()| tenure::connect_with(&url, config.clone()));
        let [leading, waiting, observing, late] = electors;
        let (leading, waiting) = (leading.await.unwrap(), waiting.await.unwrap());
        let (observing, late) = (observing.await.unwrap(), late.await.unwrap());
        let leadership = promptly("leading", leading.campaign("e")).await.unwrap();
        let campaign = {
            let waiting = Arc::clone(&waiting);
            tokio::spawn(async move { waiting.campaign("e").await })
        };
        until("it waits", async || leading.candidates("e").await.unwrap().len() == 2).await;
        let mut leaders = observing.observe("e");
        promptly("observing", leaders.next()).await.unwrap().unwrap();
        let observed = tokio::spawn(async move { leaders.next().await });

        app.admin.set_acl(&format!("{root}/e"), &[operator.acl(ALL)]).await.unwrap();
        let refused = promptly("the refusal", late.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert_eq!(late.status().connection, Connection::Refused);
        wait_for_heartbeats(&leadership).await;
        let observed = within("the observer's error", observed).await.unwrap().unwrap();
        assert!(matches!(observed, Err(Error::Unauthorized(_))), "{observed:?}");
        assert!(leadership.is_leader() && !campaign.is_finished());

        let entry = leadership.entry().to_owned();
        within("resigning", leadership.resign()).await.unwrap();
        let status = leading.status();
        assert!(status.last_error.is_some_and(|why| why == "leaving on ZooKeeper: not authorized"));
        let next = promptly("the handover", campaign).await.unwrap().unwrap();
        assert_eq!(operator.admin.get(&entry).await.unwrap(), None, "it was deleted with its session");
        wait_for_heartbeats(&next).await;
        drop(next);
        for elector in [leading, waiting, observing, late] {
            within("closing", elector.close()).await;
        }
    }
}
