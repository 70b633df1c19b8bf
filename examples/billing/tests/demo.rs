//! Runs the demo like a user.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{billing, json_summary, run, text, wait_for_end};
use rustix::process::Pid;
use sqlx::{Connection, SqliteConnection};

#[tokio::test]
async fn leaders_are_killed_and_stopped_and_nobody_is_charged_twice() {
    let data = tempfile::tempdir().unwrap();
    let output = run(&[
        "demo",
        "--subscriptions",
        "200",
        "--kills",
        "2",
        "--pauses",
        "1",
        "--seed",
        "7",
        "--json",
        "--data",
        data.path().to_str().unwrap(),
    ]);
    let summary = json_summary(&output);
    assert!(output.status.success(), "{summary:#}");

    let numbers = |keys: &[&str]| keys.iter().map(|key| summary[key].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(numbers(&["due", "charged", "double_charged", "missed", "not_due"]), [200, 200, 0, 0, 0]);
    assert_eq!(numbers(&["kills", "pauses"]), [2, 1]);
    assert!(summary["leaders"].as_i64().unwrap() >= 3, "{summary:#}");
    // On the local store a stopped process keeps its leadership. The pause is the TTL + 1 s.
    assert!(summary["max_gap_ms"].as_i64().unwrap() >= 3_000, "{summary:#}");
    assert!(summary["refused_stale"].is_u64() && summary["refused_duplicate"].is_u64());

    // The ledger agrees with the summary.
    let ledger = data.path().join("provider.db");
    let mut ledger = SqliteConnection::connect(&format!("sqlite:{}", ledger.display())).await.unwrap();
    let (charged, renewals): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COUNT(DISTINCT subscription || '/' || period) FROM charges WHERE outcome = 'charged'",
    )
    .fetch_one(&mut ledger)
    .await
    .unwrap();
    assert_eq!((charged, renewals), (200, 200));

    let page = fs::read_to_string(data.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("OK: every renewal was charged exactly once."));
    assert!(!page.contains("http://") && !page.contains("https://"), "the page must not load anything");
}

/// Without the idempotency key, renewals are charged twice if the leader is killed before it records them.
#[test]
fn a_provider_without_idempotency_charges_twice_and_the_demo_reports_it() {
    let data = tempfile::tempdir().unwrap();
    let output = run(&[
        "demo",
        "--subscriptions",
        "300",
        "--kills",
        "4",
        "--pauses",
        "0",
        "--without",
        "idempotency",
        "--json",
        "--data",
        data.path().to_str().unwrap(),
    ]);
    let summary = json_summary(&output);
    assert_eq!(output.status.code(), Some(1), "{summary:#}");
    assert!(summary["double_charged"].as_i64().unwrap() > 0, "{summary:#}");
    assert_eq!(summary["missed"], 0);
    assert!(text(&output.stdout).contains("charged twice"));
}

/// Here the demo ends by kill -9.
#[test]
fn children_end_with_the_demo_also_a_stopped_one() {
    let data = tempfile::tempdir().unwrap();
    let mut demo = billing(&[
        "demo",
        "--subscriptions",
        "100",
        "--kills",
        "0",
        "--pauses",
        "1",
        "--data",
        data.path().to_str().unwrap(),
    ])
    .stderr(Stdio::piped())
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
    let stderr = BufReader::new(demo.stderr.take().unwrap());
    let paused = stderr.lines().any(|line| line.unwrap().contains("pause server-"));
    assert!(paused, "the demo must stop a leader");
    let children = children_of(demo.id());
    assert_eq!(children.len(), 5, "four servers and the provider");

    demo.kill().unwrap();
    demo.wait().unwrap();
    children.into_iter().for_each(wait_for_end);
}

fn children_of(pid: u32) -> Vec<Pid> {
    // `/proc` lists a child under the thread that started it.
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap())
        .flat_map(|children| children.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<i32>>())
        .filter_map(Pid::from_raw)
        .collect()
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("billing.db"), "a user's file").unwrap();
    let users_directory = data.path().to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["demo", "--servers", "0"], "0 is not in 1..=50"),
        (&["demo", "--subscriptions", "7"], "7 subscriptions are too few for 7 faults: use at least 8"),
        (&["demo", "--store", "memory:"], "use local:, etcd:, zookeeper:, postgres: or kubernetes:"),
        (&["demo", "--store", "raft://h"], "there is no store \"raft\""),
        (&["demo", "--store", "local:/tmp/x?ttl=1parsec"], "ttl=1parsec is not a time"),
        (&["demo", "--store", "local:/tmp/x?ttl=1ms"], "ttl 1ms is not allowed"),
        (&["demo", "--data", users_directory], "which is not from the demo"),
        (&["demo", "--database", "mysql://h/db"], "sqlite:FILE or postgres://"),
        (&["provider", "--ledger", "/nowhere/at/all.db"], "cannot open the ledger /nowhere/at/all.db"),
        (&["provider", "--ledger", "/tmp/x.db", "--listen", "here"], "invalid socket address"),
        (&["serve", "--id", "a", "--provider", "http://h"], "--store <STORE>"),
        (&["serve", "--id", "", "--provider", "http://h", "--store", "memory:"], "candidate"),
        (&["serve", "--id", "a", "--provider", "h:1", "--store", "memory:"], "http://"),
        #[cfg(not(feature = "etcd"))]
        (
            &["serve", "--id", "a", "--provider", "http://h", "--store", "etcd://h/p"],
            "built without etcd: add --features etcd",
        ),
        #[cfg(not(feature = "kubernetes"))]
        (
            &["serve", "--id", "a", "--provider", "http://h", "--store", "kubernetes:///p"],
            "built without Kubernetes: add --features kubernetes",
        ),
        #[cfg(not(feature = "zookeeper"))]
        (
            &["serve", "--id", "a", "--provider", "http://h", "--store", "zookeeper://h/p"],
            "built without ZooKeeper: add --features zookeeper",
        ),
    ];
    for (arguments, reason) in cases {
        let output = run(arguments);
        let stderr = text(&output.stderr);
        assert!(!output.status.success() && stderr.contains(reason), "{arguments:?}: {stderr}");
    }
    assert_eq!(fs::read_to_string(data.path().join("billing.db")).unwrap(), "a user's file");
}
