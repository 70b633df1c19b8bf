//! etcd with authentication: users, roles, and tokens that expire.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use tenure::{Config, Connection, Diagnosis, Elector, Error, Level};
use tenure_containers::{EtcdAdmin, EtcdServer, Permission, Version};
use tenure_testkit::suite::{until, within};
use tokio::time::timeout;

const PASSWORD: &str = "correct-horse-7";
const TTL: Duration = Duration::from_secs(5);
/// The time within which a watch reports a change: less than the interval of the periodic reads.
const WATCH_LIMIT: Duration = Duration::from_secs(3);
/// Makes etcd check a password in about a millisecond. By default it takes a tenth of a second, which is too slow on a busy
/// machine when every expired token needs a login.
const CHEAP_HASH: &str = "--bcrypt-cost=4";

/// A server on which the user `app` may read and write `/acme/`, and `reader` may only read it.
async fn server_with_users(version: Version) -> EtcdServer {
    let server =
        EtcdServer::start_with(version, &[CHEAP_HASH]).await.unwrap_or_else(|error| panic!("{error}"));
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    admin.add_user("reader", PASSWORD, Permission::Read, "/acme/").await.unwrap();
    admin.enable_auth("root-password").await.unwrap();
    server
}

async fn connect(server: &EtcdServer, login: &str, prefix: &str) -> Arc<dyn Elector> {
    let url = format!("etcd://{login}{}{prefix}", server.endpoint());
    let config = Config::new().with_ttl(TTL);
    tenure::connect_with(&url, config).await.unwrap()
}

/// The error of a refused campaign. It has to come within seconds and must not contain the password.
async fn refusal(elector: &Arc<dyn Elector>) -> String {
    let limit = Duration::from_secs(10);
    let error = match timeout(limit, elector.campaign("e")).await {
        Ok(outcome) => outcome.unwrap_err(),
        Err(_) => panic!("no refusal within {limit:?}: {:?}", elector.status()),
    };
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    assert!(!error.is_retryable());
    assert_eq!(elector.status().connection, Connection::Refused);
    let mut text = format!("{error} {error:?} {:?} {elector:?}", elector.status());
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    assert!(!text.contains("horse"), "{text}");
    error.to_string()
}

/// Hazard G8: with a wrong password, no password or no permission, the campaign fails at once with an error that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_without_permission_is_refused() {
    for version in Version::ETCD {
        let server = server_with_users(version).await;
        let wrong = refusal(&connect(&server, "app:wrong-horse@", "/acme").await).await;
        assert!(wrong.contains("invalid user ID or password"), "{wrong}");
        let anonymous = refusal(&connect(&server, "", "/acme").await).await;
        assert!(anonymous.contains("user"), "{anonymous}");
        let login = format!("app:{PASSWORD}@");
        let elsewhere = refusal(&connect(&server, &login, "/other").await).await;
        assert!(elsewhere.contains("permission"), "{elsewhere}");
        let reader = connect(&server, &format!("reader:{PASSWORD}@"), "/acme").await;
        assert_eq!(reader.leader("e").await.unwrap(), None, "a reader may read");
        let refused = refusal(&reader).await;
        assert!(refused.contains("permission"), "{refused}");
    }
}

/// A server whose tokens expire two seconds after the login. These are JWTs: the tokens that etcd issues by default do not
/// expire while they are used.
async fn server_with_short_lived_tokens(version: Version) -> EtcdServer {
    let flags = [CHEAP_HASH, "--auth-token=jwt,sign-method=HS256,priv-key=/data/token.key,ttl=2s"];
    let files = [("/data/token.key", "a key that is long enough for HMAC")];
    let server = EtcdServer::start_with_files(version, &flags, &files).await;
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    admin.enable_auth("root-password").await.unwrap();
    server
}

/// Waits until the tokens of all earlier logins have expired.
async fn wait_for_token_expiry() {
    let begun = Instant::now();
    until("all tokens have expired", async || begun.elapsed() > Duration::from_secs(3)).await;
}

