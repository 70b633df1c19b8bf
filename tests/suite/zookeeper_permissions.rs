//! ZooKeeper's permissions: what suffices, what others have too much of, and what happens when they are taken away.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use tenure::{Candidate, Config, Connection, Diagnosis, Elector, Error, Level, LossReason, StatusHandle};
use tenure_containers::{Lifetime, Permitted, SharedZookeeper, Version, ZookeeperAdmin, ZookeeperServer};
use tenure_testkit::suite::{until, within};
use tenure_tests::{goes_on, promptly};

const PASSWORD: &str = "correct-horse-7";
const ALL: i32 = 31;
const READ: i32 = 1;
const CREATE: i32 = 4;
const DELETE: i32 = 8;
const ANYONE: (&str, &str) = ("world", "anyone");

/// All that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Of this process, which is one test's.
    fn of_everything() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        log
    }

    /// The warnings in which all of these words stand.
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

/// Whoever has logged in with ZooKeeper's `digest` scheme.
struct User {
    login: String,
    admin: ZookeeperAdmin,
    id: (String, String),
}

impl User {
    async fn of(admin: &ZookeeperAdmin, name: &str) -> Self {
        let login = format!("{name}:{PASSWORD}");
        let admin = admin.with_auth("digest", &login);
        let id = admin.identity().await.unwrap();
        Self { login, admin, id }
    }

    fn may(&self, permissions: i32) -> Permitted<'_> {
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

fn a_root() -> String {
    format!("/permissions-{:016x}", fastrand::u64(..))
}

/// A persistent znode that permits this.
async fn make(admin: &ZookeeperAdmin, path: &str, acl: &[Permitted<'_>]) {
    let mut session = admin.session().await.unwrap();
    session.create_for(path, "", Lifetime::Persistent, acl).await.unwrap();
    session.close().await.unwrap();
}

fn warnings_of<'a>(diagnoses: &'a [Diagnosis], words: &[&str]) -> Vec<&'a Diagnosis> {
    let has = |diagnosis: &&Diagnosis| words.iter().all(|word| diagnosis.text.contains(word));
    diagnoses.iter().filter(|diagnosis| diagnosis.level == Level::Warning).filter(has).collect()
}

