//! Waiting until an entry is first in its queue.
//!
//! Every watch is for one event and for one connection: after a reconnect everything is read again
//! (hazards Z6, Z7, Z11).

use std::time::Duration;

use futures::FutureExt as _;
use tenure_core::spi::{BackendError, BackendErrorKind, Entry};
use tokio::time::sleep;
use zookeeper_client::{Error, Stat};

use super::{
    entry_stat::is_own_entry,
    queue::{Ahead, Queue, first_candidate, is_candidate},
    store::ElectionStore,
};
use crate::transport::{
    connection::Connection,
    error::{backend_error, session_gone, unavailable},
    resumable_session::ResumableSession,
    watch::Watch,
};

/// The delay before a candidate that may now be second in line reads its position, so that the new leader goes first.
const SECOND_IN_LINE_DELAY: Duration = Duration::from_millis(20);

/// How often a waiting candidate reads again without an event; less often where many wait. Rarely: it takes seven
/// requests, thousands may wait, and there is hardly ever a change that no watch has reported.
const WAITER_RECHECK_INTERVAL: Duration = Duration::from_secs(600);
/// How often a leader or an observer reads again without an event. It takes one to three requests.
pub(crate) const LEADER_RECHECK_INTERVAL: Duration = Duration::from_secs(20);

/// Returns once no candidate is ahead of `entry`.
///
/// Watches the entry itself and its predecessor, the nearest entry ahead (hazard Z16). If the predecessor was the leader
/// and is deleted, and the watch on the own entry has not fired before on the same connection, then the own entry existed
/// at that time and leads. Otherwise the candidates are listed again, and nothing is created (hazard Z4). The second
/// predecessor, the entry before the predecessor, is watched as well, so that the last waiting candidate knows that it is
/// second in line before its turn comes.
///
/// # Errors
/// [`EntryGone`](BackendErrorKind::EntryGone) when `entry` does not exist, also when it belongs to another session.
pub(crate) async fn until_first(
    store: &ElectionStore,
    session: &ResumableSession,
    entry: &Entry,
) -> Result<(), BackendError> {
    loop {
        let connection = session.connection().await?;
        let Some(own) = Box::pin(watch_own(session, &connection, entry)).await? else {
            return Err(entry_gone());
        };
        let mut own = std::pin::pin!(own.fired_or_recheck_due(WAITER_RECHECK_INTERVAL));
        // For as long as the own watch has not fired.
        loop {
            // Boxed: the wait lasts for hours and should not hold the memory of this short read.
            let (predecessor, leader, second_predecessor) =
                match Box::pin(read_position(store, &connection, entry)).await? {
                    Position::First => return Ok(()),
                    Position::Changed => continue,
                    Position::Behind { predecessor, leader, second_predecessor } => {
                        (predecessor, leader, second_predecessor)
                    }
                };
            let second_in_line = async {
                match second_predecessor {
                    Some(second_predecessor) => {
                        second_predecessor.fired().await;
                        sleep(SECOND_IN_LINE_DELAY.mul_f64(0.5 + fastrand::f64())).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut own => break,
                event = predecessor.fired() => {
                    let leader_left = leader.is_some_and(|path| connection.is_deletion(event.as_ref(), &path));
                    // Polled once more: its event may have arrived just before the other one.
                    if own.as_mut().now_or_never().is_some() {
                        break;
                    }
                    if leader_left {
                        return Ok(());
                    }
                }
                () = second_in_line => {}
            }
            if !connection.is_unbroken() {
                break;
            }
        }
    }
}

/// An entry's position in the queue.
enum Position<'a> {
    /// No candidate is ahead.
    First,
    /// An entry was deleted meanwhile: read again.
    Changed,
    /// Behind other candidates: the watches on the predecessor and the second predecessor. `leader` is the path of the
    /// predecessor if it leads.
    Behind { predecessor: Watch<'a>, leader: Option<String>, second_predecessor: Option<Watch<'a>> },
}

/// Reads the position of `entry`, and watches its predecessor and its second predecessor.
async fn read_position<'a>(
    store: &ElectionStore,
    connection: &'a Connection,
    entry: &Entry,
) -> Result<Position<'a>, BackendError> {
    let parent = store.election_path(&entry.election);
    let children = connection.children(&parent).await.map_err(waiting)?;
    let Some(children) = children else { return Err(entry_gone()) };
    let queue = Queue::new(store, &parent, children);
    let czxid =
        i64::try_from(entry.version).map_err(|_| unavailable("the entry's version is not a czxid"))?;
    let mut ahead = match queue.ahead_of(connection, &entry.key, czxid).await? {
        Ahead::EntryGone => return Err(entry_gone()),
        Ahead::Nobody => return Ok(Position::First),
        Ahead::Entries(ahead) => ahead,
    };
    Ok(match watch_predecessor(store, connection, &ahead).await? {
        Predecessor::None => Position::First,
        Predecessor::Deleted => Position::Changed,
        Predecessor::Watched { watch, at, second_predecessor } => {
            let leader = (at == 0).then(|| ahead.swap_remove(0));
            Position::Behind { predecessor: watch, leader, second_predecessor }
        }
    })
}

