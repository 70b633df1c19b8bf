//! Watching the slots of leaders.

use std::sync::Arc;

use tenure_core::spi::{BackendError, Entry, EntryEvent};

use crate::{
    client::Hints,
    record::{SessionId, Slot},
    shared::Shared,
    store::{CasStore, Freshness},
};

/// Waits until a slot has gone or, with `for_resign_requests`, its candidate was asked to resign.
pub(crate) async fn wait_event<S: CasStore>(
    shared: Arc<Shared<S>>,
    session: SessionId,
    entry: Entry,
    for_resign_requests: bool,
) -> Result<EntryEvent, BackendError> {
    let client = &shared.client;
    let mut hints = Hints::new(client.changes(&entry.election));
    let mut freshness = Freshness::Fresh;
    loop {
        let found = client.read_election(&entry.election, freshness).await?;
        let slot = found.as_ref().and_then(|(_, election)| {
            let is_it = |slot: &&Slot| {
                slot.session == session && *entry.key == Slot::entry_key(&entry.election, slot.nonce)
            };
            election.queue.iter().find(is_it)
        });
        match slot {
            Some(slot) if slot.resign_requested && for_resign_requests => {
                return Ok(EntryEvent::ResignRequested);
            }
            Some(_) => {}
            None if freshness == Freshness::Fresh => return Ok(EntryEvent::Deleted),
            // A replica may lag.
            None => {
                freshness = Freshness::Fresh;
                continue;
            }
        }
        freshness = Freshness::MayBeStale;
        let delay = shared.poll_delay(hints.exist());
        tokio::select! {
            biased;
            () = hints.next() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
}
