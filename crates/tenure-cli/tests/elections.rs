//! `tenure elections`.

mod common;

use std::process::{Command, Stdio};

use common::{RunningCommand, Sandbox, code_and_stderr, eventually, stdout, succeed};
use tenure_containers::{
    SharedConsul, SharedEtcd, SharedKubernetes, SharedPostgres, SharedZookeeper, Version,
};

/// A candidate of an election, with a value.
fn candidate(sandbox: &Sandbox, election: &str, id: &str) -> RunningCommand {
    sandbox.start(&["--election", election, "--id", id, "--value", &format!("{id}:80")], "sleep 1000")
}

/// Waits until `tenure elections` prints this many lines, and returns them.
fn lines(sandbox: &Sandbox, arguments: &[&str], count: usize) -> Vec<String> {
    eventually(&format!("{count} lines"), || {
        let output = stdout(&succeed(&mut sandbox.tenure(&[&["elections"], arguments].concat())));
        let lines: Vec<_> = output.lines().map(str::to_owned).collect();
        (lines.len() == count).then_some(lines)
    })
}

fn json(sandbox: &Sandbox, arguments: &[&str]) -> serde_json::Value {
    let output = stdout(&succeed(&mut sandbox.tenure(&[&["elections", "--json"], arguments].concat())));
    assert_eq!(output.lines().count(), 1, "one document: {output}");
    serde_json::from_str(&output).unwrap()
}

#[test]
fn all_elections_are_printed_with_leader_and_queue() {
    let sandbox = Sandbox::local();
    let (code, stderr) = code_and_stderr(&mut sandbox.tenure(&["elections"]));
    assert_eq!(
        (code, stderr),
        (Some(0), format!("tenure: {} has no election with a candidate\n", sandbox.url))
    );

    let _first = candidate(&sandbox, "billing", "first");
    lines(&sandbox, &[], 1);
    let _second = candidate(&sandbox, "billing", "second");
    let _reports = candidate(&sandbox, "reports-1", "third");
    let found = eventually("a waiting candidate", || {
        let found = lines(&sandbox, &[], 2);
        found[0].starts_with("billing\tfirst\t").then_some(())?;
        (found[0].split('\t').nth(3) == Some("1")).then_some(found)
    });
    let columns: Vec<_> = found[0].split('\t').collect();
    assert_eq!(columns.len(), 7, "{found:?}");
    assert!(columns[2].parse::<u64>().unwrap() > 0 && columns[4].ends_with('s'), "token and age: {found:?}");
    assert_eq!(columns[6], "first:80");
    assert!(found[1].starts_with("reports-1\tthird\t"), "{found:?}");
    assert!(lines(&sandbox, &["rep"], 1)[0].starts_with("reports-1\tthird\t"), "a prefix");

    let listing = json(&sandbox, &["bill"]);
    assert_eq!((&listing["total"], &listing["truncated"]), (&1.into(), &false.into()), "{listing}");
    assert_eq!((&listing["prefix"], &listing["store"]), (&"bill".into(), &sandbox.url.as_str().into()));
    assert!(listing["time"].as_str().unwrap().ends_with('Z'), "{listing}");
    let billing = &listing["elections"][0];
    assert_eq!((&billing["election"], &billing["candidate_count"]), (&"billing".into(), &2.into()));
    assert_eq!(
        (&billing["leader"]["id"], &billing["leader"]["value"]),
        (&"first".into(), &"first:80".into())
    );
    assert_eq!(billing["candidates"][0], billing["leader"], "the leader first");
    assert_eq!(billing["candidates"][1]["id"], "second");
    let empty = json(&sandbox, &["nothing"]);
    assert_eq!((&empty["total"], &empty["elections"]), (&0.into(), &serde_json::json!([])));
}

