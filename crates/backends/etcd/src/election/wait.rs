//! Waits until an entry leads.
//!
//! It reads the entry and the nearest entries ahead of it, subscribes to their deletion, and reads again when one was
//! deleted. A candidate that had only the leader ahead of it leads without another read, once the informer has reported
//! that the leader's entry was deleted and its own was not ([`informer`](crate::transport::watch::informer)). Every
//! other conclusion comes from a read that saw the entry itself, so that no candidate wins without an entry (hazards
//! G13, E11).

use std::{cmp::Reverse, sync::Arc, time::Duration};

use etcd_client::KeyValue;
use tenure_core::spi::{BackendError, Entry, QueuePosition, Won};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    election::{
        entry::{create_revision, entry_gone, is_same_entry},
        keys::{fencing_token, is_candidate},
        position_reader::{EntriesAhead, PositionQuery, Snapshot},
        store::ElectionStore,
    },
    transport::{
        error::malformed,
        pages::Pages,
        watch::{Subscription, informer::WatchedKeys},
    },
};

/// How many of the entries ahead a candidate watches: the predecessor, and the one before it. After the predecessor's
/// end the candidate may lead. After the second predecessor's end it may be second in the queue, and has time to find
/// out before its predecessor leaves.
const MAX_WATCHED_AHEAD: i64 = 2;
/// The index of the own entry among the watched ones. The predecessor follows, and then the second predecessor.
const OWN: usize = 0;
const PREDECESSOR: usize = 1;

/// The least time after which the second candidate in the queue reads again without a signal.
const MIN_REREAD_INTERVAL_NEXT_IN_LINE: Duration = Duration::from_secs(5);
/// The same for all other waiters.
const MIN_REREAD_INTERVAL: Duration = Duration::from_secs(30);
/// The average delay of the read after the second predecessor's end, so that the next leader is served first.
const SECOND_PREDECESSOR_DELAY: Duration = Duration::from_millis(20);

/// A subscription that is lost sooner counts as another loss in a row.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// The average pause before the read after the second loss in a row. It doubles with each further one.
const FIRST_LOSS_PAUSE: Duration = Duration::from_millis(50);
/// How often it doubles at most.
const MAX_DOUBLINGS: u32 = 5;

/// The keys of the own entry and of those ahead, the nearest first, and the revision of the read.
struct Position {
    keys: WatchedKeys,
    read_at: i64,
}

/// See [`BackendSession::wait_turn`](tenure_core::spi::BackendSession::wait_turn).
pub(crate) async fn wait_turn(
    store: &ElectionStore,
    lease: i64,
    entry: &Entry,
    position: &QueuePosition,
) -> Result<Won, BackendError> {
    let mut losses = 0;
    loop {
        // Boxed: a wait can last for hours, and should not hold the memory of a read.
        let read = Box::pin(read_position(store, lease, entry)).await?;
        let Some(Position { keys, read_at }) = read else { return Err(entry_gone(entry)) };
        let ahead = keys.len() - 1;
        if ahead > 0 {
            let is_second = ahead == 1;
            position.set_next(is_second);
            let subscribed_at = Instant::now();
            let deletions = store.watcher.deletions(keys, read_at);
            let min = if is_second { MIN_REREAD_INTERVAL_NEXT_IN_LINE } else { MIN_REREAD_INTERVAL };
            let _ = timeout(store.watcher.reread_interval(min), until_position_may_change(&deletions)).await;
            if !is_second || !deletions.is_deleted(PREDECESSOR) || deletions.is_deleted(OWN) {
                let is_loss = deletions.is_lost() && subscribed_at.elapsed() < STABLE_AFTER;
                losses = if is_loss { losses + 1 } else { 0 };
                drop(deletions);
                if let Some(pause) = loss_pause(losses) {
                    Box::pin(sleep(pause.mul_f64(0.5 + fastrand::f64()))).await;
                }
                continue;
            }
        }
        let token = fencing_token(create_revision(entry)).ok_or_else(|| malformed("create revision"))?;
        return Ok(Won::new(entry.clone(), token));
    }
}

/// The average pause after this many losses in a row. Without it, all waiters would read in a loop while every subscription
/// is lost at once: while no member serves watches, or more entries are deleted during a read than the informer remembers.
/// None after the first loss, which is mostly another member's turn, and must not delay the next leader.
fn loss_pause(losses: u32) -> Option<Duration> {
    let doublings = losses.checked_sub(2)?.min(MAX_DOUBLINGS);
    Some(FIRST_LOSS_PAUSE * 2_u32.pow(doublings))
}

/// Waits until the position may have changed.
async fn until_position_may_change(deletions: &Subscription) {
    deletions.changed().await;
    if !deletions.is_lost() && !deletions.is_deleted(OWN) && !deletions.is_deleted(PREDECESSOR) {
        // The second predecessor has left.
        let delay = SECOND_PREDECESSOR_DELAY.mul_f64(0.5 + fastrand::f64());
        // Boxed: this memory is rarely needed.
        let _ = Box::pin(timeout(delay, deletions.changed())).await;
    }
}

/// Reads the position of `entry`; `None` when it does not exist.
async fn read_position(
    store: &ElectionStore,
    lease: i64,
    entry: &Entry,
) -> Result<Option<Position>, BackendError> {
    let own_revision = create_revision(entry);
    // etcd's first key has create revision 2, and zero as an upper limit would mean no limit.
    if own_revision < 2 {
        return Ok(None);
    }
    let election_prefix = store.keys.election_prefix(&entry.election);
    let ahead = EntriesAhead {
        election_prefix: election_prefix.clone(),
        before_revision: own_revision,
        limit: MAX_WATCHED_AHEAD,
    };
    let query = PositionQuery { key: entry.key.clone(), with_payload: false, ahead: Some(ahead) };
    let Snapshot { revision: read_at, own, mut ahead } = store.read_position(query).await?;
    if !own.is_some_and(|kv| is_same_entry(&kv, lease, own_revision)) {
        return Ok(None);
    }
    if !ahead.iter().all(|kv| is_candidate(&election_prefix, kv)) {
        // Foreign keys are skipped, which needs a read of all keys as of the same revision.
        ahead.clear();
        let pages = Pages::keys_at_revision(&store.members, &election_prefix, read_at);
        let add = |kv: KeyValue| {
            if kv.create_revision() < own_revision {
                ahead.push(kv);
                ahead.sort_by_key(|kv| Reverse(kv.create_revision()));
                ahead.truncate(MAX_WATCHED_AHEAD as usize);
            }
        };
        store.read_candidates(&election_prefix, pages, add).await?;
    }
    let key = |kv: &KeyValue| String::from_utf8_lossy(kv.key()).into();
    let keys = std::iter::once(Arc::clone(&entry.key)).chain(ahead.iter().map(key)).collect();
    Ok(Some(Position { keys, read_at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repeated_losses_delay_the_next_read() {
        let pauses = [0, 1, 2, 3, 7, 1000].map(|losses| loss_pause(losses).map(|pause| pause.as_millis()));
        assert_eq!(pauses, [None, None, Some(50), Some(100), Some(1600), Some(1600)]);
    }
}
