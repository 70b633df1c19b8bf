//! etcd with its doors locked: users, roles, tokens that expire.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tenure::{Config, Connection, Elector, Error};
use tenure_testkit::{
    containers::{EtcdServer, Permission, Version},
    suite::{until, within},
};

const PASSWORD: &str = "correct-horse-7";

/// A server on which `app` may use `/acme/` and `reader` may only read it.
async fn locked(version: Version, flags: &[&str]) -> EtcdServer {
    let server = EtcdServer::start_with(version, flags).await.unwrap_or_else(|error| panic!("{error}"));
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    admin.add_user("reader", PASSWORD, Permission::Read, "/acme/").await.unwrap();
    admin.enable_auth("root-password").await.unwrap();
    server
}

async fn connect(server: &EtcdServer, login: &str, prefix: &str) -> Arc<dyn Elector> {
    let url = format!("etcd://{login}{}{prefix}", server.endpoint());
    let config = Config::new().with_ttl(Duration::from_secs(3));
    tenure::connect_with(&url, config).await.unwrap()
}

/// The refusal, which has to come within seconds and to say nothing of the password.
async fn refusal(elector: &Arc<dyn Elector>) -> String {
    let patience = Duration::from_secs(10);
    let error = match tokio::time::timeout(patience, elector.campaign("e")).await {
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
        let server = locked(version, &[]).await;
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

/// Hazard E10: the token of a login expires while a leader leads, a candidate waits and an observer
/// watches: all three go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_is_renewed() {
    let server = locked(Version::Etcd35, &["--auth-token-ttl=2"]).await;
    let login = format!("app:{PASSWORD}@");
    let (a, b) = (connect(&server, &login, "/acme").await, connect(&server, &login, "/acme").await);
    let mut leaders = b.observe("e");
    assert_eq!(within("nobody", leaders.next()).await.unwrap().unwrap(), None);
    let first = within("leading", a.campaign("e")).await.unwrap();
    let elector = Arc::clone(&b);
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    for _ in 0..6 {
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader()).await;
        assert!(first.is_leader(), "{:?}", first.loss());
    }
    assert!(!waiting.is_finished());
    within("the first leader", leaders.next()).await.unwrap().unwrap().unwrap();
    first.resign().await.unwrap();
    let second = within("the hand-over", waiting).await.unwrap().unwrap();
    assert!(second.is_leader());
    let seen = async {
        while leaders.next().await.unwrap().unwrap().and_then(|leader| leader.token)
            != Some(second.fencing_token())
        {}
    };
    within("the second leader", seen).await;
    a.close().await;
    b.close().await;
}

/// Hazards E10, G8: a leader whose password is changed loses its leadership before its deadline, and it and whoever waits are
/// told in words that they are not let in any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_credentials_end_leadership_in_words() {
    for version in Version::ETCD {
        let server = EtcdServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        let admin = server.admin();
        admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
        let root = admin.enable_auth("root-password").await.unwrap();
        let login = format!("app:{PASSWORD}@");
        let (a, b) = (connect(&server, &login, "/acme").await, connect(&server, &login, "/acme").await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waits = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waits.campaign("e").await });
        until("it waits", async || b.candidates("e").await.is_ok_and(|all| all.len() == 2)).await;
        root.change_password("app", "another-horse-8").await.unwrap();
        within("the loss", first.lost()).await;
        assert!(!first.is_leader());
        let refused = refusal(&a).await;
        assert!(refused.contains("invalid user ID or password"), "{refused}");
        let waited = within("the refusal", waiting).await.unwrap().unwrap_err();
        assert!(matches!(waited, Error::Unauthorized(_)), "{waited:?}");
        for elector in [a, b] {
            elector.close().await;
        }
    }
}
