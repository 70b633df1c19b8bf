//! Leaders that are killed and restarted, or call `exec`, on real servers.
#![allow(missing_docs)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tenure_containers::{SharedEtcd, SharedPostgres, SharedZookeeper, Version};
use tenure_testkit::program::Program;

const TTL: Duration = Duration::from_secs(20);

/// Each is the beginning of a URL, to which the name of the test's own elections is added.
async fn stores() -> [String; 3] {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap().endpoint();
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap().endpoint();
    let postgres = SharedPostgres::get(Version::Postgres17).await.unwrap().endpoint();
    [
        format!("etcd://{etcd}/"),
        format!("zookeeper://{zookeeper}/"),
        format!("postgres://postgres@{postgres}/postgres?schema="),
    ]
}

/// A URL with an election of the test's own.
fn url(store: &str, resume_file: &Path) -> String {
    let unique = resume_file.parent().unwrap().file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    let separator = if store.contains('?') { '&' } else { '?' };
    format!("{store}{unique}{separator}ttl={}s&resume={}", TTL.as_secs(), resume_file.display())
}

fn process(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure-processes"));
    command.args(arguments);
    command
}

fn number_in(line: &str) -> u64 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Forked children, killed when this is dropped.
#[derive(Default)]
struct Children(Vec<u64>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &self.0 {
            let child = i32::try_from(*child).ok().and_then(Pid::from_raw);
            child.and_then(|child| kill_process(child, Signal::KILL).ok());
        }
    }
}

/// Hazard G39: a leader that is killed and restarted leads again long before its old session expires, with a higher token. A
/// forked child that lives on does not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_that_is_restarted_leads_at_once() {
    for store in stores().await {
        let directory = tempfile::tempdir().unwrap();
        let url = url(&store, &directory.path().join("resume"));
        let mut last = 0;
        let mut killed: Option<Instant> = None;
        // They live until the last process has led.
        let mut children = Children::default();
        for _ in 0..4 {
            let mut leader = Program::start(&mut process(&["lead-and-fork", &url])).unwrap();
            children.0.push(number_in(&leader.wait_for("child")));
            let token = number_in(&leader.wait_for("leads"));
            assert!(token > last, "{store}: {token} after {last}");
            if let Some(killed) = killed {
                assert!(killed.elapsed() < TTL / 4, "{store}: it led after {:?}", killed.elapsed());
            }
            last = token;
            leader.kill();
            killed = Some(Instant::now());
        }
    }
}

/// Hazard G39: a leader that replaces itself by `exec` leads again long before its old session expires, with a higher token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_calls_exec_leads_again_at_once() {
    for store in stores().await {
        let directory = tempfile::tempdir().unwrap();
        let url = url(&store, &directory.path().join("resume"));
        let mut leader = Program::start(&mut process(&["exec", &url, "exec", &url, "lead", &url])).unwrap();
        let mut last = number_in(&leader.wait_for("leads"));
        for _ in 0..2 {
            let replaced = Instant::now();
            let token = number_in(&leader.wait_for("leads"));
            assert!(token > last, "{store}: {token} after {last}");
            assert!(replaced.elapsed() < TTL / 4, "{store}: it led after {:?}", replaced.elapsed());
            last = token;
        }
    }
}

/// Hazard G39: while a leader lives, a second process with its file is refused at once, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_with_the_file_is_refused() {
    for store in stores().await {
        let directory = tempfile::tempdir().unwrap();
        let url = url(&store, &directory.path().join("resume"));
        let mut leader = Program::start(&mut process(&["lead", &url])).unwrap();
        leader.wait_for("leads");
        let second = process(&["lead", &url]).output().unwrap();
        assert!(!second.status.success());
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(said.contains("another live process") && said.contains("resume"), "{said}");
    }
}