/// The predecessor: the nearest candidate ahead.
enum Predecessor<'a> {
    /// All znodes ahead are only named like entries.
    None,
    /// One was deleted meanwhile: list again.
    Deleted,
    /// A watch on the predecessor, its index among the entries ahead, and a watch on the second predecessor.
    Watched { watch: Watch<'a>, at: usize, second_predecessor: Option<Watch<'a>> },
}

/// Watches the predecessor and the second predecessor.
async fn watch_predecessor<'a>(
    store: &ElectionStore,
    connection: &'a Connection,
    ahead: &[String],
) -> Result<Predecessor<'a>, BackendError> {
    let Some((at, (stat, watch))) = watch_deletion_of_last(connection, ahead, ahead.len()).await? else {
        return Ok(Predecessor::Deleted);
    };
    store.foreign_entries.warn_if_unreadable(&ahead[at], &stat);
    if is_candidate(store, &stat) {
        return with_second_predecessor(connection, ahead, at, watch).await;
    }
    drop(watch);
    // A znode that is only named like an entry: look for the nearest candidate's among the rest.
    let rest: Vec<String> = ahead[..at].iter().rev().cloned().collect();
    let found = first_candidate(store, connection, rest).await.map_err(waiting)?;
    let Some(found) = found else { return Ok(Predecessor::None) };
    match watch_deletion_of_last(connection, ahead, at - found).await? {
        Some((at, (stat, watch))) if is_candidate(store, &stat) => {
            with_second_predecessor(connection, ahead, at, watch).await
        }
        _ => Ok(Predecessor::Deleted),
    }
}

/// Watches for the deletion of the entry at `count − 1` among the entries ahead. Returns that index too; `None` if the
/// entry is deleted.
async fn watch_deletion_of_last<'a>(
    connection: &'a Connection,
    ahead: &[String],
    count: usize,
) -> Result<Option<(usize, (Stat, Watch<'a>))>, BackendError> {
    let Some(at) = count.checked_sub(1) else { return Ok(None) };
    let watched = connection.watch_deletion(&ahead[at]).await.map_err(waiting)?;
    Ok(watched.map(|watched| (at, watched)))
}

/// Adds a watch on the second predecessor. The predecessor is at `at`, and `watch` watches it.
async fn with_second_predecessor<'a>(
    connection: &'a Connection,
    ahead: &[String],
    at: usize,
    watch: Watch<'a>,
) -> Result<Predecessor<'a>, BackendError> {
    if at == 0 {
        return Ok(Predecessor::Watched { watch, at, second_predecessor: None });
    }
    match watch_deletion_of_last(connection, ahead, at).await? {
        None => Ok(Predecessor::Deleted),
        Some((_, (_, second_predecessor))) => {
            Ok(Predecessor::Watched { watch, at, second_predecessor: Some(second_predecessor) })
        }
    }
}

fn waiting(error: Error) -> BackendError {
    backend_error("waiting", &error)
}

/// A watch on `entry`; `None` if it does not exist.
async fn watch_own<'a>(
    session: &ResumableSession,
    connection: &'a Connection,
    entry: &Entry,
) -> Result<Option<Watch<'a>>, BackendError> {
    let found = connection.watch_deletion(&entry.key).await.map_err(waiting)?;
    let Some((stat, watch)) = found else { return Ok(None) };
    if !is_own_entry(session, &stat, entry) {
        return Err(session_gone("the entry belongs to another session"));
    }
    Ok(Some(watch))
}

pub(super) fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry is gone from ZooKeeper")
}
