//! The process of a candidate, as its parent sees it.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
};

use crate::message::Message;

/// A candidate's process. It is killed when this is dropped, and ends by itself when this program does.
#[derive(Debug)]
pub(crate) struct CandidateProcess {
    id: String,
    child: Child,
    /// The candidate exits when this pipe is closed.
    _stdin: ChildStdin,
    reader: JoinHandle<()>,
}

impl CandidateProcess {
    /// Starts a candidate, and passes its messages to `on_message`.
    pub(crate) fn start(
        url: &str,
        id: &str,
        ttl: Duration,
        flags: &[&str],
        on_message: impl Fn(Message) + Send + 'static,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let mut child = Command::new(program)
            .args(["candidate", "--url", url, "--id", id])
            .arg(format!("--ttl={}", humantime::format_duration(ttl)))
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A process group of its own, so that Ctrl-C reaches only this program, which then closes the pipes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a candidate")?;
        // Taken out of `child`: waiting for a child closes the standard input that it still holds.
        let stdin = child.stdin.take().context("a candidate has no standard input")?;
        let stdout = child.stdout.take().context("a candidate has no standard output")?;
        let id = id.to_owned();
        let reader_id = id.clone();
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str::<Message>(&line) {
                    Ok(message) => on_message(message),
                    Err(error) => eprintln!("cannot parse {line:?} from candidate {reader_id}: {error}"),
                }
            }
        });
        Ok(Self { id, child, _stdin: stdin, reader })
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.with_context(|| format!("candidate {} has exited by itself", self.id))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal candidate {}", self.id))
    }

    /// Waits until the process has exited and all its messages have been read.
    pub(crate) async fn wait(mut self) -> Result<()> {
        self.child.wait().await?;
        let _ = self.reader.await;
        Ok(())
    }
}
