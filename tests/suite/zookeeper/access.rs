//! ZooKeeper with authentication: access control lists, digest and SASL users.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Config, Connection, Elector, Error, LossReason};
use tenure_containers::{CreateMode, SharedZookeeper, Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::suite::{until, within};
use tenure_tests::promptly;

const PASSWORD: &str = "correct-horse-7";
/// All of ZooKeeper's permission bits.
const ALL: i32 = 31;

async fn connect(server: &SharedZookeeper, login: &str, root: &str) -> Arc<dyn Elector> {
    let url = format!("zookeeper://{login}{}{root}", server.endpoint());
    tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(3))).await.unwrap()
}

/// Hazard Z19: znodes that an authenticated session creates belong to its user alone: the entry, and its ancestors, whose
/// permissions decide who may delete the entry.
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
        for path in [entry.as_str(), &format!("{root}/e"), &root] {
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

/// Hazard G8: a campaign without permission fails within seconds with an error that does not contain the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_without_permission_is_refused() {
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
    until("no candidate is left", async || app.children(&format!("{root}/e")).await.unwrap().is_empty())
        .await;
}

/// Hazard G8: an observer gets an error when the election was created after it started and it may not read the election. A
/// server does not send an event for such a watch (ZOOKEEPER-4799), so that only the observer's next read notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_without_permission_is_refused() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let root = format!("/access-{:016x}", fastrand::u64(..));
    let (observer, owner) =
        (connect(&server, "", &root).await, connect(&server, &format!("app:{PASSWORD}@"), &root).await);
    let mut leaders = observer.observe("e");
    assert_eq!(within("the first read", leaders.next()).await.unwrap().unwrap(), None);
    let observed = tokio::spawn(async move { leaders.next().await });
    let watched = format!("{root}/e");
    let watches = async || server.admin().four_letter_command("wchp").await.unwrap().contains(&watched);
    until("it watches", watches).await;
    let leadership = within("leading", owner.campaign("e")).await.unwrap();
    let observed = within("the refusal", observed).await.unwrap().unwrap();
    assert!(matches!(observed, Err(Error::Unauthorized(_))), "{observed:?}");
    drop(leadership);
    observer.close().await;
    owner.close().await;
}

/// Hazard G10: an election in which a user may create znodes but not read them refuses the user's campaign, and no entry
/// is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_campaign_leaves_no_entry() {
    /// Create and delete children, and nothing else.
    const CREATE_AND_DELETE: i32 = 4 | 8;
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let root = format!("/access-{:016x}", fastrand::u64(..));
        let elector = connect(&server, "", &root).await;
        // Another election, which keeps the session open.
        let other = within("leading", elector.campaign("other")).await.unwrap();
        let mut operator = server.admin().session().await.unwrap();
        let parent = format!("{root}/e");
        operator
            .create_with_permissions(&parent, "", CreateMode::Persistent, CREATE_AND_DELETE)
            .await
            .unwrap();
        let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        // ZooKeeper does not delete a znode that has children.
        assert!(operator.delete(&parent).await.unwrap(), "it has no children");
        assert!(other.is_leader());
        other.resign().await.unwrap();
        elector.close().await;
    }
}

/// A candidate waits for the entry before its own also when it may not read that entry.
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

/// A server with the SASL users `app` and `other`.
async fn sasl_server(version: Version) -> ZookeeperServer {
    let settings = ZookeeperSettings::default().sasl_users(&[("app", PASSWORD), ("other", PASSWORD)]);
    ZookeeperServer::start_with(version, &settings).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect_with_sasl(server: &ZookeeperServer, login: &str, root: &str) -> Arc<dyn Elector> {
    let url = format!("zookeeper://{login}{}{root}?auth=sasl", server.endpoint());
    tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(3))).await.unwrap()
}

/// Hazards Z19, G8: a SASL user leads, and other users are refused within seconds with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_sasl_users_lead() {
    for version in Version::ZOOKEEPER {
        let server = sasl_server(version).await;
        let elector = connect_with_sasl(&server, &format!("app:{PASSWORD}@"), "/acme").await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        for login in ["app:wrong-horse@".to_owned(), format!("nobody:{PASSWORD}@")] {
            let refused = connect_with_sasl(&server, &login, "/acme").await;
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

/// Hazard Z19: a SASL user cannot delete znodes of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn znodes_of_a_sasl_user_belong_to_it() {
    let server = sasl_server(Version::Zookeeper39).await;
    let elector = connect_with_sasl(&server, &format!("app:{PASSWORD}@"), "/acme").await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let entry = leadership.entry().to_owned();
    let refused = server.admin().delete(&entry).await.unwrap_err().to_string();
    assert!(refused.contains("code -102"), "NoAuth: {refused}");
    let other = connect_with_sasl(&server, &format!("other:{PASSWORD}@"), "/acme").await;
    let error = promptly("the refusal", other.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    assert!(leadership.is_leader());
    drop(leadership);
    elector.close().await;
    other.close().await;
}

/// Hazard G8: a leader's password is changed and the server restarted; the server refuses to resume the session. Leadership is
/// lost by its deadline, the status says why, and the next campaign is refused within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_ends_leadership_with_an_error() {
    for version in Version::ZOOKEEPER {
        let server = sasl_server(version).await;
        let url = format!("zookeeper://app:{PASSWORD}@{}/acme?auth=sasl", server.endpoint());
        // Longer than the server takes to restart.
        let config = Config::new().with_ttl(Duration::from_secs(25));
        let elector = tenure::connect_with(&url, config).await.unwrap();
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        server.replace_users(&[("app", "another-horse-8"), ("other", PASSWORD)]).await.unwrap();
        server.stop().await.unwrap().heal().await.unwrap();
        assert!(leadership.is_leader(), "a restart alone does not end leadership: {:?}", leadership.loss());
        assert_eq!(within("the loss", leadership.lost()).await, LossReason::Deadline);
        let status = elector.status();
        assert_eq!(status.connection, Connection::Refused, "{status:?}");
        let error = status.last_error.unwrap_or_default();
        assert!(error.contains("resuming the session") && !error.contains("horse"), "{error}");
        drop(leadership);
        let error = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{version:?} {error:?}");
        within("closing", elector.close()).await;
    }
}

/// Invalid settings are refused at once.
#[tokio::test]
async fn invalid_auth_and_acl_settings_are_refused() {
    for (url, reason) in [
        ("zookeeper://h?auth=sasl", "it has auth=sasl but no user"),
        ("zookeeper://a:b@h?auth=kerberos", "auth=kerberos is neither digest nor sasl"),
        ("zookeeper://a:b@h?acl=none", "acl=none is neither creator nor open"),
    ] {
        let error = tenure::connect(url).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
