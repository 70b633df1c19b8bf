//! NATS with authentication: passwords, permissions, certificates, and buckets that are refused.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tenure::{
    Connection, Elector, Error, Level, Secret,
    nats::{NatsConfig, NatsStore},
    spi::BackendErrorKind,
};
use tenure_cas::{CasStore as _, Epoch, Freshness, Swap};
use tenure_containers::{NatsServer, NatsSettings, SharedNats, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{
    Authority, ClientFiles,
    campaign::{campaign, connect, is_retried, leads, refusal},
    wait_for_heartbeats,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

const GUIDE: &str = include_str!("../../../docs/guide/operating/nats.md");

const OLD: &str = "correct-horse-7";
const NEW: &str = "another-horse-8";

/// The permissions in the guide, for the bucket `billing`. `without` is left out of them.
fn permissions(without: &str) -> String {
    let (_, rest) = GUIDE.split_once("permissions: {").expect("the guide has permissions");
    let (permissions, _) = rest.split_once("\n}").expect("they end");
    let lines = permissions.lines().filter(|line| without.is_empty() || !line.contains(without));
    lines.collect::<Vec<_>>().join("\n")
}

async fn server(settings: NatsSettings) -> NatsServer {
    NatsServer::start_with(Version::Nats215, &settings).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Hazard G8: each refusal is reported within seconds, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_reported() {
    let server = server(NatsSettings::default().user("app", OLD, "")).await;
    let at = server.endpoint();
    leads(&format!("nats://app:{OLD}@{at}/billing")).await;
    for (url, expected) in [
        (
            format!("nats://app:wrong-horse@{at}/billing"),
            "the server refuses the login; check the user, and the password",
        ),
        (format!("nats://nobody:{OLD}@{at}/billing"), "the server refuses the login"),
        (format!("nats://{at}/billing"), "the server asks for a login; give user:password@"),
    ] {
        let refused = refusal(&url).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    // One of the servers may be the one that accepts.
    let elector = connect(&format!("nats://app:wrong-horse@{at},127.0.0.1:1/billing")).await;
    let waiting = tokio::time::timeout(Duration::from_secs(2), elector.campaign("e"));
    assert!(waiting.await.is_err(), "it waits");
    let error = elector.status().last_error.unwrap();
    assert!(error.contains("check the user, and the password") && error.contains("127.0.0.1:1"), "{error}");
    elector.close().await;
}

/// Hazard G8: what the guide says is enough, and without a part of it the error names what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permissions_of_the_guide_are_enough() {
    let parts =
        [("poor", "STREAM.INFO"), ("blind", "STREAM.MSG.GET"), ("mute", "$KV.billing.>"), ("deaf", "_INBOX")];
    let mut settings = NatsSettings::default().user("app", OLD, &permissions(""));
    for (user, without) in parts {
        settings = settings.user(user, OLD, &permissions(without));
    }
    let server = server(settings).await;
    let at = server.endpoint();

    // The user may not create the bucket.
    let refused = refusal(&format!("nats://app:{OLD}@{at}/billing")).await;
    assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    let text = refused.to_string();
    assert!(
        text.contains("$js.api.stream.create.kv_billing")
            && text.contains("nats kv add billing --history=1 --storage=file --replicas=3"),
        "{text}"
    );
    server.admin().create_bucket("billing", &Value::Null).await.unwrap();
    let url = format!("nats://app:{OLD}@{at}/billing");
    leads(&url).await;
    let elector = connect(&url).await;
    let found = elector.diagnose().await;
    let found: Vec<_> = found.iter().filter(|found| found.level != Level::Good).collect();
    let subjects: Vec<_> = found.iter().map(|found| found.subject.as_str()).collect();
    assert_eq!(subjects, ["bucket", "sync_interval"], "{found:?}");
    elector.close().await;

    for (user, without) in parts {
        let refused = refusal(&format!("nats://{user}:{OLD}@{at}/billing")).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{user}: {refused:?}");
        let text = refused.to_string().to_lowercase();
        assert!(
            text.contains(&without.to_lowercase().replace(".>", ""))
                && text.contains("have an administrator allow it"),
            "{user}: {text}"
        );
    }
}

/// Hazard G33: a password file that is rotated while a leader leads, before the server or after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_used() {
    let server = server(NatsSettings::default().user("app", OLD, "")).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, next) = (folder.path().join("password"), folder.path().join("next"));
    let rotate = |password: &str| {
        fs::write(&next, format!("{password}\n")).unwrap();
        fs::rename(&next, &file).unwrap();
    };
    rotate(OLD);
    let elector =
        connect(&format!("nats://app@{}/billing?password_file={}", server.endpoint(), file.display())).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    rotate(NEW);
    wait_for_heartbeats(&leadership).await;
    // The server ends the connection.
    server.reload(&NatsSettings::default().user("app", NEW, "")).await.unwrap();
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// Nobody can pose as the server, and the server asks for a certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_both_sides() {
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = |name: &str| NatsSettings::default().tls(authority.server_files_for(name, &authority.pem()));
    let (server, impostor) = (server(tls("127.0.0.1")).await, server(tls("impostor.example")).await);
    let client = ClientFiles::new(&authority.pem(), &authority.issue("app"));
    leads(&format!("nats://{}/billing?{}", server.endpoint(), client.settings())).await;
    let ca_only = format!("ca={}", client.path("ca").display());
    let distrustful = ClientFiles::new(&other.pem(), &authority.issue("app"));
    let untrusted = ClientFiles::new(&authority.pem(), &other.issue("app"));
    // Retried: files and servers may change.
    for (server, settings, expected) in [
        (&impostor, client.settings(), "certificate not valid for name \"127.0.0.1\""),
        (&server, distrustful.settings(), "invalid peer certificate: UnknownIssuer"),
        (&server, untrusted.settings(), "connecting to NATS at"),
        (&server, ca_only, "connecting to NATS at"),
    ] {
        is_retried(&format!("nats://{}/billing?{settings}", server.endpoint()), expected).await;
    }
}

/// The next connection uses certificates that were replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem(), new.pem());
    let server = server(NatsSettings::default().tls(old.server_files_for("127.0.0.1", &new.pem()))).await;
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let client = ClientFiles::new(&both, &old.issue("app"));
    let elector = connect(&format!("nats://{}/billing?{}", proxy.endpoint(), client.settings())).await;
    let campaign = campaign(&elector);
    until("its certificate is refused", async || elector.status().connection == Connection::Retrying).await;
    client.replace_identity(&new.issue("app"));
    let leadership = within("leading", campaign).await.unwrap().unwrap();
    proxy.reset_connections();
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// Hazard C9: a bucket that removes or loses records by itself is refused, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_removes_records_is_refused() {
    let server = SharedNats::get(Version::Nats215).await.unwrap();
    for (settings, expected) in [
        (json!({ "max_age": 60_000_000_000_u64 }), "has a TTL (max_age)"),
        (
            json!({ "max_bytes": 100_000, "discard": "old" }),
            "has a limit of its size, and discards old records",
        ),
        (json!({ "max_msgs": 10, "discard": "old" }), "has a limit of its size, and discards old records"),
        (json!({ "storage": "memory" }), "is kept in memory: a restart of the servers loses it"),
        (json!({ "sources": [{ "name": "another" }] }), "has sources: records of other streams"),
        (json!({ "persist_mode": "async" }), "before they are on a disk (persist_mode: async)"),
    ] {
        let bucket = format!("refused-{:016x}", fastrand::u64(..));
        server.admin().create_bucket(&bucket, &settings).await.unwrap();
        let refused = refusal(&format!("nats://{}/{bucket}", server.endpoint())).await;
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains(expected) && text.contains("nats kv add"), "{text}");
        server.admin().delete_bucket(&bucket).await.unwrap();
    }
    // One that refuses writes when it is full removes nothing.
    let bucket = format!("limited-{:016x}", fastrand::u64(..));
    server.admin().create_bucket(&bucket, &json!({ "max_bytes": 1_000_000 })).await.unwrap();
    leads(&format!("nats://{}/{bucket}", server.endpoint())).await;
    server.admin().delete_bucket(&bucket).await.unwrap();
}

