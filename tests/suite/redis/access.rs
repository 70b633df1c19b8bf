//! Redis and Valkey with access control: passwords, rights, certificates, and what is printed.

use std::{fs, io::Write};

use tenure::{Elector, Error};
use tenure_containers::{RedisServer, RedisSettings, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{
    Authority, CapturedLog, ClientFiles,
    campaign::{campaign, connect, is_retried, leads, refusal},
    promptly,
    redis::begin_first_epoch,
    wait_for_heartbeats,
};
use tracing_subscriber::filter::LevelFilter;

const README: &str = include_str!("../../../crates/backends/redis/README.md");

const OLD: &str = "correct-horse-7";
const NEW: &str = "another-horse-8";

/// The rules of the README for the user `app` and the prefix `tenure`.
fn rules() -> Vec<&'static str> {
    let (_, rules) = README.split_once("ACL SETUSER app on >PASSWORD ").unwrap();
    rules.lines().next().unwrap().split(' ').collect()
}

/// A server on which the user `app` has the rights of the README.
async fn server(version: Version, settings: &RedisSettings) -> RedisServer {
    let server = RedisServer::start_with(version, settings).await.unwrap_or_else(|error| panic!("{error}"));
    server.admin().set_user("app", OLD, &rules()).await.unwrap();
    begin_first_epoch(server.admin(), "tenure").await;
    server
}

/// Hazard G8: each refusal is reported within seconds, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_reported() {
    for version in Version::REDIS {
        let server = server(version, &RedisSettings::default()).await;
        let (at, admin) = (server.endpoint(), server.admin());
        leads(&format!("redis://app:{OLD}@{at}/0")).await;
        admin.set_user("off", OLD, &["off"]).await.unwrap();
        for user in ["app:wrong-horse", "nobody:wrong-horse", &format!("off:{OLD}")] {
            let refused = refusal(&format!("redis://{user}@{at}/0")).await;
            assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
            assert!(refused.to_string().contains("check the password, and that the user is on"), "{refused}");
        }
        let refused = refusal(&format!("valkey://{at}/99")).await;
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains("give a lower number of the database"), "{refused}");
        admin.run(&["SET", "taken", "by another program"]).await.unwrap();
        let refused = refusal(&format!("redis://{at}/0?prefix=taken")).await;
        assert!(refused.to_string().contains("another program uses that key"), "{refused}");
        // Last: the client that administers the server has no password either.
        admin.run(&["CONFIG", "SET", "requirepass", OLD]).await.unwrap();
        let refused = refusal(&format!("redis://{at}/0")).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(refused.to_string().contains("give a user and a password"), "{refused}");
        leads(&format!("redis://default:{OLD}@{at}/0")).await;
    }
}

/// What the README grants is all that a user needs, and each right is needed. The error says the command to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_least_rights_takes_part() {
    for version in Version::REDIS {
        let server = server(version, &RedisSettings::default()).await;
        let admin = server.admin();
        let url = format!("redis://app:{OLD}@{}/0", server.endpoint());
        let (first, second) = (connect(&url).await, connect(&url).await);
        let leadership = within("leading", first.campaign("e")).await.unwrap();
        let next = campaign(&second);
        until("it waits", async || first.candidates("e").await.unwrap().len() == 2).await;
        assert_eq!(first.elections().await.unwrap().len(), 1);
        wait_for_heartbeats(&leadership).await;
        leadership.resign().await.unwrap();
        within("the handover", next).await.unwrap().unwrap().resign().await.unwrap();
        let found = format!("{:?}", first.diagnose().await);
        assert!(found.contains("app has all"), "{found}");
        for elector in [first, second] {
            elector.close().await;
        }

        for right in ["-evalsha", "-hget", "-hset", "-info", "-time", "resetkeys"] {
            let mut less = rules();
            less.push(right);
            admin.set_user("app", OLD, &less).await.unwrap();
            if right == "-time" {
                // Needed by the first candidate after a restart.
                admin.run(&["HDEL", "tenure", "epoch"]).await.unwrap();
            }
            let elector = connect(&url).await;
            let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
            assert!(matches!(refused, Error::Unauthorized(_)), "{right}: {refused:?}");
            let text = refused.to_string();
            let (_, command) = text.split_once("has to run: ").unwrap_or_else(|| panic!("{right}: {text}"));
            admin.run(&command.split(' ').collect::<Vec<_>>()).await.unwrap();
            leads(&url).await;
            elector.close().await;
        }
        // Without the right to publish or to subscribe, records are polled.
        for right in ["-publish", "-subscribe", "resetchannels"] {
            let mut less = rules();
            less.push(right);
            admin.set_user("app", OLD, &less).await.unwrap();
            leads(&url).await;
            let elector = connect(&url).await;
            let found = format!("{:?}", elector.diagnose().await);
            assert!(
                found.contains("app may not use ") && found.contains("ACL SETUSER app ~tenure"),
                "{found}"
            );
            elector.close().await;
        }
    }
}

