//! The provider and the servers: processes of this same program, which never outlive it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

/// How long to wait for the end of a killed child.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a child may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A child process. It is killed when this is dropped.
///
/// If the demo itself is killed, its children exit because their standard input is closed; see
/// [`exit_with_parent`](crate::parent_exit::exit_with_parent).
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pub(crate) name: String,
    /// The URL of its HTTP API.
    pub(crate) address: String,
    process: Child,
    /// The child exits when this is closed.
    _stdin: ChildStdin,
    log: PathBuf,
}

impl ChildProcess {
    /// Starts `billing ARGUMENTS`, and waits until it listens.
    pub(crate) async fn start(name: &str, arguments: &[&str], logs: &Path) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = std::env::current_exe().context("cannot find the program's own executable")?;
        let mut process = Command::new(&program)
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--die-with-parent"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            // An own group, so that Ctrl-C reaches only the demo, and the kernel sends SIGHUP and SIGCONT to a
            // stopped child when the demo is killed.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = process.stdout.take().context("the child has no standard output")?;
        // Taken out, because waiting for a process would close its input.
        let _stdin = process.stdin.take().context("the child has no standard input")?;
        let mut child = Self { name: name.to_owned(), address: String::new(), process, _stdin, log };
        let mut line = String::new();
        let read = timeout(START_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await;
        match line.trim_end().strip_prefix("listening on ") {
            Some(address) => child.address = address.to_owned(),
            None if read.is_err() => {
                bail!("{name} was not listening after {START_TIMEOUT:?}\n{}", child.log_tail())
            }
            None => bail!("{name} did not start\n{}", child.log_tail()),
        }
        Ok(child)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the child has ended and its exit status was read.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.with_context(|| format!("{} has ended", self.name))?;
        kill_process(id, signal)
            .map_err(io::Error::from)
            .with_context(|| format!("cannot send a signal to {}", self.name))
    }

    /// Its exit status, if it has ended.
    pub(crate) fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Waits until it has ended.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Sends SIGTERM, and expects exit status 0 within `limit`.
    pub(crate) async fn stop(mut self, limit: Duration) -> Result<(), String> {
        self.signal(Signal::TERM).map_err(|e| format!("{e:#}"))?;
        match timeout(limit, self.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                Err(format!("{} ended with {status} on SIGTERM\n{}", self.name, self.log_tail()))
            }
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            Err(_) => {
                Err(format!("{} had not ended {limit:?} after SIGTERM\n{}", self.name, self.log_tail()))
            }
        }
    }

    /// The last lines of its log, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(4).collect();
        let tail: Vec<_> = lines.into_iter().rev().map(|line| format!("    | {line}")).collect();
        format!("  the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

impl Drop for ChildProcess {
    /// However the demo ends, its children have ended by then.
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.start_kill();
        let killed_at = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && killed_at.elapsed() < KILL_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
