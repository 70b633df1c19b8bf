//! Several processes and `kill -9`. Each process runs the example `contender`.
#![allow(missing_docs)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{TEST_TIMEOUT, files, request, session, wait_turn, within};
use tenure_core::spi::{BackendSession, Entered, EntryRequest};
use tenure_local::LocalBackend;
use tokio::sync::Notify;

/// A process that runs the example `contender`, killed when dropped.
struct Contender {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Contender {
    fn start(role: &str, dir: &Path) -> Self {
        let test = std::env::current_exe().unwrap();
        // target/debug/deps/processes-… and target/debug/examples/contender
        let program = test.parent().unwrap().with_file_name("examples").join("contender");
        let child = Command::new(&program).arg(role).arg(dir).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| {
            panic!("{}: {error}; build it with `cargo build -p tenure-local --examples`", program.display())
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for the next line that starts with `event`, and returns the number after it.
    fn wait_for(&mut self, event: &str) -> u64 {
        for line in self.lines.by_ref() {
            if let Some(number) = line.unwrap().strip_prefix(event) {
                return number.trim().parse().unwrap();
            }
        }
        panic!("the contender ended before the event {event}");
    }

    /// Sends SIGKILL, and does not wait for the process to end.
    fn kill(&mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn enter(s: &dyn BackendSession) -> (EntryRequest, Entered) {
    let request = request("e", &format!("p{}", std::process::id()));
    let entered = s.enter(&request).await.unwrap();
    (request, entered)
}

/// After `kill -9` of the leader the next process leads within milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(dir.path()).unwrap();
    let mut times = Vec::new();
    let mut last = 0;
    for _ in 0..10 {
        let mut leader = Contender::start("lead", dir.path());
        let token = leader.wait_for("LEADS");
        assert!(token > last);
        let s = session(&backend).await;
        let (_, entered) = enter(&*s).await;
        assert_eq!(entered.token(), None);
        let entry = entered.entry().unwrap().clone();
        let waiting = Arc::new(Notify::new());
        let notify_waiting = Arc::clone(&waiting);
        let turn = tokio::spawn(async move {
            let token = {
                let turn = wait_turn(&*s, &entry);
                tokio::pin!(turn);
                assert!(tokio::time::timeout(Duration::from_millis(30), &mut turn).await.is_err());
                notify_waiting.notify_one();
                turn.await.unwrap().get()
            };
            (token, Instant::now(), s)
        });
        waiting.notified().await;
        let killed = Instant::now();
        leader.kill();
        let (token, led, s) = within("the takeover", turn).await.unwrap();
        assert!(token > last);
        last = token;
        times.push(led - killed);
        assert_eq!(files(dir.path(), "e").len(), 1, "the dead entry is removed");
        s.close().await.unwrap();
    }
    times.sort();
    println!("takeover after kill -9: {times:?}");
    assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_keeps_its_leadership() {
    use rustix::process::{Pid, Signal, kill_process};
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(dir.path()).unwrap();
    let mut leader = Contender::start("lead", dir.path());
    leader.wait_for("LEADS");
    let pid = Pid::from_child(&leader.child);
    kill_process(pid, Signal::STOP).unwrap();
    let s = session(&backend).await;
    let (_, entered) = enter(&*s).await;
    let turn = wait_turn(&*s, entered.entry().unwrap());
    tokio::pin!(turn);
    assert!(tokio::time::timeout(Duration::from_millis(400), &mut turn).await.is_err());
    leader.kill();
    within("the takeover", turn).await.unwrap();
}

/// Processes lead in the order in which they entered, also if a waiting process dies.
#[test]
fn processes_lead_in_the_order_of_arrival() {
    let dir = tempfile::tempdir().unwrap();
    let mut contenders: Vec<_> = (0..4)
        .map(|_| {
            let mut contender = Contender::start("lead", dir.path());
            let number = contender.wait_for("ENTERED");
            (contender, number)
        })
        .collect();
    let mut last = contenders[0].0.wait_for("LEADS");
    assert_eq!(last, contenders[0].1);
    // The second dies while it waits.
    contenders.remove(1).0.kill();
    for _ in 0..2 {
        contenders.remove(0).0.kill();
        let (next, number) = &mut contenders[0];
        let token = next.wait_for("LEADS");
        assert_eq!(token, *number);
        assert!(token > last);
        last = token;
    }
}

/// Contenders are killed at random points, also while they enter: there are never two leaders, and no token is given out twice.
#[test]
fn kills_at_any_point_cause_no_second_leader() {
    let dir = tempfile::tempdir().unwrap();
    LocalBackend::open(dir.path()).unwrap();
    let mut contenders: Vec<_> = (0..3).map(|_| Contender::start("churn", dir.path())).collect();
    for contender in &mut contenders {
        contender.wait_for("ROUND");
    }
    let began = Instant::now();
    let mut kills = 0;
    while kills < 25 && began.elapsed() < TEST_TIMEOUT {
        let victim = fastrand::usize(..contenders.len());
        let mut killed = std::mem::replace(&mut contenders[victim], Contender::start("churn", dir.path()));
        fs::write(dir.path().join(format!("killed-{}", killed.child.id())), "").unwrap();
        killed.kill();
        killed.child.wait().unwrap();
        for line in killed.lines.by_ref() {
            let line = line.unwrap();
            assert!(!line.contains("OVERLAP") && !line.contains("BACKWARDS"), "{line}");
            assert!(!line.contains("panicked"), "{line}");
        }
        kills += 1;
        // Some rounds of random contenders, so that the next kill comes at a random step.
        for _ in 0..fastrand::u32(..6) {
            let random = fastrand::usize(..contenders.len());
            contenders[random].wait_for("ROUND");
        }
    }
    assert!(kills >= 5, "{kills} kills in {:?}", began.elapsed());
    // Kill all of them, then check that a new candidate leads and removes the remaining files.
    for contender in &mut contenders {
        fs::write(dir.path().join(format!("killed-{}", contender.child.id())), "").unwrap();
    }
    drop(contenders);
    let last: u64 = fs::read_to_string(dir.path().join("log")).unwrap().trim().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let backend = LocalBackend::open(dir.path()).unwrap();
        let s = session(&backend).await;
        let (_, entered) = enter(&*s).await;
        assert!(entered.token().unwrap().get() > last);
        assert_eq!(files(dir.path(), "e").len(), 1);
    });
}