/// Hazard E10: a leader's token expires several times during its term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_logs_in_again_whenever_its_token_expires() {
    for version in Version::ETCD {
        let server = server_with_short_lived_tokens(version).await;
        let elector = connect(&server, &format!("app:{PASSWORD}@"), "/acme").await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let (logins, begun) = (server.admin().login_count().await.unwrap(), Instant::now());
        until("it has logged in four times more", async || {
            assert!(leadership.is_leader(), "{:?}", leadership.loss());
            server.admin().login_count().await.unwrap() >= logins + 4
        })
        .await;
        assert!(begun.elapsed() > Duration::from_secs(5), "a token is used until it expires");
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard E10: the watch stream of a waiting candidate was opened with a token that has expired since. The candidate is
/// notified of its turn nevertheless, leads, and opens further watches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_token_has_expired_takes_over() {
    for version in Version::ETCD {
        let server = server_with_short_lived_tokens(version).await;
        let login = format!("app:{PASSWORD}@");
        let [a, b] = [connect(&server, &login, "/acme").await, connect(&server, &login, "/acme").await];
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waits = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waits.campaign("e").await });
        until("it waits", async || b.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        wait_for_token_expiry().await;
        assert!(first.is_leader() && !waiting.is_finished());
        let logins = server.admin().login_count().await.unwrap();
        let begun = Instant::now();
        first.resign().await.unwrap();
        let second = within("the handover", waiting).await.unwrap().unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "the watch notified it, and not a periodic read: {took:?}");
        wait_for_token_expiry().await;
        assert!(server.admin().login_count().await.unwrap() > logins);
        // The watch of its own entry was opened after that.
        let key = second.entry().to_owned();
        let root = server.admin().login("root", "root-password").await.unwrap();
        assert!(root.delete(&key).await.unwrap());
        let begun = Instant::now();
        within("the loss", second.lost()).await;
        assert!(begun.elapsed() < WATCH_LIMIT, "{:?}", begun.elapsed());
        a.close().await;
        b.close().await;
    }
}

/// Hazard E10: an observer that was idle until its token expired is notified of the next change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_whose_token_has_expired_sees_the_next_leader() {
    for version in Version::ETCD {
        let server = server_with_short_lived_tokens(version).await;
        let observer = connect(&server, &format!("app:{PASSWORD}@"), "/acme").await;
        let mut leaders = observer.observe("e");
        assert_eq!(within("no leader", leaders.next()).await.unwrap().unwrap(), None);
        for _ in 0..2 {
            // Counted here: the observer's periodic reads log in too.
            let logins = server.admin().login_count().await.unwrap();
            wait_for_token_expiry().await;
            let root = server.admin().login("root", "root-password").await.unwrap();
            let logins_and_root = logins + 1;
            let lease = root.grant_lease(Duration::from_secs(60)).await.unwrap();
            let begun = Instant::now();
            root.put_with_lease(&format!("/acme/e/{lease:x}"), "another", lease).await.unwrap();
            let seen = within("the leader", leaders.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(seen.session, format!("{lease:x}"));
            assert!(begun.elapsed() < WATCH_LIMIT, "{:?}", begun.elapsed());
            assert!(server.admin().login_count().await.unwrap() > logins_and_root, "it has logged in again");
            wait_for_token_expiry().await;
            let root = server.admin().login("root", "root-password").await.unwrap();
            let begun = Instant::now();
            root.revoke_lease(lease).await.unwrap();
            assert_eq!(within("no leader", leaders.next()).await.unwrap().unwrap(), None);
            assert!(begun.elapsed() < WATCH_LIMIT, "{:?}", begun.elapsed());
        }
        observer.close().await;
    }
}

/// How a user's access is revoked.
#[derive(Clone, Copy, Debug)]
enum Revoked {
    Password,
    Permission,
    Role,
    User,
}

impl Revoked {
    const ALL: [Self; 4] = [Self::Password, Self::Permission, Self::Role, Self::User];

    async fn apply(self, root: &EtcdAdmin) {
        let applied = match self {
            Self::Password => root.change_password("app", "another-horse-8").await,
            Self::Permission => root.revoke_permission("app", "/acme/").await,
            Self::Role => root.revoke_role("app").await,
            Self::User => root.delete_user("app").await,
        };
        applied.unwrap();
    }

    /// The error message of etcd.
    fn error_text(self) -> &'static str {
        match self {
            Self::Password | Self::User => "invalid user ID or password",
            Self::Permission | Self::Role => "permission denied",
        }
    }
}

