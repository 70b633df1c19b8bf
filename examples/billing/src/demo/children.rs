//! The provider and the servers: real processes of this same program, which never outlive it.

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
    process::{Child as Process, ChildStdin, Command},
    time::timeout,
};

/// How long a killed child is waited for: the kernel needs a moment to take it down.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// How long a child has to begin to listen.
const START: Duration = Duration::from_secs(20);

/// A child, killed when dropped.
///
/// When the demo itself is killed, a child ends because its standard input does; see
/// [`die_with_parent`](crate::parent::die_with_parent).
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) address: String,
    process: Process,
    /// Open for as long as the child may live.
    _lifeline: ChildStdin,
    log: PathBuf,
}

impl Child {
    /// Starts `billing ARGUMENTS`, and waits until it listens.
    pub(crate) async fn start(name: &str, arguments: &[&str], logs: &Path) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut process = Command::new(&program)
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--die-with-parent"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            // Of its own, so that Ctrl-C reaches the demo alone, and a stopped child is woken and
            // hung up by the kernel when the demo is killed.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = process.stdout.take().context("a child without standard output")?;
        // Taken out, because waiting for a process closes the input it still has.
        let _lifeline = process.stdin.take().context("a child without standard input")?;
        let mut child = Self { name: name.to_owned(), address: String::new(), process, _lifeline, log };
        let mut line = String::new();
        let read = timeout(START, BufReader::new(stdout).read_line(&mut line)).await;
        match line.trim_end().strip_prefix("listening on ") {
            Some(address) => child.address = address.to_owned(),
            None if read.is_err() => bail!("{name} does not listen after {START:?}\n{}", child.last_words()),
            None => bail!("{name} did not start\n{}", child.last_words()),
        }
        Ok(child)
    }

    /// Sends a signal. A child that has ended and been awaited is not sent any.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.with_context(|| format!("{} has ended", self.name))?;
        kill_process(id, signal)
            .map_err(io::Error::from)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Asks it to end, and expects exit status 0 within `patience`.
    pub(crate) async fn stop(mut self, patience: Duration) -> Result<(), String> {
        self.signal(Signal::TERM).map_err(|e| format!("{e:#}"))?;
        match timeout(patience, self.end()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                Err(format!("{} ended with {status} on SIGTERM\n{}", self.name, self.last_words()))
            }
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            Err(_) => {
                Err(format!("{} had not ended {patience:?} after SIGTERM\n{}", self.name, self.last_words()))
            }
        }
    }

    /// The end of its log, for an explanation.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(4).collect();
        let words: Vec<_> = lines.into_iter().rev().map(|line| format!("    | {line}")).collect();
        format!("  the end of {}:\n{}", self.log.display(), words.join("\n"))
    }
}

impl Drop for Child {
    /// Whatever ends the demo early: when it has ended, so have its children.
    fn drop(&mut self) {
        // One that has ended already cannot be killed, nor need it be.
        let _ = self.process.start_kill();
        let killed = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && killed.elapsed() < LAST_MOMENT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
