//! ZooKeeper with its doors locked: who may change what.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Config, Connection, Elector, Error, LossReason};
use tenure_containers::{Lifetime, SharedZookeeper, Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::suite::{until, within};
use tenure_tests::promptly;

const PASSWORD: &str = "correct-horse-7";
/// All that can be permitted, as ZooKeeper counts it.
const ALL: i32 = 31;

async fn connect(server: &SharedZookeeper, login: &str, root: &str) -> Arc<dyn Elector> {
    let url = format!("zookeeper://{login}{}{root}", server.endpoint());
    tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(3))).await.unwrap()
}

/// Hazard Z19: what an authenticated session makes belongs to its user alone: the entry, and the znodes above
/// it, by whose permissions ZooKeeper decides who may delete the entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_its_user_can_delete_an_entry() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let root = format!("/access-{:016x}", fastrand::u64(..));
        let elector = connect(&server, &format!("app:{PASSWORD}@"), &root).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let entry = leadership.entry().to_owned();

        let refused = server.admin().delete(&entry).await.unwrap_err().to_string();
        assert!(refused.contains("code -102"), "NoAuth: {refused}");
        let app = server.admin().with_auth("digest", &format!("app:{PASSWORD}"));
        let mut session = app.session().await.unwrap();
        let sessions = format!("{root}/~sessions");
        for path in [entry.as_str(), &format!("{root}/e"), &sessions, &root] {
            let acl = session.acl(path).await.unwrap();
            let [(permissions, scheme, id)] = &acl[..] else { panic!("{path}: {acl:?}") };
            assert_eq!((*permissions, scheme.as_str()), (ALL, "digest"), "{path}");
            assert!(id.starts_with("app:"), "{path}: {id}");
        }
        assert!(leadership.is_leader());
        assert!(session.delete(&entry).await.unwrap(), "its user can");
        within("the loss", leadership.lost()).await;
        session.close().await.unwrap();
        drop(leadership);
        elector.close().await;
    }
}

/// Hazard G8: whoever may not enter is told so within seconds, in words, and without the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_enter_is_told_so() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let root = format!("/access-{:016x}", fastrand::u64(..));
    let owner = connect(&server, &format!("app:{PASSWORD}@"), &root).await;
    let leadership = within("leading", owner.campaign("e")).await.unwrap();
    for login in ["", "app:wrong-horse@", &format!("other:{PASSWORD}@")] {
        let elector = connect(&server, login, &root).await;
        let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert_eq!(elector.status().connection, Connection::Refused);
        let text = format!("{refused} {refused:?} {:?} {elector:?}", elector.status());
        assert!(text.contains("not authorized") && !text.contains("horse"), "{text}");
        elector.close().await;
    }
    assert!(leadership.is_leader());
    drop(leadership);
    owner.close().await;
    let app = server.admin().with_auth("digest", &format!("app:{PASSWORD}"));
    until("nobody stands", async || app.children(&format!("{root}/e")).await.unwrap().is_empty()).await;
}

/// Hazard G8: whoever observes an election that it may not read, made after it had begun to, is told so: a server keeps
/// to itself what such a watch was set for (ZOOKEEPER-4799), so that it is seen only when the observer looks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_observe_is_told_so() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let root = format!("/access-{:016x}", fastrand::u64(..));
    let (nobody, owner) =
        (connect(&server, "", &root).await, connect(&server, &format!("app:{PASSWORD}@"), &root).await);
    let mut leaders = nobody.observe("e");
    assert_eq!(within("the first look", leaders.next()).await.unwrap().unwrap(), None);
    let told = tokio::spawn(async move { leaders.next().await });
    let watched = format!("{root}/e");
    let watches = async || server.admin().four_letters("wchp").await.unwrap().contains(&watched);
    until("it watches", watches).await;
    let leadership = within("leading", owner.campaign("e")).await.unwrap();
    let told = within("the refusal", told).await.unwrap().unwrap();
    assert!(matches!(told, Err(Error::Unauthorized(_))), "{told:?}");
    drop(leadership);
    nobody.close().await;
    owner.close().await;
}

/// Hazard G10: an election that may be entered and not read refuses its candidates, and keeps no entry of theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_campaign_leaves_no_entry() {
    /// To create and to delete below, and no more.
    const ENTER_ONLY: i32 = 4 | 8;
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let root = format!("/access-{:016x}", fastrand::u64(..));
        let elector = connect(&server, "", &root).await;
        // Another election, so that the session lives on.
        let other = within("leading", elector.campaign("other")).await.unwrap();
        let mut operator = server.admin().session().await.unwrap();
        let parent = format!("{root}/e");
        operator.create_permitting(&parent, "", Lifetime::Persistent, ENTER_ONLY).await.unwrap();
        let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        // ZooKeeper deletes no znode that has others below it.
        assert!(operator.delete(&parent).await.unwrap(), "nothing is left in it");
        assert!(other.is_leader());
        other.resign().await.unwrap();
        elector.close().await;
    }
}

