//! Programs that run in a server's container, beside the server.

use std::sync::Arc;

use tokio::{
    io::AsyncBufReadExt as _,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use crate::{container::Container, error::ContainerError};

/// A program that runs in a container, and its output. It ends with its container.
#[derive(Debug)]
pub struct Program {
    lines: UnboundedReceiver<String>,
    container: Arc<Container>,
    /// The process id inside the container.
    pid: String,
}

impl Program {
    pub(crate) async fn run(container: &Arc<Container>, command: &[&str]) -> Result<Self, ContainerError> {
        // The engine reports a process id that is not the one inside the container, so the shell prints its own.
        let shell = ["sh", "-c", "echo $$; exec \"$@\" 2>&1", "sh"];
        let mut running = container.exec(shell.iter().chain(command).copied()).await?;
        let (sender, mut lines) = unbounded_channel();
        tokio::spawn(async move {
            let mut output = running.stdout().lines();
            while let Ok(Some(line)) = output.next_line().await {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let pid = lines
            .recv()
            .await
            .ok_or_else(|| ContainerError::Unexpected(format!("{} did not start", command.join(" "))))?;
        Ok(Self { lines, container: Arc::clone(container), pid })
    }

    /// Kills the program (SIGKILL), and waits until it has ended.
    ///
    /// # Errors
    /// When the program has ended already.
    pub async fn kill(mut self) -> Result<(), ContainerError> {
        self.signal("KILL").await?;
        while self.next_line().await.is_some() {}
        Ok(())
    }

    /// Sends the program a signal, such as `TERM`.
    ///
    /// # Errors
    /// When the program has ended already.
    pub async fn signal(&self, signal: &str) -> Result<(), ContainerError> {
        // The shell's builtin: the image may have no `kill` program.
        let kill = ["sh", "-c", &format!("kill -{signal} \"$0\""), &self.pid];
        let output = Self::run(&self.container, &kill).await?.output().await;
        match output.is_empty() {
            true => Ok(()),
            false => Err(ContainerError::Unexpected(output.join("\n"))),
        }
    }

    /// The next line of the program's standard output or standard error; `None` once it has ended.
    pub async fn next_line(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// Waits for a line that begins with `prefix`, and returns the rest of the line.
    ///
    /// # Errors
    /// When the program ends first; the error quotes its output.
    pub async fn wait_for(&mut self, prefix: &str) -> Result<String, ContainerError> {
        let mut output = Vec::new();
        while let Some(line) = self.next_line().await {
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(rest.trim().to_owned());
            }
            output.push(line);
        }
        let output = output.join("\n");
        Err(ContainerError::Unexpected(format!("the program ended without printing {prefix:?}: {output}")))
    }

    /// All lines until the program ends.
    pub async fn output(mut self) -> Vec<String> {
        let mut output = Vec::new();
        while let Some(line) = self.next_line().await {
            output.push(line);
        }
        output
    }
}
