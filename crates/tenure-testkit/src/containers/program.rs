//! A program run inside a server's container, beside the server.

use tokio::{
    io::AsyncBufReadExt as _,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::{ContainerError, container::Container};

/// A program that runs in a container, and what it prints. It ends with its container.
#[derive(Debug)]
pub struct Program {
    lines: UnboundedReceiver<String>,
}

impl Program {
    pub(super) async fn run(container: &Container, command: &[&str]) -> Result<Self, ContainerError> {
        // Its errors are for the reader as well.
        let shell = ["sh", "-c", "exec \"$@\" 2>&1", "sh"];
        let mut running = container.exec(shell.iter().chain(command).copied()).await?;
        let (sender, lines) = unbounded_channel();
        tokio::spawn(async move {
            let mut printed = running.stdout().lines();
            while let Ok(Some(line)) = printed.next_line().await {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { lines })
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
