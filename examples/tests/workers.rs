//! Jobs are spread over the workers, and again when one is killed or ends; no job has two workers at a time.

use std::{collections::BTreeMap, process::Command, sync::Arc, time::Duration};

use tenure::Elector;
use tenure_testkit::program::Program;

const JOBS: usize = 6;

/// Waits until each of these workers has as many jobs as the others, and nobody else has any.
async fn until_spread(elector: &Arc<dyn Elector>, workers: &[&str]) {
    let spread = async {
        loop {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for job in 0..JOBS {
                if let Some(holder) = elector.leader(&format!("workers.job.{job}")).await.unwrap() {
                    *counts.entry(holder.id).or_default() += 1;
                }
            }
            let each = JOBS / workers.len();
            if counts.len() == workers.len()
                && workers.iter().all(|worker| counts.get(*worker) == Some(&each))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), spread).await.unwrap();
}

#[tokio::test]
async fn jobs_are_assigned_and_assigned_again_when_a_worker_dies() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let start = |id: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workers"));
        command.args(["--candidate", id, "--store", &store, "--election", "workers"]);
        Program::start(&mut command).unwrap()
    };
    let elector = tenure::connect(&store).await.unwrap();
    let mut a = start("a");
    until_spread(&elector, &["a"]).await;
    let (mut b, mut c) = (start("b"), start("c"));
    until_spread(&elector, &["a", "b", "c"]).await;
    assert!(
        a.lines().iter().any(|line| line.contains("ends on a")),
        "its jobs were awaited before they moved"
    );
    b.kill();
    until_spread(&elector, &["a", "c"]).await;
    // The leader itself: the next one goes on from who holds what.
    a.kill();
    until_spread(&elector, &["c"]).await;
    let _d = start("d");
    until_spread(&elector, &["c", "d"]).await;
    c.terminate();
    assert!(c.wait().unwrap().success());
    until_spread(&elector, &["d"]).await;
    let ended = c.lines().iter().filter(|line| line.contains("ends on c")).count();
    let begun = c.lines().iter().filter(|line| line.contains("begins on c")).count();
    assert_eq!(begun, ended, "{:?}", c.lines());
}