/// Hazards E10, G8: a leader whose password is changed, whose permission or role is revoked or whose user is deleted loses
/// its leadership by its deadline. The leader, a waiting candidate and an observer get an error that says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_credentials_end_leadership_with_an_error() {
    futures::future::join_all(Version::ETCD.map(|version| async move {
        for revoked in Revoked::ALL {
            all_are_refused_after(version, revoked).await;
        }
    }))
    .await;
}

async fn all_are_refused_after(version: Version, revoked: Revoked) {
    let case = format!("{version} {revoked:?}");
    let server =
        EtcdServer::start_with(version, &[CHEAP_HASH]).await.unwrap_or_else(|error| panic!("{error}"));
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    let root = admin.enable_auth("root-password").await.unwrap();
    let login = format!("app:{PASSWORD}@");
    let [leader, waiter, observer] = [
        connect(&server, &login, "/acme").await,
        connect(&server, &login, "/acme").await,
        connect(&server, &login, "/acme").await,
    ];
    let first = within("leading", leader.campaign("e")).await.unwrap();
    let mut leaders = observer.observe("e");
    within("the leader", leaders.next()).await.unwrap().unwrap().unwrap();
    let candidate = Arc::clone(&waiter);
    let waiting = tokio::spawn(async move { candidate.campaign("e").await });
    until("it waits", async || waiter.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
    revoked.apply(&root).await;
    let begun = Instant::now();
    within("the loss", first.lost()).await;
    assert!(begun.elapsed() < TTL + Duration::from_secs(1), "{case}: {:?}", begun.elapsed());
    assert!(!first.is_leader());
    let refused = refusal(&leader).await;
    assert!(refused.contains(revoked.error_text()), "{case}: {refused}");
    let limit = Duration::from_secs(10);
    let waited = timeout(limit, waiting).await.unwrap_or_else(|_| panic!("{case}: it still waits")).unwrap();
    let waited = waited.unwrap_err();
    assert!(matches!(waited, Error::Unauthorized(_)), "{case}: {waited:?}");
    // An observer gets the error at the next change.
    let observed = async {
        loop {
            if let Err(error) = leaders.next().await.unwrap() {
                return error;
            }
        }
    };
    let observed = timeout(limit, observed).await.unwrap_or_else(|_| panic!("{case}: it still observes"));
    assert!(matches!(observed, Error::Unauthorized(_)), "{case}: {observed:?}");
    for elector in [leader, waiter, observer] {
        within("closing", elector.close()).await;
    }
}

/// A role with read and write permission for the prefix, and nothing else, is enough for everything that an elector does; a
/// role with read permission is enough for observing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_for_the_prefix_is_enough() {
    for version in Version::ETCD {
        let server = server_with_users(version).await;
        let login = format!("app:{PASSWORD}@");
        let [a, b] = [connect(&server, &login, "/acme").await, connect(&server, &login, "/acme").await];
        let reader = connect(&server, &format!("reader:{PASSWORD}@"), "/acme").await;
        let first = within("leading", a.campaign("e")).await.unwrap();
        within("updating", first.set_value("10.0.0.1:80")).await.unwrap();
        let leader = reader.leader("e").await.unwrap().unwrap();
        assert_eq!(leader.value, b"10.0.0.1:80");
        let refused = within("requesting a resignation", reader.request_resign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(first.is_leader());
        within("requesting a resignation", b.request_resign("e")).await.unwrap().unwrap();
        within("the resignation", first.lost()).await;
        let second = within("leading", b.campaign("e")).await.unwrap();
        second.resign().await.unwrap();
        // Both images have versions that do not check permissions in nested transactions; the diagnosis says so.
        let diagnoses = within("the diagnosis", a.diagnose()).await;
        assert!(diagnoses.iter().all(|diagnosis| diagnosis.level < Level::Problem), "{diagnoses:?}");
        let unchecked = |diagnosis: &Diagnosis| diagnosis.text.contains("nested in a transaction");
        assert!(diagnoses.iter().any(unchecked), "{diagnoses:?}");
        let diagnoses = within("the diagnosis", reader.diagnose()).await;
        let problem = diagnoses.iter().find(|diagnosis| diagnosis.level == Level::Problem).unwrap();
        assert!(problem.text.contains("permission denied"), "{diagnoses:?}");
        for elector in [a, b, reader] {
            elector.close().await;
        }
    }
}
