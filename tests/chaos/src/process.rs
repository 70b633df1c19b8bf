//! A candidate's process, seen from outside.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
};

use crate::line::Line;

/// A process. Killed when dropped; it ends as well when this program does.
#[derive(Debug)]
pub(crate) struct Process {
    id: String,
    child: Child,
    /// Open for as long as it may live.
    _lifeline: ChildStdin,
    reader: JoinHandle<()>,
}

impl Process {
    /// Starts a candidate, and takes what it tells.
    pub(crate) fn start(
        url: &str,
        id: &str,
        ttl: Duration,
        flags: &[&str],
        take: impl Fn(Line) + Send + 'static,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .args(["candidate", "--url", url, "--id", id])
            .arg(format!("--ttl={}", humantime::format_duration(ttl)))
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Of its own, so that Ctrl-C reaches the rig, which then closes the lifelines.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a candidate")?;
        // Taken out, because waiting for a process closes the input it still has.
        let lifeline = child.stdin.take().context("a candidate without standard input")?;
        let output = child.stdout.take().context("a candidate without standard output")?;
        let id = id.to_owned();
        let speaker = id.clone();
        let reader = tokio::spawn(async move {
            let mut told = BufReader::new(output).lines();
            while let Ok(Some(line)) = told.next_line().await {
                match serde_json::from_str::<Line>(&line) {
                    Ok(line) => take(line),
                    Err(error) => eprintln!("{speaker} said {line:?}: {error}"),
                }
            }
        });
        Ok(Self { id, child, _lifeline: lifeline, reader })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.with_context(|| format!("the candidate {} has ended by itself", self.id))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.id))
    }

    /// Waits until it has ended and everything that it told has been taken.
    pub(crate) async fn ended(mut self) -> Result<()> {
        self.child.wait().await?;
        let _ = self.reader.await;
        Ok(())
    }
}
