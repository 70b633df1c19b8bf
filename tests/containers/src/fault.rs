//! What was done to a server, and how it is undone.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    ContainerError,
    container::Container,
    engine::in_drop,
    health::{Health, await_health},
    network::Network,
};

/// How often it is looked whether a server has ended.
const LOOK: Duration = Duration::from_millis(250);

/// A fault in force. It ends when this is healed or dropped.
#[must_use = "a fault ends as soon as it is dropped"]
pub struct Fault {
    /// `None` once it has been undone.
    remedy: Option<Remedy>,
    container: Arc<Container>,
    health: Health,
}

pub(super) enum Remedy {
    Start,
    Unpause,
    Join {
        network: Arc<Network>,
        ip: String,
    },
    /// A script that is run beside the server. One that has ended is started instead, which has the same effect.
    Script(&'static str),
}

impl Remedy {
    async fn apply(&self, container: &Container) -> Result<(), ContainerError> {
        match self {
            Self::Start => container.start().await,
            Self::Unpause => container.unpause().await,
            Self::Join { network, ip } => container.join(network, ip).await,
            Self::Script(script) => match container.shell_while_running(script).await? {
                true => Ok(()),
                false => container.start().await,
            },
        }
    }
}

impl Fault {
    pub(super) fn new(remedy: Remedy, container: Arc<Container>, health: Health) -> Self {
        Self { remedy: Some(remedy), container, health }
    }

    /// Undoes the fault, and waits until the server serves again.
    ///
    /// # Errors
    /// When the server does not come back within a minute, or docker fails; the
    /// server is then in no known state.
    ///
    /// # Cancellation safety
    /// Dropped half-way, the fault is undone all the same, without waiting.
    pub async fn heal(mut self) -> Result<(), ContainerError> {
        if let Some(remedy) = &self.remedy {
            remedy.apply(&self.container).await?;
        }
        self.remedy = None;
        tokio::select! {
            healthy = await_health(&self.container, &self.health) => healthy,
            failed = self.keep_running() => failed,
        }
    }

    /// Starts the server when it has ended by what was done to it, which may take it a while. Returns when
    /// docker fails.
    async fn keep_running(&self) -> Result<(), ContainerError> {
        loop {
            if !self.container.is_running().await? {
                self.container.start().await?;
            }
            sleep(LOOK).await;
        }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        if let Some(remedy) = self.remedy.take() {
            in_drop(async { drop(remedy.apply(&self.container).await) });
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = match &self.remedy {
            Some(Remedy::Start) => "start",
            Some(Remedy::Unpause) => "unpause",
            Some(Remedy::Join { .. }) => "join",
            Some(Remedy::Script(script)) => script,
            None => "none",
        };
        f.debug_struct("Fault").field("remedy", &remedy).finish_non_exhaustive()
    }
}
