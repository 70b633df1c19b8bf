//! Somebody who changes Leases that are not theirs: a label of each is patched every second.

use std::time::Duration;

use serde_json::json;
use tenure_containers::KubernetesAdmin;
use tokio::{task::JoinHandle, time::sleep};

const PATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Patches a label of all Leases of a namespace every second, so that each has a new `resourceVersion` all the time, also when
/// its holder is dead.
#[derive(Debug)]
pub(super) struct LabelWriter(JoinHandle<()>);

impl LabelWriter {
    /// Uses each of these API servers in turn.
    pub(super) fn start(admins: Vec<KubernetesAdmin>, namespace: &'static str) -> Self {
        Self(tokio::spawn(async move {
            for round in 0_u64.. {
                sleep(PATCH_INTERVAL).await;
                let admin = &admins[round as usize % admins.len()];
                // The server may be down.
                let leases = admin.leases(namespace).await.unwrap_or_default();
                let patch = json!({ "metadata": { "labels": { "round": round.to_string() } } });
                for lease in leases.iter().filter_map(|lease| lease["metadata"]["name"].as_str()) {
                    let _ = admin.patch_lease(namespace, lease, &patch).await;
                }
            }
        }))
    }
}

impl Drop for LabelWriter {
    fn drop(&mut self) {
        self.0.abort();
    }
}
