//! Running `billing` as a process of its own.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::Value;

/// Nothing that is waited for takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn billing(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_billing"));
    command.args(arguments);
    command
}

/// Runs to the end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    billing(arguments).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The object that the demo prints as its last line.
pub(crate) fn last_line(output: &Output) -> Value {
    let stdout = text(&output.stdout);
    let line = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {stdout}\n{}", text(&output.stderr)))
}

/// A server or provider that listens; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: String,
    child: Child,
}

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = billing(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").expect("it listens").to_owned();
        Self { address, child }
    }

    pub(crate) fn provider(data: &Path) -> Self {
        let ledger = data.join("provider.db");
        Self::start(&["provider", "--ledger", ledger.to_str().unwrap(), "--latency", "1ms"])
    }

    pub(crate) fn server(data: &Path, provider: &Self, id: &str) -> Self {
        let store = format!("local:{}", data.join("store").display());
        let database = format!("sqlite:{}", data.join("billing.db").display());
        Self::start(&[
            "serve",
            "--store",
            &store,
            "--database",
            &database,
            "--provider",
            &provider.address,
            "--id",
            id,
        ])
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and its exit status.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        wait_for_end(Pid::from_child(&self.child));
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process has ended, whoever's child it is.
pub(crate) fn wait_for_end(pid: Pid) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let bound = Timespec::try_from(PATIENCE).unwrap();
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&bound)).unwrap();
    assert_eq!(ended, 1, "process {pid:?} did not end within {PATIENCE:?}");
}

/// Asks again until the answer is the one awaited.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {PATIENCE:?} in vain until {what}"),
    }
}

/// The demo on a store whose sessions expire: another server leads after each fault, and the books are right.
pub(crate) fn leadership_moves_on(store: &str) {
    let data = tempfile::tempdir().unwrap();
    let output = run(&[
        "demo",
        "--store",
        store,
        "--subscriptions",
        "200",
        "--kills",
        "1",
        "--pauses",
        "1",
        "--json",
        "--data",
        data.path().to_str().unwrap(),
    ]);
    let summary = last_line(&output);
    assert!(output.status.success(), "{summary:#}");
    let faults = summary["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{summary:#}");
    assert!(
        faults.iter().all(|fault| fault["next"].is_string() && fault["next"] != fault["leader"]),
        "{summary:#}"
    );
}
