//! What the proxy does at the moment with the bytes that reach it.

use std::time::Duration;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Flow {
    #[default]
    Pass,
    Hold,
    Swallow,
}

/// The proxy's state, seen by every connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    /// Nobody listens.
    pub(super) cut: bool,
    /// A connection of an earlier generation is to be reset.
    pub(super) generation: u64,
    pub(super) to_server: Flow,
    pub(super) to_client: Flow,
    pub(super) delay: Duration,
}

/// Waits until a connection of `generation` has to be reset, or the proxy is gone.
pub(super) async fn reset_due(mut gate: watch::Receiver<Gate>, generation: u64) {
    let _ = gate.wait_for(|gate| gate.cut || gate.generation != generation).await;
}
