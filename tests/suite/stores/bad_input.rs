//! Invalid input is refused at once. The error says what is wrong and what is allowed.

use std::time::Duration;

use tenure::{Config, Connection, Elector, Error};
use tenure_testkit::suite::{until, within};

async fn refusal(url: &str) -> String {
    match tenure::connect(url).await {
        Ok(_) => panic!("{url} was accepted"),
        Err(error) => {
            assert!(!error.is_retryable(), "{error}");
            error.to_string()
        }
    }
}

#[tokio::test]
async fn a_url_that_cannot_work() {
    for (url, expected) in [
        ("", "it has no scheme"),
        ("etcd", "it has no scheme"),
        (
            "raft://h",
            "there is no store \"raft\"; use memory:, local:, etcd:, etcd+srv:, zookeeper:, postgres:, postgresql:, consul:, \
             kubernetes:, nats:, s3:, mysql:, mariadb:, redis: or \
             valkey:",
        ),
        ("etcd+srv://a,b", "it does not name one domain; give etcd+srv://domain/prefix"),
        ("etcd:", "host"),
        ("etcd://", "host"),
        ("etcd://h:port", "from 1 to 65535"),
        ("etcd://h?ttl=soon", "ttl=soon is not a time such as 10s"),
        ("etcd://h?ttl=10ms", "it must be from 1s to 1day"),
        ("etcd://h?ttl=2days", "it must be from 1s to 1day"),
        ("etcd://h?drift=2", "it must be a fraction from 0 to 0.5"),
        ("etcd://h?drift=much", "drift=much is not a fraction"),
        ("etcd://h?grace_period=9s", "at most 3s 333ms"),
        ("etcd://h?on_disconnect=panic", "it must be hold or step_down"),
        ("etcd://h?on_clock_jump=ignore", "it must be lose, stop_by_deadline or log"),
        ("etcd://h?id=a%20b", "visible ASCII"),
        ("etcd://h?candidate=a%20b", "visible ASCII"),
        ("etcd://h?id=a&candidate=a", "candidate and id are the same setting: give one of them"),
        ("etcd://h?tll=10s", "unknown setting tll; allowed are"),
        ("zookeeper:", "it names no host; give every server"),
        ("zookeeper://h/a//b", "it has an empty part"),
        ("zookeeper://h//a", "the root \"//a\" is not allowed: it has an empty part; write each slash once"),
        ("etcd://::1:2379", "an IPv6 address is written in brackets, such as [::1]:2379"),
        (
            "etcd://http://h:2379",
            "its hosts have a scheme of their own; write them alone: etcd://host1,host2/prefix",
        ),
        ("127.0.0.1:2379", "has no scheme; a store URL looks like etcd://host:2379/prefix"),
        ("localhost:2379", "has no scheme; a store URL looks like etcd://host:2379/prefix"),
        ("ectd://h", "there is no store \"ectd\"; did you mean etcd:?"),
        ("zk://h", "there is no store \"zk\"; did you mean zookeeper:?"),
        ("zookeeper://h?layout=consul", "layout=consul is not one of tenure, curator, kazoo"),
        ("zookeeper://u@h", "it has a user but no password; give zookeeper://user:password@host"),
        ("zookeeper://h?hedge=1s", "unknown setting hedge; allowed are"),
        ("pg://u@h/db", "there is no store \"pg\"; did you mean postgres:?"),
        ("postgres://h/db", "it names no user; give postgres://user@host1,host2/database"),
        ("postgresql://u@h", "it names no database; give postgres://user@host1,host2/database"),
        ("postgres:", "it names no host; give every server that may be the primary"),
        ("postgres://u@h/db?schema=a.b", "the schema \"a.b\" is not allowed"),
        ("postgres://u@h/db?target_session_attrs=any", "is not read-write: candidates write"),
        ("postgres://u@h/db?hedge=1s", "unknown setting hedge; allowed are"),
        ("consul:", "it names no host; give consul://host1,host2/prefix"),
        ("consul://me@h", "it has a user; Consul knows tokens only"),
        ("consul://h/a//b", "the prefix \"a//b\" is not allowed"),
        ("consul://h?dc=a/b", "the datacenter \"a/b\" is not allowed"),
        ("consul://h?hedge=1s", "unknown setting hedge; allowed are"),
        ("mysql://h/db", "it names no user; give mysql://user@host1,host2/database"),
        ("mariadb://u@h", "it names no database; give mysql://user@host1,host2/database"),
        ("mysql:", "it names no host; give every server that may be the primary"),
        ("mysql://u@h/db?durability=safe", "durability=safe is not unsafe; remove it"),
        ("mysql://u@h/db?attempt_timeout=2h", "attempt_timeout 2h is not allowed"),
        ("mysql://u@h/db?schema=a", "unknown setting schema; allowed are"),
        ("mysqld://u@h/db", "there is no store \"mysqld\"; did you mean mysql:?"),
        ("k8s:///billing", "there is no store \"k8s\"; did you mean kubernetes:?"),
        ("lease:billing", "there is no store \"lease\"; did you mean kubernetes:?"),
        (
            "kubernetes://billing",
            "it has a host; give kubernetes:///namespace, the API server is that of the pod",
        ),
        ("kubernetes:///billing/invoices", "the namespace \"billing/invoices\" is not allowed"),
        ("kubernetes:///Billing", "the namespace \"Billing\" is not allowed: it has 1 to 63 of a-z 0-9 -"),
        ("kubernetes:///a?kubeconfig=/nowhere/config", "kubeconfig=/nowhere/config cannot be read"),
        ("kubernetes:///a?attempt_timeout=2h", "attempt_timeout 2h is not allowed"),
        ("nats:", "it names no host; give nats://host1,host2/bucket"),
        ("nats://h", "it names no bucket; give nats://host1,host2/bucket"),
        ("nats://h/a.b", "the bucket \"a.b\" is not allowed: it has 1 to 200 of A-Z a-z 0-9 _ -"),
        ("nats://h/a?replicas=7", "replicas=7 is not allowed: give a number from 1 to 5"),
        ("nats://h/a?inbox_prefix=a.*", "the inbox_prefix \"a.*\" is not allowed"),
        ("nats://h/a?credentials=/nowhere/app.creds", "credentials=/nowhere/app.creds cannot be read"),
        ("nats://h/a?attempt_timeout=2h", "attempt_timeout 2h is not allowed"),
        ("kubernetes:///a?ca=/etc/ca.pem", "unknown setting ca; allowed are"),
        ("s3a://bucket", "there is no store \"s3a\"; did you mean s3:?"),
        ("s3:", "it names no bucket; give s3://bucket/prefix"),
        ("s3://h:9000/bucket", "a bucket has no port; give s3://bucket/prefix?endpoint=https://host:port"),
        ("s3://b/a//b", "the prefix \"a//b\" is not allowed"),
        ("s3://b?endpoint=h:9000", "endpoint=h:9000 is not https://host:port"),
        ("s3://b?endpoint=http://h&hedge=1s", "unknown setting hedge; allowed are"),
        ("s3://key@b", "it has a user but no password"),
        ("redis:", "it names no host; give redis://host:6379/0"),
        (
            "redis://a,b/0",
            "several hosts are given, but Redis is a single node here: a failover to a replica loses safety",
        ),
        ("redis+sentinel://a:26379/mymaster", "redis+sentinel fails over, but Redis is a single node here"),
        ("valkey://h/billing", "its path is not the number of a database"),
        ("rediss://h/0", "it has no authorities for TLS; give ca="),
        ("redis://h/0?hedge=1s", "unknown setting hedge; allowed are"),
        ("local:relative/dir", "absolute"),
        ("local://host/dir", "host"),
        ("memory://host/x", "no host"),
        ("memory:?prefix=x", "unknown setting prefix"),
    ] {
        let refused = refusal(url).await;
        assert!(refused.contains(expected), "{url}: {refused}");
    }
}

