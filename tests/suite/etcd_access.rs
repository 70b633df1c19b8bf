//! etcd with its doors locked: users, roles, tokens that expire.

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
/// Sooner than anybody looks again who has not been told.
const SOON: Duration = Duration::from_secs(3);
/// A password is looked at in a moment, and not in the tenth of a second that etcd takes by itself: a busy machine has no
/// time for that whenever a token has expired.
const QUICK: &str = "--bcrypt-cost=4";

/// A server on which `app` may use `/acme/` and `reader` may only read it.
async fn locked(version: Version) -> EtcdServer {
    let server = EtcdServer::start_with(version, &[QUICK]).await.unwrap_or_else(|error| panic!("{error}"));
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

/// The refusal, which has to come within seconds and to say nothing of the password.
async fn refusal(elector: &Arc<dyn Elector>) -> String {
    let patience = Duration::from_secs(10);
    let error = match timeout(patience, elector.campaign("e")).await {
        Ok(outcome) => outcome.unwrap_err(),
        Err(_) => panic!("no refusal within {patience:?}: {:?}", elector.status()),
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

/// Hazard G8: a wrong password, no password, no permission: said at once, in words, to the caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_lead_is_told_so() {
    for version in Version::ETCD {
        let server = locked(version).await;
        let wrong = refusal(&connect(&server, "app:wrong-horse@", "/acme").await).await;
        assert!(wrong.contains("invalid user ID or password"), "{wrong}");
        let nobody = refusal(&connect(&server, "", "/acme").await).await;
        assert!(nobody.contains("user"), "{nobody}");
        let login = format!("app:{PASSWORD}@");
        let elsewhere = refusal(&connect(&server, &login, "/other").await).await;
        assert!(elsewhere.contains("permission"), "{elsewhere}");
        let reader = connect(&server, &format!("reader:{PASSWORD}@"), "/acme").await;
        assert_eq!(reader.leader("e").await.unwrap(), None, "a reader may look");
        let refused = refusal(&reader).await;
        assert!(refused.contains("permission"), "{refused}");
    }
}

/// A server whose logins end two seconds after they were made, whatever is done with them: the tokens that etcd makes
/// by itself live on for as long as they are used.
async fn forgetful(version: Version) -> EtcdServer {
    let flags = [QUICK, "--auth-token=jwt,sign-method=HS256,priv-key=/data/token.key,ttl=2s"];
    let files = [("/data/token.key", "a key that is long enough for HMAC")];
    let server = EtcdServer::start_with_files(version, &flags, &files).await;
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    admin.enable_auth("root-password").await.unwrap();
    server
}

/// Waits until every login that was made before has ended.
async fn logins_have_ended() {
    let begun = Instant::now();
    until("all logins have ended", async || begun.elapsed() > Duration::from_secs(3)).await;
}

/// Hazard E10: while a leader leads, its login ends again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_logs_in_again_whenever_its_token_expires() {
    for version in Version::ETCD {
        let server = forgetful(version).await;
        let elector = connect(&server, &format!("app:{PASSWORD}@"), "/acme").await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let (logins, begun) = (server.admin().logins().await.unwrap(), Instant::now());
        until("it has logged in four times more", async || {
            assert!(leadership.is_leader(), "{:?}", leadership.loss());
            server.admin().logins().await.unwrap() >= logins + 4
        })
        .await;
        assert!(begun.elapsed() > Duration::from_secs(5), "a token serves for as long as it is good");
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// Hazard E10: the watch stream of whoever waits was opened by a login that has ended since. It hears of its turn all
/// the same, leads, and opens what watches it needs next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_token_has_expired_takes_over() {
    for version in Version::ETCD {
        let server = forgetful(version).await;
        let login = format!("app:{PASSWORD}@");
        let [a, b] = [connect(&server, &login, "/acme").await, connect(&server, &login, "/acme").await];
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waits = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waits.campaign("e").await });
        until("it waits", async || b.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        logins_have_ended().await;
        assert!(first.is_leader() && !waiting.is_finished());
        let logins = server.admin().logins().await.unwrap();
        let begun = Instant::now();
        first.resign().await.unwrap();
        let second = within("the hand-over", waiting).await.unwrap().unwrap();
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(2),
            "it was told of its turn, and did not happen to look: {took:?}"
        );
        logins_have_ended().await;
        assert!(server.admin().logins().await.unwrap() > logins);
        // The watch of its own entry is one of those that were opened since.
        let key = second.entry().to_owned();
        let root = server.admin().login("root", "root-password").await.unwrap();
        assert!(root.delete(&key).await.unwrap());
        let begun = Instant::now();
        within("the loss", second.lost()).await;
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        a.close().await;
        b.close().await;
    }
}

/// Hazard E10: an observer that was idle for longer than its login lasts is told of the next change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_whose_token_has_expired_sees_the_next_leader() {
    for version in Version::ETCD {
        let server = forgetful(version).await;
        let observer = connect(&server, &format!("app:{PASSWORD}@"), "/acme").await;
        let mut leaders = observer.observe("e");
        assert_eq!(within("nobody", leaders.next()).await.unwrap().unwrap(), None);
        for _ in 0..2 {
            // Counted before: whoever observes reads again in the background, too.
            let logins = server.admin().logins().await.unwrap();
            logins_have_ended().await;
            let root = server.admin().login("root", "root-password").await.unwrap();
            let logins_and_root = logins + 1;
            let lease = root.grant_lease(Duration::from_secs(60)).await.unwrap();
            let begun = Instant::now();
            root.put_with_lease(&format!("/acme/e/{lease:x}"), "somebody", lease).await.unwrap();
            let seen = within("somebody", leaders.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(seen.session, format!("{lease:x}"));
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
            assert!(server.admin().logins().await.unwrap() > logins_and_root, "it has logged in again");
            logins_have_ended().await;
            let root = server.admin().login("root", "root-password").await.unwrap();
            let begun = Instant::now();
            root.revoke_lease(lease).await.unwrap();
            assert_eq!(within("nobody", leaders.next()).await.unwrap().unwrap(), None);
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        }
        observer.close().await;
    }
}

