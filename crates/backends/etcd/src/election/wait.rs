//! Waits until an entry leads.
//!
//! It reads the queue position, watches the entries that it depends on, and reads again (see
//! [`crate::transport::watch`]). The second candidate in the queue becomes leader when its watch reports that the
//! leader's entry was deleted and its own was not. Every other conclusion comes from a read that saw the entry
//! itself, so that no candidate wins without an entry (hazards G13, E11).

use std::{cmp::Reverse, sync::Arc};

use etcd_client::KeyValue;
use tenure_core::spi::{BackendError, Entry, QueuePosition, Won};

use crate::{
    election::{
        candidate_pages::CandidatePages,
        entry::{create_revision, entry_gone, is_same_entry},
        keys::{fencing_token, is_candidate},
        position_reader::{EntriesAhead, PositionQuery, Snapshot},
        store::ElectionStore,
    },
    transport::{
        error::malformed,
        retry::retry_until_answered,
        watch::{
            reusable::{ReusableSubscription, WakeReason},
            target::{Succession, WatchTarget},
        },
    },
};

/// How many of the entries ahead a candidate watches: the predecessor, and the one before it. After the predecessor's
/// end the candidate may lead. After the second predecessor's end it may be second in the queue, and has time to find
/// out before its predecessor leaves.
const MAX_WATCHED_AHEAD: i64 = 2;

/// The position of an entry in its queue.
enum Position {
    /// The entry does not exist.
    EntryGone,
    Leads,
    /// Behind others, as of this revision.
    Waits {
        ahead: Ahead,
        read_at: i64,
    },
}

/// The entries ahead.
enum Ahead {
    /// The leader's, and no other.
    Leader(Arc<str>),
    /// The predecessor, the second predecessor, and perhaps more.
    Several { predecessor: Arc<str>, second_predecessor: Arc<str> },
}

/// See [`BackendSession::wait_turn`](tenure_core::spi::BackendSession::wait_turn).
pub(crate) async fn wait_turn(
    store: &ElectionStore,
    lease: i64,
    entry: &Entry,
    position: &QueuePosition,
) -> Result<Won, BackendError> {
    let mut subscription = ReusableSubscription::default();
    let won = || match fencing_token(create_revision(entry)) {
        Some(token) => Ok(Won::new(entry.clone(), token)),
        None => Err(malformed("create revision")),
    };
    loop {
        match retry_until_answered(|| Box::pin(read_position(store, lease, entry))).await? {
            Position::EntryGone => return Err(entry_gone(entry)),
            Position::Leads => return won(),
            Position::Waits { ahead, read_at } => {
                position.set_next(matches!(ahead, Ahead::Leader(_)));
                let targets = watch_targets(entry, ahead);
                if let WakeReason::BecameLeader = subscription.wait(&store.watcher, targets, read_at).await {
                    return won();
                }
            }
        }
    }
}

/// What a candidate watches while these entries are ahead of it.
fn watch_targets(entry: &Entry, ahead: Ahead) -> Vec<WatchTarget> {
    let own: Arc<str> = Arc::clone(&entry.key);
    match ahead {
        Ahead::Leader(leader) => {
            let own_create_revision = create_revision(entry);
            vec![WatchTarget::Succession(Box::new(Succession { own, leader, own_create_revision }))]
        }
        Ahead::Several { predecessor, second_predecessor } => vec![
            WatchTarget::Deletion(predecessor),
            WatchTarget::DistantDeletion(second_predecessor),
            WatchTarget::Deletion(own),
        ],
    }
}

/// Reads the position of `entry`.
async fn read_position(store: &ElectionStore, lease: i64, entry: &Entry) -> Result<Position, BackendError> {
    // etcd's first key has create revision 2, and zero as an upper limit would mean no limit.
    if create_revision(entry) < 2 {
        return Ok(Position::EntryGone);
    }
    let election_prefix = store.keys.election_prefix(&entry.election);
    let Some((read_at, predecessors)) = read_ahead(store, lease, entry, &election_prefix).await? else {
        return Ok(Position::EntryGone);
    };
    if predecessors.iter().all(|kv| is_candidate(&election_prefix, kv)) {
        return Ok(position_behind(&predecessors, read_at));
    }
    // Foreign keys are skipped, which needs a read of all keys as of the same revision.
    let mut candidates = Vec::<KeyValue>::new();
    let mut pages = CandidatePages::keys_at_revision(store, &election_prefix, read_at);
    while let Some(page) = pages.next().await? {
        candidates.extend(page.into_iter().filter(|kv| kv.create_revision() < create_revision(entry)));
        candidates.sort_by_key(|kv| Reverse(kv.create_revision()));
        candidates.truncate(MAX_WATCHED_AHEAD as usize);
    }
    Ok(position_behind(&candidates, read_at))
}

/// The position behind `predecessors`, the entries ahead, the nearest first.
fn position_behind(predecessors: &[KeyValue], read_at: i64) -> Position {
    let key = |kv: &KeyValue| Arc::from(String::from_utf8_lossy(kv.key()));
    let ahead = match predecessors {
        [] => return Position::Leads,
        [leader] => Ahead::Leader(key(leader)),
        [predecessor, second_predecessor, ..] => {
            Ahead::Several { predecessor: key(predecessor), second_predecessor: key(second_predecessor) }
        }
    };
    Position::Waits { ahead, read_at }
}

/// Reads the newest keys ahead of `entry`, and the revision of the read; `None` when the entry does not exist.
async fn read_ahead(
    store: &ElectionStore,
    lease: i64,
    entry: &Entry,
    election_prefix: &str,
) -> Result<Option<(i64, Vec<KeyValue>)>, BackendError> {
    let ahead = EntriesAhead {
        election_prefix: election_prefix.to_owned(),
        before_revision: create_revision(entry),
        limit: MAX_WATCHED_AHEAD,
    };
    let query = PositionQuery { key: entry.key.clone(), with_payload: false, ahead: Some(ahead) };
    let Snapshot { revision, own, ahead } = store.read_position(query).await?;
    let exists = own.is_some_and(|kv| is_same_entry(&kv, lease, create_revision(entry)));
    Ok(exists.then_some((revision, ahead)))
}