/// Hazard Z19: an operator made one of the znodes above entries before us, and left others in. It is said which, who may do
/// what, and by the doctor what to do; of what is ours alone nothing is said, and no hash of a password is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_else_may_decide_over_entries_is_warned_of() {
    let log = Log::of_everything();
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let app = User::of(server.admin(), "app").await;
    let other = User::of(server.admin(), "other").await;
    let everything = "may create below it, delete below it, change its ACL";
    for (open, shared_with, words) in [
        ("", (ALL, ANYONE.0, ANYONE.1), format!("everybody {everything}")),
        ("/~sessions", (ALL, ANYONE.0, ANYONE.1), format!("everybody {everything}")),
        ("/e", (ALL, ANYONE.0, ANYONE.1), format!("everybody {everything}")),
        ("", other.may(CREATE), "digest:other".to_owned()),
        ("/~sessions", other.may(DELETE), "may delete below it".to_owned()),
        ("/e", other.may(ALL), "change its ACL".to_owned()),
    ] {
        let root = a_root();
        let paths = [root.clone(), format!("{root}/~sessions"), format!("{root}/e")];
        let path = format!("{root}{open}");
        for made in paths.iter().filter(|made| path.starts_with(made.as_str())) {
            match *made == path {
                true => make(&app.admin, made, &[app.may(ALL), shared_with]).await,
                false => make(&app.admin, made, &[app.may(ALL)]).await,
            }
        }
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        // The election's znode is looked at last.
        let told = format!("path=\"{path}\"");
        until("it is warned of", async || !log.warnings(&[&told, &words]).is_empty()).await;
        let diagnoses = within("the diagnoses", elector.diagnose()).await;
        let found = warnings_of(&diagnoses, &[&path, &words]);
        assert_eq!(found.len(), 1, "{path}: {diagnoses:?}");
        assert!(found[0].advice.as_ref().is_some_and(|advice| advice.contains("setAcl")), "{found:?}");
        let more: Vec<_> = warnings_of(&diagnoses, &[" may "]);
        assert_eq!(more.len(), 1, "nothing is said of what is ours alone: {diagnoses:?}");
        if open == "/e" {
            let others = log.warnings(&["a user that may create znodes there", &root]);
            assert_eq!(others.len(), 1, "nothing is said of what is ours alone: {others:?}");
        }
        let all = format!("{:?}{diagnoses:?}", log.warnings(&[]));
        let hash = other.id.1.split_once(':').unwrap().1;
        assert!(!all.contains(hash), "a password's hash is printed: {all}");
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard Z19: a znode whose permissions cannot be read may be anybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_that_cannot_be_read_are_warned_of() {
    let log = Log::of_everything();
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let app = User::of(server.admin(), "app").await;
        let root = a_root();
        make(&app.admin, &root, &[app.may(CREATE | DELETE)]).await;
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        let told = [&*format!("path=\"{root}\""), "this user may not read its ACL"];
        until("it is warned of", async || !log.warnings(&told).is_empty()).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard Z15: from 3.9 on a znode that we may not read cannot be told for one that no candidate made. Whoever may create beside
/// entries can make one that is waited for as long as it is there, as a candidate could; who stands in the way is said, with its path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_that_may_not_be_read_is_named() {
    let log = Log::of_everything();
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let other = User::of(server.admin(), "other").await;
        let root = a_root();
        server.admin().create(&format!("{root}/e"), "").await.unwrap();
        let name = format!("c-{:032x}-0000000000", fastrand::u128(..));
        let garbage = format!("{root}/e/{name}");
        make(&other.admin, &garbage, &[other.may(ALL)]).await;
        let elector = connect(&server.endpoint(), "", &root).await;
        let campaign = {
            let elector = Arc::clone(&elector);
            tokio::spawn(async move { elector.campaign("e").await })
        };
        if version == Version::Zookeeper38 {
            // Whether it has an owner is no secret there.
            promptly("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
            elector.close().await;
            continue;
        }
        let told = [&*format!("path=\"{garbage}\""), "this user may not read this znode"];
        until("it is warned of", async || !log.warnings(&told).is_empty()).await;
        let status =
            StatusHandle::with_refresh(Arc::clone(&elector), "e", Duration::from_millis(100)).unwrap();
        let is_it = |leader: &Candidate| leader.id == name && leader.session == "unknown";
        until("the status names it", async || status.get().leader.as_ref().is_some_and(is_it)).await;
        until("our place is behind it", async || status.get().queue_position == Some(2)).await;
        let diagnoses = within("the diagnoses", elector.diagnose()).await;
        let found = warnings_of(&diagnoses, &[&garbage, "nobody leads before"]);
        assert!(found.len() == 1 && found[0].subject == "election e", "{diagnoses:?}");
        assert!(!campaign.is_finished());
        assert_eq!(log.warnings(&told).len(), 1, "once");
        assert!(server.admin().delete(&garbage).await.unwrap());
        promptly("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
        drop(status);
        elector.close().await;
    }
}

/// Hazard Z19: what we make above entries lets no stranger put anything beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_can_put_nothing_beside_the_entries_of_a_user() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let (app, other) = (User::of(server.admin(), "app").await, User::of(server.admin(), "other").await);
        let root = a_root();
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        let mut stranger = other.admin.session().await.unwrap();
        for parent in [root.clone(), format!("{root}/e"), format!("{root}/~sessions")] {
            let path = format!("{parent}/c-{:032x}-0000000000", 0);
            let refused = stranger.create(&path, "", Lifetime::Persistent).await.unwrap_err().to_string();
            assert!(refused.contains("code -102"), "NoAuth: {refused}");
        }
        stranger.close().await.unwrap();
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// The least that a user needs: a root that an operator has made and given to it, below what it may not even read, in a store
/// where all else is closed. Whoever may only read that root observes; without the root the refusal says which znode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_of_its_own_is_all_that_a_user_needs() {
    for version in Version::ZOOKEEPER {
        let server = ZookeeperServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        let users = ["operator", "app", "reader"].map(|name| User::of(server.admin(), name));
        let [operator, app, reader] = users;
        let (operator, app, reader) = (operator.await, app.await, reader.await);
        make(&operator.admin, "/foreign", &[operator.may(ALL)]).await;
        // As the threat model's commands do it.
        make(&operator.admin, "/foreign/acme", &[app.may(ALL), reader.may(READ)]).await;
        operator.admin.set_acl("/", &[operator.may(ALL)]).await.unwrap();

        let endpoint = server.endpoint();
        let [elector, second] = [(), ()].map(|()| app.connect(&endpoint, "/foreign/acme"));
        let (elector, second) = (elector.await, second.await);
        let first = promptly("leading", elector.campaign("e")).await.unwrap();
        goes_on(&first).await;
        let waiting = {
            let second = Arc::clone(&second);
            tokio::spawn(async move { second.campaign("e").await })
        };
        until("it waits", async || elector.candidates("e").await.unwrap().len() == 2).await;
        let mut leaders = second.observe("e");
        let seen = promptly("observing", leaders.next()).await.unwrap().unwrap();
        assert_eq!(seen.map(|leader| leader.id), Some(first.candidate().to_string()));
        first.resign().await.unwrap();
        let next = promptly("the hand-over", waiting).await.unwrap().unwrap();
        goes_on(&next).await;
        let diagnoses = within("the diagnoses", elector.diagnose()).await;
        let refused: Vec<_> =
            diagnoses.iter().filter(|f| f.level == Level::Problem || f.text.contains(" may ")).collect();
        assert!(refused.is_empty(), "{refused:?}");

        // The elections' own znodes are their creator's alone; the root is where a reader may look.
        let onlooker = reader.connect(&endpoint, "/foreign/acme").await;
        let refused = promptly("the refusal", onlooker.campaign("other")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert_eq!(promptly("looking", onlooker.leader("none")).await.unwrap(), None);
        let refused = promptly("the refusal", onlooker.leader("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");

        for (user, root, words) in [
            (&app, "/foreign/other", "creating /foreign/other"),
            (&app, "/foreign/other/deeper", "creating /foreign/other"),
            (&app, "/acme", "creating /acme"),
            (&reader, "/foreign/acme", "creating /foreign/acme/"),
        ] {
            let lost = user.connect(&endpoint, root).await;
            let refused = promptly("the refusal", lost.campaign("new")).await.unwrap_err();
            assert!(matches!(refused, Error::Unauthorized(_)), "{version:?} {root}: {refused:?}");
            let text = refused.to_string();
            assert!(text.contains(words) && text.contains("not authorized"), "{version:?} {root}: {text}");
            assert_eq!(lost.status().connection, Connection::Refused);
            lost.close().await;
        }
        assert!(next.is_leader());
        next.resign().await.unwrap();
        for elector in [elector, second, onlooker] {
            elector.close().await;
        }
    }
}

/// Hazard G8: the znodes above entries are taken away from their user in the middle of a term. Whoever comes is told so within
/// seconds, an observer when it looks again; the leader goes on leading, safely, for its heartbeats and its entry are its own still. It
/// cannot be removed any more, so that resigning ends the session with it; and who waited leads after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_that_are_taken_away_end_no_term_and_begin_none() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let (app, operator) =
            (User::of(server.admin(), "app").await, User::of(server.admin(), "operator").await);
        let (root, endpoint) = (a_root(), server.endpoint());
        // No slow answer is to break a connection, over which all is looked at anew.
        let url = format!("zookeeper://{}@{endpoint}{root}?attempt_timeout=10s", app.login);
        let config = Config::new().with_ttl(Duration::from_secs(10));
        let electors = [(), (), (), ()].map(|()| tenure::connect_with(&url, config.clone()));
        let [leading, waiting, observing, late] = electors;
        let (leading, waiting) = (leading.await.unwrap(), waiting.await.unwrap());
        let (observing, late) = (observing.await.unwrap(), late.await.unwrap());
        let leadership = promptly("leading", leading.campaign("e")).await.unwrap();
        let turn = {
            let waiting = Arc::clone(&waiting);
            tokio::spawn(async move { waiting.campaign("e").await })
        };
        until("it waits", async || leading.candidates("e").await.unwrap().len() == 2).await;
        let mut leaders = observing.observe("e");
        promptly("observing", leaders.next()).await.unwrap().unwrap();
        let told = tokio::spawn(async move { leaders.next().await });

        for path in [format!("{root}/e"), format!("{root}/~sessions")] {
            app.admin.set_acl(&path, &[operator.may(ALL)]).await.unwrap();
        }
        let refused = promptly("the refusal", late.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert_eq!(late.status().connection, Connection::Refused);
        goes_on(&leadership).await;
        let told = within("what the observer is told", told).await.unwrap().unwrap();
        assert!(matches!(told, Err(Error::Unauthorized(_))), "{told:?}");
        assert!(leadership.is_leader() && !turn.is_finished());

        let entry = leadership.entry().to_owned();
        within("resigning", leadership.resign()).await.unwrap();
        let status = leading.status();
        assert!(status.last_error.is_some_and(|why| why == "leaving on ZooKeeper: not authorized"));
        let next = promptly("the hand-over", turn).await.unwrap().unwrap();
        assert_eq!(operator.admin.get(&entry).await.unwrap(), None, "it went with its session");
        goes_on(&next).await;
        drop(next);
        for elector in [leading, waiting, observing, late] {
            within("closing", elector.close()).await;
        }
    }
}

/// Hazard G8: the znode of the heartbeats itself is taken away: leadership is lost by its deadline, and why is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_may_not_send_heartbeats_is_lost_by_its_deadline() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let (app, operator) =
            (User::of(server.admin(), "app").await, User::of(server.admin(), "operator").await);
        let root = a_root();
        let elector = app.connect(&server.endpoint(), &root).await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        let sessions = format!("{root}/~sessions");
        let pulse = app.admin.children(&sessions).await.unwrap().pop().unwrap();
        app.admin.set_acl(&format!("{sessions}/{pulse}"), &[operator.may(ALL)]).await.unwrap();
        assert_eq!(promptly("the loss", leadership.lost()).await, LossReason::Deadline);
        let status = elector.status();
        let why = status.last_error.unwrap_or_default();
        assert!(why.contains("heartbeat") && why.contains("not authorized"), "{why}");
        assert!(!leadership.is_leader());
        drop(leadership);
        within("closing", elector.close()).await;
    }
}