/// How somebody's credentials are taken away.
#[derive(Clone, Copy, Debug)]
enum Revoked {
    Password,
    Permission,
    Role,
    User,
}

impl Revoked {
    const ALL: [Self; 4] = [Self::Password, Self::Permission, Self::Role, Self::User];

    async fn take(self, root: &EtcdAdmin) {
        let taken = match self {
            Self::Password => root.change_password("app", "another-horse-8").await,
            Self::Permission => root.forbid("app", "/acme/").await,
            Self::Role => root.revoke_role("app").await,
            Self::User => root.delete_user("app").await,
        };
        taken.unwrap();
    }

    /// What etcd says of it.
    fn words(self) -> &'static str {
        match self {
            Self::Password | Self::User => "invalid user ID or password",
            Self::Permission | Self::Role => "permission denied",
        }
    }
}

/// Hazards E10, G8: a leader whose password is changed, whose permission or role is taken or whose user is deleted loses
/// its leadership by its deadline, and it, whoever waits and whoever observes are told in words that they are not let
/// in any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_credentials_end_leadership_in_words() {
    futures::future::join_all(Version::ETCD.map(|version| async move {
        for revoked in Revoked::ALL {
            are_refused_once(version, revoked).await;
        }
    }))
    .await;
}

async fn are_refused_once(version: Version, revoked: Revoked) {
    let case = format!("{version} {revoked:?}");
    let server = EtcdServer::start_with(version, &[QUICK]).await.unwrap_or_else(|error| panic!("{error}"));
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    let root = admin.enable_auth("root-password").await.unwrap();
    let login = format!("app:{PASSWORD}@");
    let [leads, waits, looks] = [
        connect(&server, &login, "/acme").await,
        connect(&server, &login, "/acme").await,
        connect(&server, &login, "/acme").await,
    ];
    let first = within("leading", leads.campaign("e")).await.unwrap();
    let mut leaders = looks.observe("e");
    within("the leader", leaders.next()).await.unwrap().unwrap().unwrap();
    let waiter = Arc::clone(&waits);
    let waiting = tokio::spawn(async move { waiter.campaign("e").await });
    until("it waits", async || waits.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
    revoked.take(&root).await;
    let begun = Instant::now();
    within("the loss", first.lost()).await;
    assert!(begun.elapsed() < TTL + Duration::from_secs(1), "{case}: {:?}", begun.elapsed());
    assert!(!first.is_leader());
    let refused = refusal(&leads).await;
    assert!(refused.contains(revoked.words()), "{case}: {refused}");
    let patience = Duration::from_secs(10);
    let waited = timeout(patience, waiting).await.unwrap_or_else(|_| panic!("{case}: it waits")).unwrap();
    let waited = waited.unwrap_err();
    assert!(matches!(waited, Error::Unauthorized(_)), "{case}: {waited:?}");
    // Whoever only looks is told at the next change.
    let told = async {
        loop {
            if let Err(error) = leaders.next().await.unwrap() {
                return error;
            }
        }
    };
    let told = timeout(patience, told).await.unwrap_or_else(|_| panic!("{case}: it observes"));
    assert!(matches!(told, Error::Unauthorized(_)), "{case}: {told:?}");
    for elector in [leads, waits, looks] {
        within("closing", elector.close()).await;
    }
}

/// A role that may touch what lies below the prefix, and nothing else, does for all that an elector can do; one that may
/// read it does for looking only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_for_the_prefix_is_enough() {
    for version in Version::ETCD {
        let server = locked(version).await;
        let login = format!("app:{PASSWORD}@");
        let [a, b] = [connect(&server, &login, "/acme").await, connect(&server, &login, "/acme").await];
        let reader = connect(&server, &format!("reader:{PASSWORD}@"), "/acme").await;
        let first = within("leading", a.campaign("e")).await.unwrap();
        within("updating", first.set_value("10.0.0.1:80")).await.unwrap();
        let leader = reader.leader("e").await.unwrap().unwrap();
        assert_eq!(leader.value, b"10.0.0.1:80");
        let refused = within("asking", reader.request_resign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(first.is_leader());
        within("asking", b.request_resign("e")).await.unwrap().unwrap();
        within("the leader resigns", first.lost()).await;
        let second = within("leading", b.campaign("e")).await.unwrap();
        second.resign().await.unwrap();
        // What an operator is told: both images are of versions that overlook permissions.
        let diagnoses = within("examining", a.diagnose()).await;
        assert!(diagnoses.iter().all(|diagnosis| diagnosis.level < Level::Problem), "{diagnoses:?}");
        let overlooked = |diagnosis: &Diagnosis| diagnosis.text.contains("nested in a transaction");
        assert!(diagnoses.iter().any(overlooked), "{diagnoses:?}");
        let diagnoses = within("examining", reader.diagnose()).await;
        let problem = diagnoses.iter().find(|diagnosis| diagnosis.level == Level::Problem).unwrap();
        assert!(problem.text.contains("permission denied"), "{diagnoses:?}");
        for elector in [a, b, reader] {
            elector.close().await;
        }
    }
}