/// Records are lost then. Nobody goes on as if they were not, whether the connection ends or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_was_created_again_is_refused_until_a_restart() {
    let server = SharedNats::get(Version::Nats215).await.unwrap();
    for reset in [true, false] {
        let bucket = format!("again-{:016x}", fastrand::u64(..));
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        let url = format!("nats://{}/{bucket}", proxy.endpoint());
        let elector = connect(&url).await;
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        server.admin().delete_bucket(&bucket).await.unwrap();
        server.admin().create_bucket(&bucket, &Value::Null).await.unwrap();
        if reset {
            proxy.reset_connections();
        }
        within("the loss", leadership.lost()).await;
        drop(leadership);
        let campaign = campaign(&elector);
        until("it says why", async || {
            elector.status().last_error.unwrap_or_default().contains("was deleted or created again")
        })
        .await;
        assert!(!campaign.is_finished());
        campaign.abort();
        elector.close().await;
        leads(&url).await;
        server.admin().delete_bucket(&bucket).await.unwrap();
    }
}

/// The versions of a bucket do not begin again when it is created again. The swap of an earlier version fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_do_not_begin_again_with_another_bucket() {
    let server = SharedNats::get(Version::Nats215).await.unwrap();
    let bucket = format!("versions-{:016x}", fastrand::u64(..));
    let mut versions = Vec::new();
    for _ in 0..2 {
        let store = NatsStore::new(NatsConfig::new([server.endpoint()], &bucket)).unwrap();
        let Swap::Done(version) = store.swap("e/a", None, Epoch(0), b"1").await.unwrap() else { panic!() };
        if let Some(former) = versions.first() {
            let swap = store.swap("e/a", Some(former), Epoch(0), b"2").await.unwrap();
            assert!(matches!(swap, Swap::Conflict), "{former:?} {version:?}");
        }
        versions.push(version);
        store.close().await;
        server.admin().delete_bucket(&bucket).await.unwrap();
    }
    assert_ne!(versions[0], versions[1]);
}

