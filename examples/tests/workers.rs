//! Jobs are distributed over the workers, and again when one is killed or terminated.

use std::{collections::BTreeMap, process::Command, sync::Arc, time::Duration};

use tenure::Elector;
use tenure_testkit::program::Program;

const JOBS: usize = 6;

/// Waits until these workers have equally many jobs, and no other worker has any.
async fn wait_until_distributed(elector: &Arc<dyn Elector>, workers: &[&str]) {
    let distributed = async {
        loop {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for job in 0..JOBS {
                if let Some(holder) = elector.leader(&format!("workers.job.{job}")).await.unwrap() {
                    *counts.entry(holder.id).or_default() += 1;
                }
            }
            let per_worker = JOBS / workers.len();
            if counts.len() == workers.len()
                && workers.iter().all(|worker| counts.get(*worker) == Some(&per_worker))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), distributed).await.unwrap();
}

#[tokio::test]
async fn jobs_are_assigned_and_reassigned_when_a_worker_dies() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let start = |id: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workers"));
        command.args(["--candidate", id, "--store", &store, "--election", "workers"]);
        Program::start(&mut command).unwrap()
    };
    let elector = tenure::connect(&store).await.unwrap();
    let mut a = start("a");
    wait_until_distributed(&elector, &["a"]).await;
    let (mut b, mut c) = (start("b"), start("c"));
    wait_until_distributed(&elector, &["a", "b", "c"]).await;
    assert!(a.lines().iter().any(|line| line.contains("ends on a")), "a job must end before it moves");
    b.kill();
    wait_until_distributed(&elector, &["a", "c"]).await;
    // `a` is the leader. The next leader begins with the current holders of the jobs.
    a.kill();
    wait_until_distributed(&elector, &["c"]).await;
    let _d = start("d");
    wait_until_distributed(&elector, &["c", "d"]).await;
    c.terminate();
    assert!(c.wait().unwrap().success());
    wait_until_distributed(&elector, &["d"]).await;
    let ended = c.lines().iter().filter(|line| line.contains("ends on c")).count();
    let begun = c.lines().iter().filter(|line| line.contains("begins on c")).count();
    assert_eq!(begun, ended, "{:?}", c.lines());
}
