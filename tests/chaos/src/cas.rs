//! What candidates keep in a store that compares and swaps.

use anyhow::Result;
use serde_json::Value;
use tenure_cas::CasStore;

/// The slots in the queues of one election, or of all.
pub(crate) async fn slots(store: &impl CasStore, election: Option<&str>) -> Result<Vec<String>> {
    let wanted = election.map(|election| format!("e/{election}"));
    let mut slots = Vec::new();
    for record in store.list("e/").await? {
        if wanted.as_ref().is_some_and(|wanted| *wanted != record.key) {
            continue;
        }
        let election: Value = serde_json::from_slice(&record.body)?;
        let queue = election["queue"].as_array().into_iter().flatten();
        slots.extend(
            queue.map(|slot| format!("{}: {} of {}", record.key, slot["candidate"], slot["session"])),
        );
    }
    store.close().await;
    Ok(slots)
}