/// Whoever may not read the entry before its own waits for it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_may_not_be_read_is_waited_for() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let root = format!("/access-{:016x}", fastrand::u64(..));
    let open = connect(&server, "", &root).await;
    let first = within("leading", open.campaign("e")).await.unwrap();
    let named = connect(&server, &format!("app:{PASSWORD}@"), &root).await;
    let second = tokio::spawn({
        let named = Arc::clone(&named);
        async move { named.campaign("e").await }
    });
    until("it waits", async || open.candidates("e").await.unwrap().len() == 2).await;
    let behind = connect(&server, "", &root).await;
    let third = tokio::spawn({
        let behind = Arc::clone(&behind);
        async move { behind.campaign("e").await }
    });
    until("both wait", async || behind.candidates("e").await.unwrap().len() == 3).await;
    first.resign().await.unwrap();
    let second = within("the second leads", second).await.unwrap().unwrap();
    assert!(!third.is_finished());
    second.resign().await.unwrap();
    let third = within("the third leads", third).await.unwrap().unwrap();
    third.resign().await.unwrap();
    for elector in [open, named, behind] {
        elector.close().await;
    }
}

/// A server that knows the users `app` and `other` by SASL.
async fn sasl_server(version: Version) -> ZookeeperServer {
    let settings = ZookeeperSettings::default().users(&[("app", PASSWORD), ("other", PASSWORD)]);
    ZookeeperServer::start_with(version, &settings).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect_by_sasl(server: &ZookeeperServer, login: &str, root: &str) -> Arc<dyn Elector> {
    let url = format!("zookeeper://{login}{}{root}?auth=sasl", server.endpoint());
    tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(3))).await.unwrap()
}

/// Hazards Z19, G8: a user that the servers know by SASL leads, over lost connections too; what it makes is its own, and whoever
/// is refused is told so within seconds, in words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_known_by_sasl_leads_and_nobody_else() {
    for version in Version::ZOOKEEPER {
        let server = sasl_server(version).await;
        let elector = connect_by_sasl(&server, &format!("app:{PASSWORD}@"), "/acme").await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        for login in ["app:wrong-horse@".to_owned(), format!("nobody:{PASSWORD}@")] {
            let refused = connect_by_sasl(&server, &login, "/acme").await;
            let error = promptly("the refusal", refused.campaign("e")).await.unwrap_err();
            assert!(matches!(error, Error::Unauthorized(_)), "{version:?} {error:?}");
            assert_eq!(refused.status().connection, Connection::Refused);
            let text = format!("{error} {error:?} {:?} {refused:?}", refused.status());
            assert!(!text.contains("horse"), "{text}");
            refused.close().await;
        }
        let url = format!("zookeeper://{}/acme", server.endpoint());
        let anonymous =
            tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(3))).await.unwrap();
        let error = promptly("the refusal", anonymous.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{version:?} {error:?}");
        anonymous.close().await;

        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard Z19: of two users known by SASL neither can delete what the other made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_known_by_sasl_makes_is_its_own() {
    let server = sasl_server(Version::Zookeeper39).await;
    let elector = connect_by_sasl(&server, &format!("app:{PASSWORD}@"), "/acme").await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let entry = leadership.entry().to_owned();
    let refused = server.admin().delete(&entry).await.unwrap_err().to_string();
    assert!(refused.contains("code -102"), "NoAuth: {refused}");
    let other = connect_by_sasl(&server, &format!("other:{PASSWORD}@"), "/acme").await;
    let error = promptly("the refusal", other.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    assert!(leadership.is_leader());
    drop(leadership);
    elector.close().await;
    other.close().await;
}

/// Hazard G8: a user's password is changed under a leader, and the server started again: it refuses to let the session go on. The
/// leadership is lost by its deadline, in words, and the next campaign is refused within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_changed_ends_leadership_in_words() {
    for version in Version::ZOOKEEPER {
        let server = sasl_server(version).await;
        let url = format!("zookeeper://app:{PASSWORD}@{}/acme?auth=sasl", server.endpoint());
        // Longer than the server takes to start again.
        let config = Config::new().with_ttl(Duration::from_secs(25));
        let elector = tenure::connect_with(&url, config).await.unwrap();
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        server.replace_users(&[("app", "another-horse-8"), ("other", PASSWORD)]).await.unwrap();
        server.stop().await.unwrap().heal().await.unwrap();
        assert!(leadership.is_leader(), "a restart alone ends nothing: {:?}", leadership.loss());
        assert_eq!(within("the loss", leadership.lost()).await, LossReason::Deadline);
        let status = elector.status();
        assert_eq!(status.connection, Connection::Refused, "{status:?}");
        let said = status.last_error.unwrap_or_default();
        assert!(said.contains("resuming the session") && !said.contains("horse"), "{said}");
        drop(leadership);
        let error = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{version:?} {error:?}");
        within("closing", elector.close()).await;
    }
}

/// What cannot be meant is said at once.
#[tokio::test]
async fn a_login_by_sasl_needs_a_user() {
    for (url, reason) in [
        ("zookeeper://h?auth=sasl", "it has auth=sasl but no user"),
        ("zookeeper://a:b@h?auth=kerberos", "auth=kerberos is neither digest nor sasl"),
        ("zookeeper://a:b@h?acl=none", "acl=none is neither creator nor open"),
    ] {
        let error = tenure::connect(url).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
