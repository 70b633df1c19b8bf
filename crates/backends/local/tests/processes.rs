//! Several processes and `kill -9`: the example `contender`, as many times as needed.
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

use common::{BOUND, files, request, session, soon};
use tenure_core::spi::{BackendSession, Entered, EntryRequest};
use tenure_local::LocalBackend;
use tokio::sync::Notify;

/// A contender in a process of its own, killed when dropped.
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
            panic!("{}: {error}; `cargo build -p tenure-local --examples` makes it", program.display())
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The number after `word` on the next line that starts with it.
    fn read(&mut self, word: &str) -> u64 {
        for line in self.lines.by_ref() {
            if let Some(number) = line.unwrap().strip_prefix(word) {
                return number.trim().parse().unwrap();
            }
        }
        panic!("the contender ended before it said {word}");
    }

    /// SIGKILL, without waiting for the end.
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

/// After `kill -9` of the holder the next process leads within milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_is_replaced_within_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(dir.path()).unwrap();
    let mut times = Vec::new();
    let mut last = 0;
    for _ in 0..10 {
        let mut holder = Contender::start("lead", dir.path());
        let token = holder.read("LEADS");
        assert!(token > last);
        let s = session(&backend).await;
        let (_, entered) = enter(&*s).await;
        assert_eq!(entered.leads, None);
        let entry = entered.entry.clone();
        let waiting = Arc::new(Notify::new());
        let waits = Arc::clone(&waiting);
        let turn = tokio::spawn(async move {
            let token = {
                let turn = s.wait_turn(&entry);
                tokio::pin!(turn);
                assert!(tokio::time::timeout(Duration::from_millis(30), &mut turn).await.is_err());
                waits.notify_one();
                turn.await.unwrap().get()
            };
            (token, Instant::now(), s)
        });
        waiting.notified().await;
        let killed = Instant::now();
        holder.kill();
        let (token, led, s) = soon("the take-over", turn).await.unwrap();
        assert!(token > last);
        last = token;
        times.push(led - killed);
        assert_eq!(files(dir.path(), "e").len(), 1, "the dead entry is removed");
        s.close().await.unwrap();
    }
    times.sort();
    println!("take-over after kill -9: {times:?}");
    assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_holder_keeps_its_leadership() {
    use rustix::process::{Pid, Signal, kill_process};
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(dir.path()).unwrap();
    let mut holder = Contender::start("lead", dir.path());
    holder.read("LEADS");
    let pid = Pid::from_child(&holder.child);
    kill_process(pid, Signal::STOP).unwrap();
    let s = session(&backend).await;
    let (_, entered) = enter(&*s).await;
    let turn = s.wait_turn(&entered.entry);
    tokio::pin!(turn);
    assert!(tokio::time::timeout(Duration::from_millis(400), &mut turn).await.is_err());
    holder.kill();
    soon("the take-over", turn).await.unwrap();
}

/// The order of arrival holds between processes, and a waiting one may die.
#[test]
fn processes_lead_in_the_order_of_arrival() {
    let dir = tempfile::tempdir().unwrap();
    let mut all: Vec<_> = (0..4)
        .map(|_| {
            let mut one = Contender::start("lead", dir.path());
            let entered = one.read("ENTERED");
            (one, entered)
        })
        .collect();
    let mut last = all[0].0.read("LEADS");
    assert_eq!(last, all[0].1);
    // The second dies while it waits.
    all.remove(1).0.kill();
    for _ in 0..2 {
        all.remove(0).0.kill();
        let (next, entered) = &mut all[0];
        let token = next.read("LEADS");
        assert_eq!(token, *entered);
        assert!(token > last);
        last = token;
    }
}

/// Contenders killed at any moment, while they enter included: never two leaders, no token twice.
#[test]
fn kills_at_any_moment_break_nothing() {
    let dir = tempfile::tempdir().unwrap();
    LocalBackend::open(dir.path()).unwrap();
    let mut crowd: Vec<_> = (0..3).map(|_| Contender::start("churn", dir.path())).collect();
    for one in &mut crowd {
        one.read("ROUND");
    }
    let began = Instant::now();
    let mut kills = 0;
    while kills < 25 && began.elapsed() < BOUND {
        let victim = fastrand::usize(..crowd.len());
        let mut old = std::mem::replace(&mut crowd[victim], Contender::start("churn", dir.path()));
        fs::write(dir.path().join(format!("killed-{}", old.child.id())), "").unwrap();
        old.kill();
        old.child.wait().unwrap();
        for line in old.lines.by_ref() {
            let line = line.unwrap();
            assert!(!line.contains("OVERLAP") && !line.contains("BACKWARDS"), "{line}");
            assert!(!line.contains("panicked"), "{line}");
        }
        kills += 1;
        // Some rounds of anybody, so that the next kill meets its victim at any step.
        for _ in 0..fastrand::u32(..6) {
            let anybody = fastrand::usize(..crowd.len());
            crowd[anybody].read("ROUND");
        }
    }
    assert!(kills >= 5, "{kills} kills in {:?}", began.elapsed());
    // Leave nobody living, then see what a newcomer makes of what is left.
    for one in &mut crowd {
        fs::write(dir.path().join(format!("killed-{}", one.child.id())), "").unwrap();
    }
    drop(crowd);
    let last: u64 = fs::read_to_string(dir.path().join("log")).unwrap().trim().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let backend = LocalBackend::open(dir.path()).unwrap();
        let s = session(&backend).await;
        let (_, entered) = enter(&*s).await;
        assert!(entered.leads.unwrap().get() > last);
        assert_eq!(files(dir.path(), "e").len(), 1);
    });
}
