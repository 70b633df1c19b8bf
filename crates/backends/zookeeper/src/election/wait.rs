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
/// The same for leaders and observers, for which it takes one to three requests.
pub(crate) const LEADER_RECHECK_INTERVAL: Duration = Duration::from_secs(20);

/// Returns once no candidate is ahead of `entry`.
///
/// Watches the entry itself and the nearest one ahead (hazard Z16). If the nearest one was the leader and is deleted, and
/// the watch on the own entry has not fired before on the same connection, then the own entry existed at that time and
/// leads. Otherwise the candidates are listed again, and nothing is created (hazard Z4). The entry before the nearest one
/// is watched as well, so that the last waiting candidate knows that it is second in line before its turn comes.
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
            let (nearest, leader, next) = match Box::pin(read_position(store, &connection, entry)).await? {
                Position::First => return Ok(()),
                Position::Changed => continue,
                Position::Behind { nearest, leader, next } => (nearest, leader, next),
            };
            let second_in_line = async {
                match next {
                    Some(next) => {
                        next.fired().await;
                        sleep(SECOND_IN_LINE_DELAY.mul_f64(0.5 + fastrand::f64())).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut own => break,
                event = nearest.fired() => {
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
    /// Behind `nearest`, whose path is `leader` if it leads. `next` watches the entry before it.
    Behind { nearest: Watch<'a>, leader: Option<String>, next: Option<Watch<'a>> },
}

/// Reads the position of `entry`, and watches the entries just ahead.
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
    Ok(match watch_nearest(store, connection, &ahead).await? {
        Nearest::None => Position::First,
        Nearest::Deleted => Position::Changed,
        Nearest::Watched { watch, at, next } => {
            let leader = (at == 0).then(|| ahead.swap_remove(0));
            Position::Behind { nearest: watch, leader, next }
        }
    })
}

/// The nearest candidate ahead.
enum Nearest<'a> {
    /// All znodes ahead are only named like entries.
    None,
    /// One was deleted meanwhile: list again.
    Deleted,
    /// The nearest candidate, its index among the entries ahead, and a watch on the entry before it.
    Watched { watch: Watch<'a>, at: usize, next: Option<Watch<'a>> },
}

/// Watches the nearest of the entries ahead that is a candidate's, and the one before it.
async fn watch_nearest<'a>(
    store: &ElectionStore,
    connection: &'a Connection,
    ahead: &[String],
) -> Result<Nearest<'a>, BackendError> {
    let Some((at, (stat, watch))) = watch_last_of(connection, ahead, ahead.len()).await? else {
        return Ok(Nearest::Deleted);
    };
    store.foreign_entries.warn_if_unreadable(&ahead[at], &stat);
    if is_candidate(store, &stat) {
        return with_next(connection, ahead, at, watch).await;
    }
    drop(watch);
    // A znode that is only named like an entry: look for the nearest candidate's among the rest.
    let rest: Vec<String> = ahead[..at].iter().rev().cloned().collect();
    let found = first_candidate(store, connection, rest).await.map_err(waiting)?;
    let Some(found) = found else { return Ok(Nearest::None) };
    match watch_last_of(connection, ahead, at - found).await? {
        Some((at, (stat, watch))) if is_candidate(store, &stat) => {
            with_next(connection, ahead, at, watch).await
        }
        _ => Ok(Nearest::Deleted),
    }
}

/// Watches for the deletion of the last of the first `count` entries ahead. Returns its index too; `None` if it is deleted.
async fn watch_last_of<'a>(
    connection: &'a Connection,
    ahead: &[String],
    count: usize,
) -> Result<Option<(usize, (Stat, Watch<'a>))>, BackendError> {
    let Some(at) = count.checked_sub(1) else { return Ok(None) };
    let watched = connection.watch_deletion(&ahead[at]).await.map_err(waiting)?;
    Ok(watched.map(|watched| (at, watched)))
}

/// Adds a watch on the entry before the nearest one, which is at `at` and watched by `watch`.
async fn with_next<'a>(
    connection: &'a Connection,
    ahead: &[String],
    at: usize,
    watch: Watch<'a>,
) -> Result<Nearest<'a>, BackendError> {
    if at == 0 {
        return Ok(Nearest::Watched { watch, at, next: None });
    }
    match watch_last_of(connection, ahead, at).await? {
        None => Ok(Nearest::Deleted),
        Some((_, (_, next))) => Ok(Nearest::Watched { watch, at, next: Some(next) }),
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

fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry is gone from ZooKeeper")
}
