//! `connect_checked`: a store that cannot be used is reported at the start of a service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tenure::{Elector, Error};
use tenure_containers::{
    EtcdServer, Permission, SharedConsul, SharedEtcd, SharedMysql, SharedNats, SharedPostgres, SharedRedis,
    SharedS3, SharedZookeeper, Version,
};
use tenure_testkit::suite::within;

/// How long a check of an unreachable store takes at most: two request timeouts, and some time of a busy machine.
const LIMIT: Duration = Duration::from_secs(6);

async fn refusal(url: &str) -> Error {
    let begun = Instant::now();
    let checked = within("the check", tenure::connect_checked(url)).await;
    let error = checked.err().unwrap_or_else(|| panic!("{url} was accepted"));
    assert!(begun.elapsed() < LIMIT, "{url}: {:?}", begun.elapsed());
    error
}

/// The error of the first campaign.
async fn campaign_error(url: &str) -> String {
    let elector = tenure::connect(url).await.unwrap();
    let error = within("the refusal", elector.campaign("e")).await.unwrap_err();
    elector.close().await;
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_can_be_used_is_accepted() {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let postgres = SharedPostgres::get(Version::Postgres17).await.unwrap();
    let consul = SharedConsul::get(Version::Consul18).await.unwrap();
    let nats = SharedNats::get(Version::Nats215).await.unwrap();
    let s3 = SharedS3::get(Version::Seaweedfs4).await.unwrap();
    let mysql = SharedMysql::get(Version::Mariadb1011).await.unwrap();
    let redis = SharedRedis::get(Version::Redis70).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let unique = format!("checked-{:016x}", fastrand::u64(..));
    let database = mysql.admin().create_database(&unique).await.unwrap();
    let urls = [
        format!("etcd://{}/{unique}?ttl=3s", etcd.endpoint()),
        format!("zookeeper://{}/{unique}?ttl=3s", zookeeper.endpoint()),
        format!("{}?schema={unique}&ttl=3s", postgres.admin().url()),
        format!("consul://{}/{unique}?ttl=3s", consul.endpoint()),
        format!("nats://{}/{unique}?ttl=3s", nats.endpoint()),
        format!("{}&ttl=3s", s3.admin().url(&unique)),
        format!("{}?ttl=3s", database.url()),
        format!("redis://{}/0?prefix={unique}&ttl=3s", redis.endpoint()),
        format!("local:{}", directory.path().display()),
        format!("memory:{unique}"),
    ];
    for url in urls {
        let elector: Arc<dyn Elector> = within("the check", tenure::connect_checked(&url)).await.unwrap();
        assert!(elector.elections().await.unwrap().is_empty(), "{url}: the check has left an entry");
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        within("the check", elector.check()).await.unwrap();
        assert!(leadership.is_leader());
        leadership.resign().await.unwrap();
        elector.close().await;
    }
    assert!(etcd.admin().list(&format!("/{unique}/")).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached_is_reported() {
    // Nothing listens on the first port. Nobody accepts what arrives on the second.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("127.0.0.1:{}", silent.local_addr().unwrap().port());
    for (store, path) in [
        ("etcd://", "acme"),
        ("zookeeper://", "acme"),
        ("postgres://app@", "acme"),
        ("consul://", "acme"),
        ("nats://", "acme"),
        ("mysql://app@", "acme"),
        ("redis://", "0"),
    ] {
        for host in ["127.0.0.1:1", &silent] {
            let error = refusal(&format!("{store}{host}/{path}?ttl=5s&request_timeout=1s")).await;
            assert!(matches!(error, Error::Unavailable(_)) && error.is_retryable(), "{error}");
            let text = error.to_string();
            assert!(text.starts_with("the store cannot be reached: "), "{text}");
        }
        let refused = refusal(&format!("{store}127.0.0.1:1/{path}?ttl=5s&request_timeout=1s")).await;
        assert!(refused.to_string().contains("127.0.0.1:1"), "{refused}");
    }
    for host in ["127.0.0.1:1", &silent] {
        let error =
            refusal(&format!("s3://key:secret@b?endpoint=http://{host}&ttl=5s&request_timeout=1s")).await;
        assert!(matches!(error, Error::Unavailable(_)) && error.is_retryable(), "{error}");
        assert!(host == silent || error.to_string().contains(host), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_reported_in_the_words_of_the_first_campaign() {
    let server = EtcdServer::start_with(Version::Etcd35, &["--bcrypt-cost=4"]).await.unwrap();
    let admin = server.admin();
    admin.add_user("app", "correct-horse-7", Permission::ReadWrite, "/acme/").await.unwrap();
    admin.enable_auth("root-password").await.unwrap();
    let url = |login: &str, prefix: &str| format!("etcd://{login}@{}/{prefix}?ttl=5s", server.endpoint());
    let wrong_password = url("app:wrong-horse", "acme");
    let error = refusal(&wrong_password).await;
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("invalid user ID or password") && !text.contains("horse"), "{text}");
    assert_eq!(campaign_error(&wrong_password).await, text);
    let elsewhere = refusal(&url("app:correct-horse-7", "other")).await;
    assert!(matches!(elsewhere, Error::Unauthorized(_)), "{elsewhere:?}");
    let elector =
        within("the check", tenure::connect_checked(&url("app:correct-horse-7", "acme"))).await.unwrap();
    elector.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_out_of_the_servers_bounds_is_reported_in_the_words_of_the_first_campaign() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let url = format!("zookeeper://{}/checked?ttl=1h", server.endpoint());
    let error = refusal(&url).await;
    assert!(matches!(error, Error::Refused(_)) && !error.is_retryable(), "{error:?}");
    assert_eq!(campaign_error(&url).await, error.to_string());
}
