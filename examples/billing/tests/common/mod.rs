//! Runs `billing` as a process.
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

/// The longest wait for anything.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn billing(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_billing"));
    command.args(arguments);
    command
}

/// Runs `billing` to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    billing(arguments).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The JSON object that the demo prints as its last line.
pub(crate) fn json_summary(output: &Output) -> Value {
    let stdout = text(&output.stdout);
    let line = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {stdout}\n{}", text(&output.stderr)))
}

/// A running server or provider. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct RunningProcess {
    pub(crate) address: String,
    child: Child,
}

impl RunningProcess {
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

    pub(crate) fn start_provider(data: &Path) -> Self {
        let ledger = data.join("provider.db");
        Self::start(&["provider", "--ledger", ledger.to_str().unwrap(), "--latency", "1ms"])
    }

    pub(crate) fn start_server(data: &Path, provider: &Self, id: &str) -> Self {
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

    /// Sends SIGTERM, and returns the exit status.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        wait_for_end(Pid::from_child(&self.child));
        self.child.wait().unwrap()
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process has ended. It need not be a child of this one.
pub(crate) fn wait_for_end(pid: Pid) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let limit = Timespec::try_from(TIMEOUT).unwrap();
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "process {pid:?} did not end within {TIMEOUT:?}");
}

/// Calls `poll` until it returns a value.
pub(crate) async fn wait_until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = poll().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(TIMEOUT, polling).await {
        Ok(value) => value,
        Err(_) => panic!("timed out after {TIMEOUT:?} waiting until {what}"),
    }
}

/// Runs the demo on a store whose sessions expire, and checks that another server leads after each fault.
pub(crate) fn check_takeovers(store: &str) {
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
    let summary = json_summary(&output);
    assert!(output.status.success(), "{summary:#}");
    let faults = summary["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{summary:#}");
    assert!(
        faults.iter().all(|fault| fault["next"].is_string() && fault["next"] != fault["leader"]),
        "{summary:#}"
    );
}
