//! Consul with ACLs and TLS: the token and where it is from, the least policy, certificates, and what is refused.

use std::time::Duration;

use tenure::{Config, Connection, Elector, Error};
use tenure_containers::{ConsulServer, ConsulSettings, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{
    Authority, ClientFiles,
    campaign::{campaign, connect, is_retried, leads, refusal},
    promptly, wait_for_heartbeats,
};

/// The rule that the README names.
const LEAST: &str = "key_prefix \"acme/\" { policy = \"write\" }";
const UNKNOWN: &str = "11111111-2222-3333-4444-555555555555";

async fn server() -> ConsulServer {
    let started = ConsulServer::start_with(Version::Consul18, &ConsulSettings::default().acl()).await;
    started.unwrap_or_else(|error| panic!("{error}"))
}

/// The error of a campaign whose token is refused.
async fn unauthorized(url: &str) -> String {
    let refused = refusal(url).await;
    assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
    refused.to_string()
}

/// What the README names is all that a token needs, also to hand over, to be observed, and to collect garbage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_with_the_least_policy_takes_part() {
    const README: &str = include_str!("../../../crates/backends/consul/README.md");
    let rule = README.split_once("```hcl\n").unwrap().1.split_once("```").unwrap().0;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(rule), words(LEAST));
    let server = server().await;
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let token = admin.create_token(rule).await.unwrap().secret;
    let url = format!("consul://token:{token}@{}/acme", server.endpoint());
    let (first, second) = (connect(&url).await, connect(&url).await);
    let leadership = within("leading", first.campaign("e")).await.unwrap();
    let next = campaign(&second);
    until("it waits", async || first.candidates("e").await.unwrap().len() == 2).await;
    assert_eq!(first.elections().await.unwrap().len(), 1);
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    within("the handover", next).await.unwrap().unwrap().resign().await.unwrap();
    for elector in [first, second] {
        elector.close().await;
    }
}

/// Hazard G8: each refusal is reported within seconds, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_remedy() {
    let server = server().await;
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let at = server.endpoint();
    for rules in
        ["key_prefix \"acme/\" { policy = \"read\" }", "key_prefix \"other/\" { policy = \"write\" }"]
    {
        let token = admin.create_token(rules).await.unwrap().secret;
        let refused = unauthorized(&format!("consul://token:{token}@{at}/acme")).await;
        assert!(refused.contains("Permission denied") && !refused.contains(&token), "{refused}");
        let (_, remedy) = refused.split_once("policy with: ").unwrap_or_else(|| panic!("{refused}"));
        let token = admin.create_token(remedy).await.unwrap().secret;
        leads(&format!("consul://token:{token}@{at}/acme")).await;
    }
    let refused = unauthorized(&format!("consul://{at}/acme")).await;
    assert!(refused.contains("Permission denied"), "no token: {refused}");
    let refused = unauthorized(&format!("consul://token:{UNKNOWN}@{at}/acme")).await;
    assert!(refused.contains("Consul does not know the token") && !refused.contains(UNKNOWN), "{refused}");
    let refused = unauthorized(&format!("consul://token:a%20ä@{at}/acme")).await;
    assert!(!refused.contains('ä'), "{refused}");
}

/// A token that is deleted while its owner leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_token_ends_the_leadership_by_its_deadline() {
    let server = server().await;
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let token = admin.create_token(LEAST).await.unwrap();
    let elector = connect(&format!("consul://token:{}@{}/acme", token.secret, server.endpoint())).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    admin.delete_token(&token).await.unwrap();
    within("the loss", leadership.lost()).await;
    let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err().to_string();
    assert!(refused.contains("Consul does not know the token"), "{refused}");
    elector.close().await;
}

