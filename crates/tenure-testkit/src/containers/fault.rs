//! What was done to a server, and how it is undone.

use std::{fmt, sync::Arc};

use super::{ContainerError, EtcdAdmin, container::Container, etcd::await_health, network::Network};

/// A fault in force. It ends when this is healed or dropped.
#[must_use = "a fault ends as soon as it is dropped"]
pub struct Fault {
    /// `None` once it has been undone.
    remedy: Option<Remedy>,
    container: Arc<Container>,
    admin: EtcdAdmin,
}

pub(super) enum Remedy {
    Start,
    Unpause,
    Join { network: Arc<Network>, ip: String },
}

impl Fault {
    pub(super) fn new(remedy: Remedy, container: Arc<Container>, admin: EtcdAdmin) -> Self {
        Self { remedy: Some(remedy), container, admin }
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
        match &self.remedy {
            Some(Remedy::Start) => self.container.start().await?,
            Some(Remedy::Unpause) => self.container.unpause().await?,
            Some(Remedy::Join { network, ip }) => self.container.join(network, ip).await?,
            None => {}
        }
        self.remedy = None;
        await_health(&self.container, &self.admin).await
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        match self.remedy.take() {
            Some(Remedy::Start) => self.container.start_in_drop(),
            Some(Remedy::Unpause) => self.container.unpause_in_drop(),
            Some(Remedy::Join { network, ip }) => self.container.join_in_drop(&network, &ip),
            None => {}
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = match &self.remedy {
            Some(Remedy::Start) => "start",
            Some(Remedy::Unpause) => "unpause",
            Some(Remedy::Join { .. }) => "join",
            None => "none",
        };
        f.debug_struct("Fault").field("remedy", &remedy).finish_non_exhaustive()
    }
}
