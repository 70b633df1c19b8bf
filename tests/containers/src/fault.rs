//! A fault that is in force, and how it is undone.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    container::Container, docker::block_on_in_drop, error::ContainerError, health::HealthCheck,
    network::Network,
};

/// How often a server that recovers is checked for having ended.
const RUNNING_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A fault that is in force until it is healed or dropped.
#[must_use = "a fault ends as soon as it is dropped"]
pub struct Fault {
    /// `None` once the fault has been undone.
    undo: Option<Undo>,
    container: Arc<Container>,
    health: HealthCheck,
}

/// What undoes a fault.
pub(crate) enum Undo {
    StartContainer,
    Unpause,
    ConnectNetwork {
        network: Arc<Network>,
        ip: String,
    },
    /// A script that runs in the container. A container that has ended is started instead, which has the same effect.
    RunScript(&'static str),
}

impl Undo {
    async fn apply(&self, container: &Container) -> Result<(), ContainerError> {
        match self {
            Self::StartContainer => container.start().await,
            Self::Unpause if container.is_paused().await? => container.unpause().await,
            // It was killed while it was paused.
            Self::Unpause => container.start().await,
            Self::ConnectNetwork { network, ip } => container.connect(network, ip).await,
            Self::RunScript(script) => match container.run_script_if_running(script).await? {
                true => Ok(()),
                false => container.start().await,
            },
        }
    }
}

impl Fault {
    pub(crate) fn new(undo: Undo, container: Arc<Container>, health: HealthCheck) -> Self {
        Self { undo: Some(undo), container, health }
    }

    /// Undoes the fault, and waits until the server is ready again.
    ///
    /// # Errors
    /// When the server is not ready within a minute, or Docker fails. The state of the server is then unknown.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the fault is undone without waiting for the server.
    pub async fn heal(mut self) -> Result<(), ContainerError> {
        if let Some(undo) = &self.undo {
            undo.apply(&self.container).await?;
        }
        self.undo = None;
        tokio::select! {
            healthy = self.health.wait_until_ready(&self.container) => healthy,
            failed = self.keep_running() => failed,
        }
    }

    /// Starts the server whenever it has ended as a late effect of the fault. Returns only when Docker fails.
    async fn keep_running(&self) -> Result<(), ContainerError> {
        loop {
            if !self.container.is_running().await? {
                self.container.start().await?;
            }
            sleep(RUNNING_CHECK_INTERVAL).await;
        }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            block_on_in_drop(async { drop(undo.apply(&self.container).await) });
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let undo = match &self.undo {
            Some(Undo::StartContainer) => "start container",
            Some(Undo::Unpause) => "unpause",
            Some(Undo::ConnectNetwork { .. }) => "connect network",
            Some(Undo::RunScript(script)) => script,
            None => "none",
        };
        f.debug_struct("Fault").field("undo", &undo).finish_non_exhaustive()
    }
}