/// Hazard G33: a leader goes on when its token is replaced, whether the file or the server changes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_token_is_followed() {
    let server = server().await;
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    for file_first in [true, false] {
        let [old, new] = [admin.create_token(LEAST).await.unwrap(), admin.create_token(LEAST).await.unwrap()];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let rotate = |token: &str| {
            let next = folder.path().join("next");
            std::fs::write(&next, format!("{token}\n")).unwrap();
            std::fs::rename(next, &file).unwrap();
        };
        rotate(&old.secret);
        let url = format!("consul://{}/acme?password_file={}", server.endpoint(), file.display());
        let elector =
            tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(20))).await.unwrap();
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        if file_first {
            rotate(&new.secret);
            admin.delete_token(&old).await.unwrap();
        } else {
            admin.delete_token(&old).await.unwrap();
            until("the refusal is reported", async || {
                let error = elector.status().last_error.unwrap_or_default();
                error.contains("is read again and the login retried for")
            })
            .await;
            rotate(&new.secret);
        }
        wait_for_heartbeats(&leadership).await;
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}

/// As Consul's own programs do. A process cannot safely set its own variables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_has_the_token() {
    const URL: &str = "TENURE_TEST_URL";
    if let Ok(url) = std::env::var(URL) {
        return leads(&url).await;
    }
    let server = server().await;
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let token = admin.create_token(LEAST).await.unwrap().secret;
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "access::the_environment_has_the_token", "--nocapture"]).kill_on_drop(true);
    command.env(URL, format!("consul://{}/acme", server.endpoint())).env("CONSUL_HTTP_TOKEN", token);
    assert!(command.status().await.unwrap().success());
}

async fn tls_server(files: tenure_containers::TlsFiles) -> ConsulServer {
    let settings = ConsulSettings::default().tls(files);
    ConsulServer::start_with(Version::Consul18, &settings).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Nobody can pose as the agent, and the agent checks its clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_both_sides() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = tls_server(authority.server_files(&authority.pem())).await;
    let impostor = tls_server(authority.server_files_for("impostor.example", &authority.pem())).await;
    let (at, at_impostor) = (server.tls_endpoint().unwrap(), impostor.tls_endpoint().unwrap());
    let client = ClientFiles::new(&authority.pem(), &authority.issue("app"));
    leads(&format!("consul://{at}/acme?{}", client.settings())).await;

    let elector = connect(&format!("consul://{at}/acme")).await;
    let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err().to_string();
    assert!(refused.contains("it speaks TLS only: give ca=/path"), "{refused}");
    elector.close().await;
    // Retried: files and servers may change.
    let distrustful = ClientFiles::new(&other.pem(), &authority.issue("app"));
    let untrusted = ClientFiles::new(&authority.pem(), &other.issue("app"));
    for (url, expected) in [
        (
            format!("consul://{at_impostor}/acme?{}", client.settings()),
            "certificate not valid for name \"127.0.0.1\"",
        ),
        (format!("consul://{at}/acme?{}", distrustful.settings()), "invalid peer certificate: UnknownIssuer"),
        (format!("consul://{at}/acme?{}", untrusted.settings()), "received fatal alert"),
        (format!("consul://{at}/acme?ca={}", client.path("ca").display()), "received fatal alert"),
        (format!("consul://{}/acme?{}", server.endpoint(), client.settings()), "received corrupt message"),
    ] {
        is_retried(&url, expected).await;
    }
}

/// The next request uses certificates that were replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_while_a_leader_leads() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = tls_server(old.server_files(&new.pem())).await;
    let client = ClientFiles::new(&old.pem(), &old.issue("app"));
    let url = format!("consul://{}/acme?{}", server.tls_endpoint().unwrap(), client.settings());
    let elector = tenure::connect_with(&url, Config::new().with_ttl(Duration::from_secs(20))).await.unwrap();
    let waiting = campaign(&elector);
    until("its certificate is refused", async || elector.status().connection == Connection::Retrying).await;
    client.replace_identity(&new.issue("app"));
    let leadership = within("leading", waiting).await.unwrap().unwrap();
    // Also where the connections of before still work.
    client.replace_ca(&new.pem());
    until("the server is distrusted", async || {
        elector.status().last_error.unwrap_or_default().contains("invalid peer certificate")
    })
    .await;
    client.replace_ca(&old.pem());
    wait_for_heartbeats(&leadership).await;
    leadership.resign().await.unwrap();
    elector.close().await;
}