/// Hazard G39: a resume file is refused where it would be no use, and without being created.
#[tokio::test]
async fn a_resume_file_that_cannot_work() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().display();
    let refused = refusal(&format!("local:{directory}/store?resume={directory}/resume")).await;
    assert!(refused.contains("/resume cannot be used: the kernel ends a session"), "{refused}");
    assert!(!std::path::Path::new(&format!("{directory}/resume")).exists());
    let refused = refusal(&format!("etcd://h?resume={directory}/missing/resume")).await;
    assert!(refused.contains("missing/resume cannot be used: No such file or directory"), "{refused}");
    let refused = refusal("etcd://h?resume=/proc/self/comm").await;
    assert!(refused.contains("/proc/self/comm cannot be used: its mode is"), "{refused}");
}

#[tokio::test]
async fn a_password_is_never_repeated() {
    for url in [
        "etcd://u:hunter2@h:x",
        "etcd://u:hunter2@h?tll=1s",
        "etcd://:hunter2@h",
        "etcd://u:hunter2@",
        "zookeeper://u:hunter2@h?tll=1s",
        "zookeeper://u:hunter2@h/a//b",
        "etcd://u@h?passwd=hunter2",
        "etcd://u@h?pass=hunter2",
        "etcd://h?pasword=hunter2",
        "etcd://h?pasword=hunter2&ttl=soon",
        "etcd://u@h?password=hunter2",
        "etcd://u@h?password_env=hunter2",
        "etcd://u@h?token=hunter2",
        "zookeeper://u@h?passwd=hunter2",
        "zookeeper://h/a//b?passwd=hunter2",
        "postgres://u:hunter2@h?tll=1s",
        "postgres://u:hunter2@h/db?schema=a.b",
        "postgres://u@h/db?passwd=hunter2",
        "postgres://u@h/db?password_env=hunter2",
        "consul://u:hunter2@h",
        "consul://token:hunter2@h?tll=1s",
        "consul://h?token=hunter2",
        "consul://h?password_env=hunter2",
        "mysql://u:hunter2@h?tll=1s",
        "mysql://u:hunter2@h/db?durability=hunter",
        "mysql://u@h/db?passwd=hunter2",
        "mysql://u@h/db?password_env=hunter2",
        "redis://u:hunter2@h/0?tll=1s",
        "redis://u:hunter2@h/0?prefix=a*",
        "redis://u@h/0?passwd=hunter2",
        "redis://u@h/0?password_env=hunter2",
        "redis+sentinel://u:hunter2@h/0",
        "kubernetes://u:hunter2@h/a",
        "kubernetes:///a?token=hunter2",
        "s3://u:hunter2@b?tll=1s",
        "s3://u:hunter2@b/a//b",
        "s3://u@b?secret=hunter2",
        "local:/tmp/x?pass=hunter2",
        "memory:?pass=hunter2",
    ] {
        let settings = format!("{:?}", tenure::Settings::new(url, "e"));
        assert!(!settings.contains("hunter2"), "{settings}");
        let error = tenure::connect(url).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    for (scheme, user) in
        [("etcd", "u"), ("zookeeper", "u"), ("postgres", "u"), ("consul", "token"), ("mysql", "u")]
    {
        let elector = tenure::connect(&format!("{scheme}://{user}:hunter2@127.0.0.1:1/p")).await.unwrap();
        assert!(!format!("{elector:?}").contains("hunter2"));
    }
    let elector = tenure::connect("s3://u:hunter2@b?endpoint=http://127.0.0.1:1").await.unwrap();
    assert!(!format!("{elector:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_name_that_no_election_can_have() {
    let elector = tenure::connect("memory:names").await.unwrap();
    for name in ["", ".", "..", "a/b", "a b", "ä", "a\0b", &"x".repeat(256)] {
        let error = elector.campaign(name).await.unwrap_err();
        assert!(matches!(error, Error::InvalidElection(_)));
        assert!(error.to_string().contains("1 to 255 bytes of [A-Za-z0-9._-]"), "{error}");
        assert!(elector.leader(name).await.is_err() && elector.try_campaign(name).await.is_err());
    }
}

#[tokio::test]
async fn a_value_that_is_too_large() {
    let config = Config::new().with_value(vec![0; 65 * 1024]);
    let error = tenure::connect_with("memory:", config).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a candidate's value of 66560 bytes is too large: at most 65536 bytes (64 KiB) are allowed"
    );
}

/// A directory that is not writable, and a path that is no directory.
#[tokio::test]
async fn a_directory_that_cannot_be_used() {
    let refused = refusal("local:/proc/nowhere").await;
    assert!(refused.contains("/proc/nowhere"), "{refused}");
    let refused = refusal("local:/dev/null/x").await;
    assert!(refused.contains("/dev/null/x"), "{refused}");
}

/// A campaign waits for a store that cannot be reached, and the status says so meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached() {
    // A reserved port on which nothing listens.
    let urls = [
        "etcd://127.0.0.1:1/p?",
        "zookeeper://127.0.0.1:1/p?",
        "postgres://u@127.0.0.1:1/p?",
        "consul://127.0.0.1:1/p?",
        "redis://127.0.0.1:1/0?",
        "mysql://u@127.0.0.1:1/p?",
        "s3://u:p@b?endpoint=http://127.0.0.1:1&",
    ];
    for url in urls {
        let elector = tenure::connect(&format!("{url}ttl=5s")).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(2), elector.campaign("e"));
        assert!(waiting.await.is_err(), "it waits");
        until("the status says so", async || elector.status().connection == Connection::Retrying).await;
        let error = elector.status().last_error.unwrap();
        assert!(error.contains("127.0.0.1:1"), "{error}");
        within("closing", elector.close()).await;
    }
}
