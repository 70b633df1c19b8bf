//! Requests that are refused, throttled or have no credentials.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use serde_json::json;
use tenure_core::spi::{Backend as _, BackendErrorKind};
use tokio::time::Instant;

use crate::{
    api_server::{ApiServer, Fault, PATIENT, backend_by, write_kubeconfig},
    candidate::{Process, TTL, election, leader, within},
};

/// 429: the server says how long to wait, and the request is sent again after that.
#[tokio::test]
async fn a_throttled_request_waits_as_the_server_says() {
    let (server, a, _) = leader().await;
    server.inject("update", Fault::Refuse(429, Some(1)));
    let (began, writes) = (Instant::now(), server.count("update"));
    a.session.heartbeat().await.unwrap();
    assert_eq!(server.count("update") - writes, 2);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Hazard G8: a verb that is missing is named, with the resource.
#[tokio::test]
async fn a_missing_verb_is_named() {
    for verb in ["get", "create", "update"] {
        let server = ApiServer::start();
        if verb == "update" {
            server.edit("e", |lease| lease["spec"] = json!({ "holderIdentity": "" }));
        }
        server.forbid(verb);
        let a = Process::new(&server).campaign("a").await;
        let refused = a.enter().await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Forbidden, "{refused}");
        let text = refused.to_string();
        assert!(text.contains(&format!("cannot {verb} lease \"e\" in namespace \"elections\"")), "{text}");
        let advice = format!(
            "grant the verb \"{verb}\" on the resource \"leases\" of the API group \"coordination.k8s.io\""
        );
        assert!(text.contains(&advice), "{text}");
        server.allow(verb);
        a.leave().await.unwrap();
        a.win().await;
    }
    let server = ApiServer::start();
    server.forbid("list");
    let refused = server.backend().elections().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Forbidden);
    assert!(refused.to_string().contains("cannot list leases in namespace \"elections\""), "{refused}");
}

/// Hazard G11: a write that a proxy answers with 503 may have been executed. It is not taken for refused.
#[tokio::test]
async fn a_write_that_a_proxy_refuses_is_withdrawn() {
    for verb in ["create", "update"] {
        let server = ApiServer::start();
        if verb == "update" {
            let (a, won) = Process::new(&server).leader("a").await;
            a.session.leave(&a.request, Some(&won.entry)).await.unwrap();
        }
        let b = Process::new(&server).campaign("b").await;
        server.inject(verb, Fault::ExecuteAndRefuse(503, 0));
        assert_eq!(b.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable, "{verb}");
        assert_eq!(server.holder("e"), b.identity(), "{verb}");
        b.session.leave(&b.request, None).await.unwrap();
        assert_eq!(server.holder("e"), "", "{verb}");
    }
}

/// A creation in a namespace that does not exist is not executed: there is nothing to withdraw.
#[tokio::test]
async fn a_missing_namespace_needs_no_withdrawal() {
    let server = ApiServer::start();
    let b = Process::new(&server).campaign("b").await;
    server.inject("create", Fault::Refuse(404, None));
    let refused = b.enter().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("does the namespace exist?"), "{refused}");
    let requests = server.count("get") + server.count("create");
    b.leave().await.unwrap();
    b.session.close().await.unwrap();
    assert_eq!(server.count("get") + server.count("create"), requests);
}

/// Hazard G34: a kubeconfig that names another cluster later is not followed.
#[tokio::test]
async fn another_cluster_is_refused() {
    let (first, other) = (ApiServer::start(), ApiServer::start());
    first.accept_token("first");
    let file = tempfile::NamedTempFile::new().unwrap();
    write_kubeconfig(file.path(), &first.endpoint(), "first");
    let process = Process::with(backend_by(file.path(), PATIENT), TTL);
    let (a, _) = process.leader("a").await;
    write_kubeconfig(file.path(), &other.endpoint(), "second");
    first.accept_token("second");
    let refused = a.session.heartbeat().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("names another cluster or namespace"), "{refused}");
    assert!(other.leases().is_empty());
}

