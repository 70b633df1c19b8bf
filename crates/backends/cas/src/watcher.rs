//! Watching the slots of leaders.

use std::{sync::Arc, time::Duration};

use tenure_core::spi::{BackendError, Entry, EntryEvent};
use tokio::time::{Instant, sleep_until};

use crate::{
    hints::{Hints, Wake},
    record::{SessionId, Slot, election_key},
    session::Entries,
    shared::Shared,
    store::{CasStore, Freshness},
};

/// Waits until a slot has gone or, with `for_resign_requests`, its candidate was asked to resign.
///
/// Reads fresh after a hint and once per TTL, because a replica may stand still, and when a replica shows a change.
pub(crate) async fn wait_event<S: CasStore>(
    shared: Arc<Shared<S>>,
    entries: Arc<Entries>,
    (session, ttl): (SessionId, Duration),
    entry: Entry,
    for_resign_requests: bool,
) -> Result<EntryEvent, BackendError> {
    let client = &shared.client;
    let mut hints = Hints::new(&shared, election_key(&entry.election));
    let mut freshness = Freshness::Fresh;
    let mut fresh_at = Instant::now();
    loop {
        hints.subscribe();
        if freshness == Freshness::Fresh {
            fresh_at = Instant::now() + ttl;
        }
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
            Some(slot) => {
                let nonce = slot.nonce;
                if let Some((version, election)) =
                    found.filter(|(_, election)| election.place(&session, nonce) == Some(0))
                {
                    entries.note_led(nonce, version, election);
                }
            }
            None if freshness == Freshness::Fresh => return Ok(EntryEvent::Deleted),
            // A replica may lag.
            None => {
                freshness = Freshness::Fresh;
                continue;
            }
        }
        let wake = tokio::select! {
            biased;
            () = sleep_until(fresh_at) => Wake::Poll,
            wake = hints.wait() => wake,
        };
        freshness = match wake {
            Wake::Poll if Instant::now() < fresh_at => Freshness::MayBeStale,
            Wake::Poll | Wake::Hint => Freshness::Fresh,
        };
    }
}
