//! A job fires once each second, on one node, also when that node is killed or terminated.

use std::{collections::BTreeMap, process::Command};

use futures::StreamExt as _;
use tenure_testkit::program::Program;

/// The times for which a node has fired.
fn fired_times(program: &Program) -> Vec<String> {
    let lines = program.lines();
    let times = lines.iter().filter_map(|line| line.strip_prefix("report fired for ")?.split(' ').next());
    times.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_job_fires_once_for_each_time_also_after_a_takeover() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().join("store").display());
    let ledger = format!("sqlite:{}", directory.path().join("ledger.db").display());
    let start = |id: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scheduler"));
        command.args(["--cron", "* * * * * *", "--ledger", &ledger, "--store", &store]);
        Program::start(command.args(["--election", "cron", "--candidate", id])).unwrap()
    };
    let elector = tenure::connect(&store).await.unwrap();
    let mut leaders = elector.observe("cron");
    let mut first = start("a");
    first.wait_for("report fired for ");
    let (mut second, mut third) = (start("b"), start("c"));
    first.wait_for("report fired for ");
    first.wait_for("report fired for ");
    first.kill();
    // One of the others takes over.
    let (next, last) = loop {
        match leaders.next().await.unwrap().unwrap() {
            Some(leader) if leader.id == "b" => break (&mut second, &mut third),
            Some(leader) if leader.id == "c" => break (&mut third, &mut second),
            _ => {}
        }
    };
    next.wait_for("report fired for ");
    next.wait_for("report fired for ");
    next.terminate();
    assert!(next.wait().unwrap().success());
    last.wait_for("report fired for ");
    last.wait_for("report fired for ");
    last.kill();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for time in [&first, &second, &third].into_iter().flat_map(fired_times) {
        *counts.entry(time).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "each time must fire once: {counts:?}");
    assert!(counts.len() >= 6, "{counts:?}");
}
