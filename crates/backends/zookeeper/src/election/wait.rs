//! Waiting until an entry is first in its queue.
//!
//! Every watch is for one event and for one connection: after a reconnect everything is read again
//! (hazards Z6, Z7, Z11).

use std::time::Duration;

use futures::FutureExt as _;
use tenure_core::spi::{BackendError, BackendErrorKind, Entry, QueuePosition};
use tokio::time::sleep;
use zookeeper_client::Error;

use super::{
    entry_stat::is_own_entry,
    queue::{Queue, first_candidate, is_candidate},
    store::ElectionStore,
};
use crate::transport::{
    connection::Connection,
    error::{backend_error, session_gone, unavailable},
    resumable_session::ResumableSession,
    watch::Watch,
};

/// The delay before a candidate that may now be next in line reads its position, so that the new leader goes first.
const NEXT_IN_LINE_DELAY: Duration = Duration::from_millis(20);

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
/// next in line before its turn comes.
///
/// # Errors
/// [`EntryGone`](BackendErrorKind::EntryGone) when `entry` does not exist; [`SessionGone`](BackendErrorKind::SessionGone) when it
/// belongs to another session, or this user may no longer read it.
pub(crate) async fn until_first(
    store: &ElectionStore,
    session: &ResumableSession,
    entry: &Entry,
    position: &QueuePosition,
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
                        position.set_next(second_predecessor.is_none());
                        (predecessor, leader, second_predecessor)
                    }
                };
            let second_in_line = async {
                match second_predecessor {
                    Some(second_predecessor) => {
                        second_predecessor.fired().await;
                        sleep(NEXT_IN_LINE_DELAY.mul_f64(0.5 + fastrand::f64())).await;
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

/// Reads the position of `entry`, and watches its predecessor, which is the nearest candidate ahead, and its second predecessor.
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
    let ahead = queue.ahead_of(connection, &entry.key, czxid).await.map_err(waiting)?;
    let Some(mut ahead) = ahead else { return Err(entry_gone()) };
    let mut count = ahead.len();
    let (at, predecessor) = loop {
        let Some(at) = count.checked_sub(1) else { return Ok(Position::First) };
        let watched = connection.watch_deletion(&ahead[at]).await.map_err(waiting)?;
        let Some((stat, watch)) = watched else { return Ok(Position::Changed) };
        store.foreign_entries.warn_if_unreadable(&ahead[at], &stat);
        if is_candidate(store, &stat) {
            break (at, watch);
        }
        // A znode that is only named like an entry: look for the nearest candidate's among the rest.
        let rest = ahead[..at].iter().rev().cloned().collect();
        let found = first_candidate(store, connection, rest).await.map_err(waiting)?;
        let Some(found) = found else { return Ok(Position::First) };
        count = at - found;
    };
    let Some(second) = at.checked_sub(1) else {
        let leader = Some(ahead.swap_remove(0));
        return Ok(Position::Behind { predecessor, leader, second_predecessor: None });
    };
    let watched = connection.watch_deletion(&ahead[second]).await.map_err(waiting)?;
    Ok(watched.map_or(Position::Changed, |(_, watch)| Position::Behind {
        predecessor,
        leader: None,
        second_predecessor: Some(watch),
    }))
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
        return Err(session_gone("the entry belongs to another session, or may no longer be read"));
    }
    Ok(Some(watch))
}

pub(super) fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry is gone from ZooKeeper")
}
