//! The faults that a proxy injects at present.

use std::{io, time::Duration};

use tokio::sync::watch;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FlowPolicy {
    #[default]
    Forward,
    Hold,
    Discard,
}

/// The faults that are active. Every connection observes them through a watch channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// New connections are refused.
    pub(super) cut: bool,
    /// Connections of an earlier generation have to be reset.
    pub(super) generation: u64,
    pub(super) to_server: FlowPolicy,
    pub(super) to_client: FlowPolicy,
    pub(super) delay: Duration,
}

/// Waits until a connection of `generation` has to be reset, or the proxy is dropped.
pub(super) async fn reset_due(mut faults: watch::Receiver<Faults>, generation: u64) {
    let _ = faults.wait_for(|faults| faults.cut || faults.generation != generation).await;
}

/// The error of a connection that has to be reset.
pub(super) fn connection_reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}
