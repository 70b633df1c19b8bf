//! A program run inside a server's container, beside the server.

use std::sync::Arc;

use tokio::{
    io::AsyncBufReadExt as _,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::{ContainerError, container::Container};

/// A program that runs in a container, and what it prints. It ends with its container.
#[derive(Debug)]
pub struct Program {
    lines: UnboundedReceiver<String>,
    container: Arc<Container>,
    /// As the container numbers its processes.
    id: String,
}

impl Program {
    pub(super) async fn run(container: &Arc<Container>, command: &[&str]) -> Result<Self, ContainerError> {
        // Its errors are for the reader as well; the engine tells no number that means anything inside.
        let shell = ["sh", "-c", "echo $$; exec \"$@\" 2>&1", "sh"];
        let mut running = container.exec(shell.iter().chain(command).copied()).await?;
        let (sender, mut lines) = unbounded_channel();
        tokio::spawn(async move {
            let mut printed = running.stdout().lines();
            while let Ok(Some(line)) = printed.next_line().await {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let id = lines.recv().await.ok_or_else(|| {
            ContainerError::Malformed(format!("{} has not been started", command.join(" ")))
        })?;
        Ok(Self { lines, container: Arc::clone(container), id })
    }

    /// Kills it (SIGKILL), and waits until it has ended: its connections break, and it says goodbye to nobody.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(mut self) -> Result<(), ContainerError> {
        // The shell's own: there may be no such program.
        let kill = ["sh", "-c", "kill -KILL \"$0\"", &self.id];
        let said = Self::run(&self.container, &kill).await?.output().await;
        if !said.is_empty() {
            return Err(ContainerError::Malformed(said.join("\n")));
        }
        while self.line().await.is_some() {}
        Ok(())
    }

    /// The next line that it prints, to its output or its errors; `None` when it has ended.
    pub async fn line(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// Reads on until it prints `expected`, and returns the rest of that line.
    ///
    /// # Errors
    /// When it ends before, with what it printed instead.
    pub async fn until(&mut self, expected: &str) -> Result<String, ContainerError> {
        let mut printed = Vec::new();
        while let Some(line) = self.line().await {
            if let Some(rest) = line.strip_prefix(expected) {
                return Ok(rest.trim().to_owned());
            }
            printed.push(line);
        }
        let printed = printed.join("\n");
        Err(ContainerError::Malformed(format!("a program ended without {expected:?}: {printed}")))
    }

    /// Everything that it prints until it ends.
    pub async fn output(mut self) -> Vec<String> {
        let mut printed = Vec::new();
        while let Some(line) = self.line().await {
            printed.push(line);
        }
        printed
    }
}