/// A request that the server refuses, or that nobody answers, costs no connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_open_no_other_connection() {
    let settings = NatsSettings::default().user("app", OLD, &permissions("STREAM.MSG.GET"));
    let server = server(settings).await;
    server.admin().create_bucket("billing", &Value::Null).await.unwrap();
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let config = NatsConfig::new([proxy.endpoint()], "billing").user("app", Secret::new(OLD));
    let store = NatsStore::new(config).unwrap();
    for _ in 0..3 {
        let refused = store.read("e/a", Freshness::MayBeStale).await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Forbidden, "{refused}");
    }
    assert_eq!(proxy.accepted(), 1);
    // The connection is usable.
    assert!(matches!(store.swap("e/a", None, Epoch(0), b"1").await, Ok(Swap::Done(_))));
    server.reload(&NatsSettings::default().user("app", OLD, &permissions(""))).await.unwrap();
    until("the permission counts", async || store.read("e/a", Freshness::Fresh).await.is_ok()).await;
    store.close().await;
}

/// A server that would lose the condition of a write is refused at once, and the doctor says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let old = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let info = "INFO {\"server_id\":\"x\",\"version\":\"2.10.27\",\"max_payload\":1048576,\"headers\":true,\"jetstream\":true}\r\n";
                stream.write_all(info.as_bytes()).await?;
                let mut lines = BufReader::new(stream).lines();
                while let Some(line) = lines.next_line().await? {
                    if line == "PING" {
                        lines.get_mut().write_all(b"PONG\r\n").await?;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    let url = format!("nats://{at}/billing");
    let refused = refusal(&url).await;
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    let expected = "the server is NATS \"2.10.27\", and a conditional write is safe only from 2.11.0 on";
    assert!(refused.to_string().contains(expected), "{refused}");
    let elector = connect(&url).await;
    let found = elector.diagnose().await;
    let problem = found.iter().find(|found| found.level == Level::Problem && found.text.contains(expected));
    assert!(problem.is_some(), "{found:?}");
    elector.close().await;
    old.abort();
}
