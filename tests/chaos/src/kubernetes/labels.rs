//! Patches a label of every Lease each second, to check that this extends no lease.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tenure_containers::KubernetesAdmin;
use tokio::{task::JoinHandle, time::sleep};

const PATCH_INTERVAL: Duration = Duration::from_secs(1);
/// For how many rounds Leases are patched, and then left alone.
const ROUNDS: u64 = 30;

/// Patches a label of all Leases of a namespace every second, half of the time: each has a new `resourceVersion` then, also when
/// its holder is dead.
#[derive(Debug)]
pub(super) struct LabelWriter {
    patched: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl LabelWriter {
    /// Uses each of these API servers in turn.
    pub(super) fn start(admins: Vec<KubernetesAdmin>, namespace: &'static str) -> Self {
        let patched = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&patched);
        let task = tokio::spawn(async move {
            for round in 0_u64.. {
                sleep(PATCH_INTERVAL).await;
                if round / ROUNDS % 2 == 1 {
                    continue;
                }
                let admin = &admins[round as usize % admins.len()];
                // The server may be down.
                let leases = admin.leases(namespace).await.unwrap_or_default();
                let patch = json!({ "metadata": { "labels": { "round": round.to_string() } } });
                for lease in leases.iter().filter_map(|lease| lease["metadata"]["name"].as_str()) {
                    let outcome = admin.patch_lease(namespace, lease, &patch).await;
                    count.fetch_add(u64::from(outcome.is_ok()), Relaxed);
                }
            }
        });
        Self { patched, task }
    }

    /// How many patches were made.
    pub(super) fn patched(&self) -> u64 {
        self.patched.load(Relaxed)
    }
}

impl Drop for LabelWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}