#[test]
fn more_elections_than_the_limit_are_said_to_be_more() {
    let sandbox = Sandbox::local();
    let _candidates: Vec<_> = ["a", "b", "c"].map(|name| candidate(&sandbox, name, name)).into();
    lines(&sandbox, &[], 3);
    let output = succeed(&mut sandbox.tenure(&["elections", "--limit", "2"]));
    assert_eq!(stdout(&output).lines().count(), 2);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("the first 2 of 3 elections") && stderr.contains("--limit"), "{stderr}");
    let listing = json(&sandbox, &["--limit", "2"]);
    assert_eq!((&listing["total"], &listing["truncated"]), (&3.into(), &true.into()));
    assert_eq!(listing["elections"].as_array().unwrap().len(), 2);
}

#[test]
fn a_wrong_prefix_or_limit_is_bad_usage() {
    let sandbox = Sandbox::local();
    for (arguments, reason) in [
        (&["elections", "a/b"][..], "[A-Za-z0-9._-]"),
        (&["top", "a b"], "[A-Za-z0-9._-]"),
        (&["elections", "--limit", "0"], "0 is not in 1.."),
    ] {
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(arguments));
        assert!(code == Some(2) && stderr.contains(reason), "{arguments:?}: {stderr}");
    }
}

/// A session, an id or a value can be anything that another process wrote.
#[test]
fn what_others_wrote_is_printed_on_one_line() {
    let sandbox = Sandbox::local();
    let _candidate = sandbox.start(&["--id", "x", "--value", "a\nb\u{1b}[2J\tc"], "sleep 1000");
    assert!(lines(&sandbox, &[], 1)[0].ends_with("\ta\\nb\\u{1b}[2J\\tc"));
    let listing = json(&sandbox, &[]);
    assert_eq!(listing["elections"][0]["leader"]["value"], "a\nb\u{1b}[2J\tc");
}

#[test]
fn a_terminal_gets_a_header_and_columns() {
    let sandbox = Sandbox::local();
    let _billing = candidate(&sandbox, "billing", "first");
    let _reports = candidate(&sandbox, "r", "a-longer-id");
    lines(&sandbox, &[], 2);
    let mut command = Command::new("script");
    let line = format!("{} elections", env!("CARGO_BIN_EXE_tenure"));
    command.args(["--quiet", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    command.env("TENURE_STORE", &sandbox.url).env("NO_COLOR", "1");
    let shown = stdout(&succeed(&mut command));
    let rows: Vec<_> = shown.lines().collect();
    assert_eq!(rows.len(), 3, "{shown}");
    assert!(
        rows[0].starts_with("ELECTION  LEADER       ") && rows[0].contains("  TOKEN  WAITING  AGE"),
        "{shown}"
    );
    assert!(
        rows[1].starts_with("billing   first        ") && rows[2].starts_with("r         a-longer-id  "),
        "{shown}"
    );
    let value = rows[0].find("VALUE").unwrap();
    assert_eq!(
        (rows[1].find("first:80"), rows[2].find("a-longer-id:80")),
        (Some(value), Some(value)),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_are_printed_on_servers() {
    // They may end with these values.
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let postgres = SharedPostgres::get(Version::Postgres17).await.unwrap();
    let consul = SharedConsul::get(Version::Consul18).await.unwrap();
    let kubernetes = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let root = format!("cli-{:016x}", fastrand::u64(..));
    kubernetes.admin().create_namespace(&root).await.unwrap();
    for (scheme, endpoint) in [
        ("etcd", etcd.endpoint()),
        ("zookeeper", zookeeper.endpoint()),
        ("postgres", postgres.endpoint()),
        ("consul", consul.endpoint()),
        ("kubernetes", kubernetes.endpoint()),
    ] {
        let sandbox = Sandbox::on_server(scheme, &endpoint, &root, "");
        let mut billing = candidate(&sandbox, "billing", "first");
        let _reports = candidate(&sandbox, "reports", "second");
        let found = lines(&sandbox, &[], 2);
        assert!(
            found[0].starts_with("billing\tfirst\t") && found[1].starts_with("reports\tsecond\t"),
            "{found:?}"
        );
        billing.signal("TERM");
        billing.wait();
        assert_eq!(lines(&sandbox, &[], 1)[0].split('\t').next(), Some("reports"), "{scheme}");
    }
}
