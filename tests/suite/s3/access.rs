//! S3 servers with keys and permissions, TLS, faults, and a server that ignores conditions.

use std::{fs, path::Path};

use futures::future::join_all;
use tenure::{Elector, Error, Level};
use tenure_containers::{S3Server, S3Settings, TlsFiles, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{
    Authority, ClientFiles,
    campaign::{campaign, connect, leads, refusal},
    wait_for_heartbeats,
};

const VERSION: Version = Version::Seaweedfs4;

const OLD: &str = "correct-horse-7";
const NEW: &str = "another-horse-8";
/// What a candidate does in the bucket.
const ALL: &[&str] = &["Read:suite", "Write:suite", "List:suite"];

async fn server(settings: &S3Settings) -> S3Server {
    S3Server::start_with(VERSION, settings).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The findings of a doctor that are not good, in words.
async fn findings(url: &str) -> Vec<String> {
    let elector = connect(url).await;
    let found = within("the diagnosis", elector.diagnose()).await;
    elector.close().await;
    let bad = found.into_iter().filter(|found| found.level != Level::Good);
    bad.map(|found| format!("{} {} {}", found.subject, found.text, found.advice.unwrap_or_default()))
        .collect()
}

/// Hazard G8: each refusal is reported within seconds, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_key_is_reported() {
    let settings = S3Settings::default()
        .identity("app", OLD, ALL)
        .identity("reader", OLD, &["Read:suite", "List:suite"])
        .identity("early", OLD, &["Read:nowhere", "List:nowhere"]);
    let server = server(&settings).await;
    let endpoint = format!("endpoint=http://{}", server.endpoint());
    leads(&format!("s3://app:{OLD}@suite/acme?{endpoint}")).await;
    for (login, bucket, expected) in [
        ("app:wrong-horse", "suite", "SignatureDoesNotMatch"),
        ("nobody:wrong-horse", "suite", "check the access key and its secret: s3://KEY@bucket"),
        (&format!("reader:{OLD}"), "suite", "allow s3:GetObject, s3:PutObject and s3:DeleteObject"),
        (&format!("app:{OLD}"), "elsewhere", "AccessDenied"),
    ] {
        let refused = refusal(&format!("s3://{login}@{bucket}/acme?{endpoint}")).await;
        assert!(matches!(refused, Error::Unauthorized(_)), "{refused:?}");
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    let found = findings(&format!("s3://early:{OLD}@nowhere/acme?{endpoint}")).await.concat();
    assert!(
        found.contains("NoSuchBucket") && found.contains("create the bucket, or name another one"),
        "{found}"
    );
    let found = findings(&format!("s3://reader:{OLD}@suite/acme?{endpoint}")).await.concat();
    assert!(found.contains("conditional writes") && found.contains("AccessDenied"), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doctor_finds_nothing_wrong() {
    let server = server(&S3Settings::default()).await;
    let url = server.admin().url("acme");
    leads(&url).await;
    let elector = connect(&url).await;
    let leadership = elector.campaign("other").await.unwrap();
    let found = format!("{:?}", within("the diagnosis", elector.diagnose()).await);
    leadership.resign().await.unwrap();
    elector.close().await;
    for expected in
        ["has the bucket", "honoured (If-None-Match and If-Match)", "deletion", "1 sessions", "lifecycle"]
    {
        assert!(found.contains(expected), "{expected}: {found}");
    }
    assert_eq!(findings(&url).await, [] as [String; 0]);
    let left = server.admin().list("acme/doctor").await.unwrap();
    assert_eq!(left, [] as [String; 0], "the doctor removes its object");
}

/// Hazard C3: a server that accepts conditions and ignores them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ignores_conditions_is_refused() {
    let server = server(&S3Settings::default().ignores_conditions()).await;
    let url = server.admin().url("acme");
    let refused = refusal(&url).await;
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    assert!(
        refused.to_string().contains("ignores the condition of a write: two candidates could lead"),
        "{refused}"
    );
    let found = findings(&url).await.join("\n");
    assert!(found.contains("conditional writes the server ignores If-"), "{found}");
}

/// Replaces a file, which may be read at any time.
fn rotate(file: &Path, secret: &str) {
    let next = file.with_extension("next");
    fs::write(&next, secret).unwrap();
    fs::rename(next, file).unwrap();
}

/// Hazard G33: a leader stays one while the secret of its key is replaced, on the server first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_secret_is_used() {
    let server = server(&S3Settings::default().identity("app", OLD, ALL)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    rotate(&file, OLD);
    let at = format!("suite/acme?endpoint=http://{}", server.endpoint());
    let elector = connect(&format!("s3://app@{at}&password_file={}&ttl=10s", file.display())).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    server.set_identities(&S3Settings::default().identity("app", NEW, ALL)).await.unwrap();
    until("the refusal is reported", async || {
        let error = elector.status().last_error.unwrap_or_default();
        assert!(!error.contains("horse"), "{error}");
        error.contains("is read again and the login retried for")
    })
    .await;
    rotate(&file, NEW);
    wait_for_heartbeats(&leadership).await;
    leadership.ensure().unwrap();
    within("resigning", leadership.resign()).await.unwrap();
    elector.close().await;
    leads(&format!("s3://app:{NEW}@{at}")).await;
    refusal(&format!("s3://app:{OLD}@{at}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_of_the_server_is_checked() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files: TlsFiles = authority.server_files(&authority.pem());
    let server = server(&S3Settings::default().tls(files)).await;
    let endpoint = server.tls_endpoint().unwrap();
    let url = |ca: &ClientFiles| {
        format!(
            "s3://admin:admin-secret@suite/acme?endpoint=https://{endpoint}&ca={}",
            ca.path("ca").display()
        )
    };
    let identity = authority.issue("client");
    let (trusting, mistaken) =
        (ClientFiles::new(&authority.pem(), &identity), ClientFiles::new(&other.pem(), &identity));
    leads(&url(&trusting)).await;
    for untrusted in
        [url(&mistaken), format!("s3://admin:admin-secret@suite/acme?endpoint=https://{endpoint}")]
    {
        let elector = connect(&untrusted).await;
        let campaign = campaign(&elector);
        until("it says why", async || {
            let error = elector.status().last_error.unwrap_or_default();
            error.contains("UnknownIssuer") && error.contains("give ca=/path/to/authorities.pem")
        })
        .await;
        elector.close().await;
        campaign.await.unwrap().unwrap_err();
    }
    // The files are read again.
    let elector = connect(&url(&mistaken)).await;
    let campaign = campaign(&elector);
    until("it is refused", async || elector.status().last_error.is_some()).await;
    mistaken.replace_ca(&authority.pem());
    within("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
    elector.close().await;
}

/// What is done to a server.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Killed,
    Frozen,
}

/// Leaders lose leadership by their deadline, and one of the candidates leads afterwards, with a higher token.
async fn outage(outage: Outage) {
    let server = server(&S3Settings::default()).await;
    let url = server.admin().url("acme");
    let electors = join_all([connect(&url), connect(&url)]).await;
    let leadership = within("leading", electors[0].campaign("e")).await.unwrap();
    let token = leadership.fencing_token();
    let waiting = campaign(&electors[1]);
    until("the other waits", async || {
        electors[0].candidates("e").await.is_ok_and(|candidates| candidates.len() == 2)
    })
    .await;
    wait_for_heartbeats(&leadership).await;
    let fault = match outage {
        Outage::Killed => server.kill().await.unwrap(),
        Outage::Frozen => server.pause().await.unwrap(),
    };
    within("losing", leadership.lost()).await;
    assert!(leadership.ensure().is_err());
    drop(leadership);
    fault.heal().await.unwrap();
    let next = within("the next leader", waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > token);
    within("resigning", next.resign()).await.unwrap();
    leads(&url).await;
    for elector in electors {
        elector.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_ends_leaderships_and_the_next_one_leads_after_it() {
    outage(Outage::Killed).await;
}

/// Hazard C6: a request sits in a frozen server, and is carried out long after its sender gave up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_ends_leaderships_and_the_next_one_leads_after_it() {
    outage(Outage::Frozen).await;
}

/// Hazard G35: the bucket was deleted and created again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_bucket_is_used_again() {
    let server = server(&S3Settings::default()).await;
    let url = server.admin().url("acme");
    let elector = connect(&url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    server.admin().delete_bucket().await.unwrap();
    within("losing", leadership.lost()).await;
    drop(leadership);
    server.admin().create_bucket().await.unwrap();
    elector.close().await;
    leads(&url).await;
}