/// Hazard G33: a leader goes on when its password is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_is_followed() {
    for version in Version::REDIS {
        let server = server(version, &RedisSettings::default()).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, format!("{OLD}\n")).unwrap();
        let url = format!("redis://app@{}/0?ttl=20s&password_file={}", server.endpoint(), file.display());
        let elector = tenure::connect(&url).await.unwrap();
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        server.admin().set_user("app", NEW, &rules()).await.unwrap();
        server.admin().disconnect_user("app").await.unwrap();
        until("the refusal is reported", async || {
            let error = elector.status().last_error.unwrap_or_default();
            assert!(!error.contains("horse"), "{error}");
            error.contains("password_file=") && error.contains("is read again and the login retried for")
        })
        .await;
        fs::write(&file, format!("{NEW}\n")).unwrap();
        wait_for_heartbeats(&leadership).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

fn settings(client: &ClientFiles) -> String {
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| client.path(name).display().to_string());
    format!("ca={ca}&cert={cert}&key={key}")
}

/// The server has to have a certificate for its name, and the client one of the server's authority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_both_sides() {
    let (authority, other) = (Authority::new(), Authority::new());
    for version in Version::REDIS {
        let tls = |name| RedisSettings::default().tls(authority.server_files_for(name, &authority.pem()));
        let right = server(version, &tls("127.0.0.1")).await;
        let impostor = server(version, &tls("impostor.example")).await;
        let client = ClientFiles::new(&authority.pem(), &authority.issue("app"));
        let at = right.tls_endpoint().unwrap();
        for scheme in ["redis", "rediss"] {
            leads(&format!("{scheme}://app:{OLD}@{at}/0?{}", settings(&client))).await;
        }
        let distrustful = ClientFiles::new(&other.pem(), &authority.issue("app"));
        let untrusted = ClientFiles::new(&authority.pem(), &other.issue("app"));
        for (at, client, reason) in [
            (impostor.tls_endpoint().unwrap(), &client, "certificate not valid for name \"127.0.0.1\""),
            (at.clone(), &distrustful, "invalid peer certificate: UnknownIssuer"),
            (at, &untrusted, "received fatal alert"),
            // Without TLS the server waits for the rest of a command.
            (right.endpoint(), &client, "no answer within"),
        ] {
            is_retried(&format!("redis://app:{OLD}@{at}/0?{}", settings(client)), reason).await;
        }
    }
}

/// The next connection uses certificates that were replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.server_files_for("127.0.0.1", &format!("{}{}", old.pem(), new.pem()));
    let server = server(Version::Valkey81, &RedisSettings::default().tls(files)).await;
    let proxy = Proxy::start(server.tls_endpoint().unwrap()).await.unwrap();
    let client = ClientFiles::new(&old.pem(), &old.issue("app"));
    let elector =
        connect(&format!("redis://app:{OLD}@{}/0?ttl=20s&{}", proxy.endpoint(), settings(&client))).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    // Certificates are read again after 5 s.
    wait_for_heartbeats(&leadership).await;
    client.replace_identity(&Authority::new().issue("app"));
    proxy.reset_connections();
    until("its certificate is refused", async || {
        elector.status().last_error.is_some_and(|error| error.contains("received fatal alert"))
    })
    .await;
    client.replace_identity(&new.issue("app"));
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// Design rule: no password appears in logs at any level, errors, `Debug`, or printed URLs, even if the server repeats it. The first connection logs what a failover loses,
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_printed_holds_a_password() {
    let server = server(Version::Redis70, &RedisSettings::default()).await;
    let mut log = CapturedLog::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let url = format!("redis://app:{OLD}@{}/0?attempt_timeout=1s", server.endpoint());
    let elector = connect(&url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let fault = server.kill().await.unwrap();
    within("the loss", leadership.lost()).await;
    write!(log, "{elector:?} {leadership:?} {:?}", elector.status()).unwrap();
    fault.heal().await.unwrap();
    drop(leadership);
    server.admin().set_user("app", OLD, &rules()).await.unwrap();
    within("leading", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    elector.close().await;
    refusal(&format!("redis://app:wrong-horse@{}/0", server.endpoint())).await;
    let no_hello = RedisSettings::default().set("rename-command", "HELLO \"\"");
    let no_hello = RedisServer::start_with(Version::Redis70, &no_hello).await.unwrap();
    is_retried(&format!("redis://app:{OLD}@{}/0", no_hello.endpoint()), "unknown command 'HELLO'").await;
    let warnings = log.lines_with("a failover to a replica loses safety");
    assert_eq!(warnings.iter().filter(|line| line.contains("WARN")).count(), 1, "{warnings:?}");
    let text = log.text();
    assert!(text.contains("tenure_redis"), "{text}");
    assert!(!text.contains("horse"), "{:?}", log.lines_with("horse"));
}