/// Neither the output of a credential plugin nor a line of a kubeconfig is shown.
#[tokio::test]
async fn errors_show_no_credentials() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let plugin = |script: &str| {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": "http://127.0.0.1:9" } }],
            "users": [{ "name": "test", "user": { "exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
                "interactiveMode": "Never",
            } } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        kubeconfig.to_string()
    };
    for kubeconfig in [
        plugin("echo my-secret; exit 1"),
        plugin("echo '{\"status\": my-secret'"),
        "apiVersion: v1\nusers:\n- name: test\n  user:\n    token: [my-secret".to_owned(),
        "apiVersion: v1\nusers:\n- name: test\n  user: my-secret\n".to_owned(),
    ] {
        std::fs::write(file.path(), &kubeconfig).unwrap();
        let b = Process::with(backend_by(file.path(), PATIENT), TTL).campaign("b").await;
        let error = b.enter().await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(!cause.contains("secret"), "{cause}");
    }
}

/// Hazard G33: a token that has expired is read again from its file.
#[tokio::test]
async fn a_rotated_token_is_read_again() {
    let server = ApiServer::start();
    server.accept_token("first");
    let file = tempfile::NamedTempFile::new().unwrap();
    write_kubeconfig(file.path(), &server.endpoint(), "first");
    let process = Process::with(backend_by(file.path(), PATIENT), TTL);
    let (a, _) = process.leader("a").await;
    write_kubeconfig(file.path(), &server.endpoint(), "second");
    server.accept_token("second");
    a.session.heartbeat().await.unwrap();
    server.accept_token("third");
    let refused = a.session.heartbeat().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "it may be replaced soon: {refused}");
    assert!(refused.to_string().contains("check the token"), "{refused}");
    assert!(!refused.to_string().contains("second"), "{refused}");
}

/// A namespace with many Leases is listed page by page.
#[tokio::test]
async fn lists_have_pages() {
    let server = ApiServer::start();
    for n in 0..1_200 {
        server.edit(&format!("other-{n}"), |lease| lease["spec"] = json!({ "holderIdentity": "x" }));
    }
    let (_z, _) = Process::new(&server).leader("z").await;
    let listed = server.backend().elections().await.unwrap();
    assert_eq!(listed, [election()]);
    assert_eq!(server.count("list"), 3);
}

/// Hazard G33: a refusal of what was allowed before may pass by itself, as when a control plane restarts. What it costs is a leadership, and
/// not the campaign.
#[tokio::test]
async fn a_refusal_that_passes_is_no_permanent_error() {
    let (server, a, _) = leader().await;
    a.session.heartbeat().await.unwrap();
    for refuses in ["get", "update", "token"] {
        match refuses {
            "token" => server.accept_token("another"),
            verb => server.forbid(verb),
        }
        if refuses == "get" {
            server.inject("update", Fault::Refuse(409, None));
        }
        let refused = a.session.heartbeat().await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
        let text = refused.to_string();
        assert!(
            text.contains("although allowed before; retrying for 1") && text.contains(" s: cannot "),
            "{text}"
        );
        assert!(text.contains("check the token") || text.contains("grant the verb"), "{text}");
        server.accept_token("secret");
        server.allow(refuses);
        a.session.heartbeat().await.unwrap();
    }
}

/// A request that is throttled delays no other: renewals go on.
#[tokio::test]
async fn a_throttled_request_delays_no_other() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, _) = process.leader("a").await;
    server.inject("list", Fault::Refuse(429, Some(30)));
    let process = Arc::new(process);
    let listing = {
        let process = Arc::clone(&process);
        tokio::spawn(async move { process.backend.elections().await })
    };
    server
        .until("the list was refused", |server| server.count("list") == 1 && server.faults_left() == 0)
        .await;
    let began = Instant::now();
    for _ in 0..3 {
        a.session.heartbeat().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(!listing.is_finished());
    assert_eq!(server.count("list"), 1);
    listing.abort();
}

/// A renewal does not wait for longer than its deadline allows, whatever the server asks for.
#[tokio::test]
async fn a_throttled_renewal_is_sent_again_in_time() {
    let (server, a, _) = leader().await;
    for _ in 0..3 {
        server.inject("update", Fault::Refuse(429, Some(30)));
    }
    let (began, writes) = (Instant::now(), server.count("update"));
    a.session.heartbeat().await.unwrap();
    let elapsed = began.elapsed();
    assert_eq!(server.count("update") - writes, 4);
    // Three waits: half of what is left of a third of the duration.
    assert!(elapsed >= TTL / 3 / 2 && elapsed < TTL, "{elapsed:?}");
}

/// A kubeconfig whose credentials are the output of this shell script.
fn write_plugin_kubeconfig(file: &Path, endpoint: &str, script: &str) {
    write_kubeconfig(file, endpoint, "unused");
    let mut kubeconfig: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    kubeconfig["users"][0]["user"] = json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
        "interactiveMode": "Never",
    } });
    fs::write(file, kubeconfig.to_string()).unwrap();
}

/// A credential plugin that hangs blocks nothing but what needs its credentials, and runs once.
#[tokio::test]
async fn a_credential_plugin_that_hangs_blocks_no_thread_of_the_runtime() {
    let server = ApiServer::start();
    server.accept_token("secret");
    let folder = tempfile::tempdir().unwrap();
    let [pipe, answer, runs, file] =
        ["pipe", "answer", "runs", "config"].map(|name| folder.path().join(name));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let script = "echo x >> runs; test -f answer || { cat pipe > read; mv read answer; }; cat answer";
    let script = format!("cd {}; {script}", folder.path().display());
    write_plugin_kubeconfig(&file, &server.endpoint(), &script);
    let process = Process::with(backend_by(&file, Duration::from_millis(300)), TTL);
    let a = process.campaign("a").await;
    for _ in 0..2 {
        let error = a.enter().await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("the credentials could not be read within 300ms"), "{error}");
    }
    assert_eq!(fs::read_to_string(&runs).unwrap(), "x\n");
    let credentials = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": { "token": "secret" },
    });
    tokio::task::spawn_blocking(move || fs::write(pipe, credentials.to_string())).await.unwrap().unwrap();
    within("entering", async {
        while let Err(error) = a.enter().await {
            assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(answer.exists());
}

/// A credential plugin that takes longer than a request may is waited for, also when its credentials expire.
#[tokio::test]
async fn a_slow_credential_plugin_renews_its_credentials() {
    let server = ApiServer::start();
    server.accept_token("secret");
    let folder = tempfile::tempdir().unwrap();
    let [runs, file] = ["runs", "config"].map(|name| folder.path().join(name));
    // The first credentials are about to expire, so that the client wants others for each request.
    let script = r#"
echo x >> runs
test -e slow && { sleep 3; expires='1 hour'; } || expires='10 seconds'
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "secret",'
echo "\"expirationTimestamp\": \"$(date --utc --date="$expires" +%FT%TZ)\"}}""#;
    let script = format!("cd {}{script}", folder.path().display());
    write_plugin_kubeconfig(&file, &server.endpoint(), &script);
    let process = Process::with(backend_by(&file, Duration::from_secs(1)), TTL);
    let (a, _) = process.leader("a").await;
    fs::write(folder.path().join("slow"), "").unwrap();
    within("the renewal", async {
        while let Err(error) = a.session.heartbeat().await {
            assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
        }
    })
    .await;
    a.session.heartbeat().await.unwrap();
    let count = fs::read_to_string(&runs).unwrap().lines().count();
    assert!((2..100).contains(&count), "{count}");
}

/// A write that is refused although it was allowed before was not executed: there is nothing to withdraw, and no Lease is created for that.
#[tokio::test]
async fn a_refused_creation_needs_no_withdrawal() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, _) = process.leader("a").await;
    a.leave().await.unwrap();
    server.delete("e");
    server.forbid("create");
    let b = process.campaign("b").await;
    let refused = b.enter().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
    server.allow("create");
    let reads = server.count("get");
    b.leave().await.unwrap();
    assert_eq!((server.lease("e"), server.count("get")), (None, reads));
}
