//! Waiting for one's turn.
//!
//! Every watch is for one event and for one connection: after a reconnect everything is looked at again
//! (hazards Z6, Z7, Z11).

use std::time::Duration;

use futures::FutureExt as _;
use tenure_core::spi::{BackendError, BackendErrorKind, Entry};
use tokio::time::sleep;
use zookeeper_client::{Error, Stat};

use crate::{
    Shared,
    connection::{Connection, Watch},
    error::{failed, gone, unknown},
    link::Link,
    queue::{Ahead, Queue, first_candidate, is_candidate},
};

/// After how long whoever may be second in line now looks, so that whoever leads now goes first.
const LATER: Duration = Duration::from_millis(20);

/// After how long whoever waits looks again although nothing was heard, or later where many do. Rarely: it takes seven
/// requests, thousands may wait, and hardly ever is there anything to see.
const WAITING: Duration = Duration::from_secs(600);
/// The same of who leads, or observes who does, each of which costs a request or three.
pub(crate) const FOLLOWING: Duration = Duration::from_secs(20);

/// Returns when nobody stands before `entry` any more.
///
/// Watches the entry itself and the one just ahead (hazard Z16). When that one went and was the leader, and the
/// own watch on the same connection has not fired before, the entry was there then, and leads. Otherwise
/// the candidates are listed anew, and nothing is created (hazard Z4). So that the last of the waiting is
/// known to be second in line by the time its turn comes, the one before the one just ahead is watched, too.
///
/// # Errors
/// [`EntryGone`](BackendErrorKind::EntryGone) when `entry` is not there, also when it stands under another session.
pub(crate) async fn until_first(shared: &Shared, link: &Link, entry: &Entry) -> Result<(), BackendError> {
    loop {
        let connection = link.connection().await?;
        let Some(own) = Box::pin(watch_own(link, &connection, entry)).await? else {
            return Err(entry_gone());
        };
        let mut own = std::pin::pin!(own.fired_or_due(WAITING));
        // As long as the own watch has not fired.
        loop {
            // Boxed: a wait lasts for hours and should not hold the room for a look.
            let (nearest, leader, next) = match Box::pin(stand(shared, &connection, entry)).await? {
                Stand::First => return Ok(()),
                Stand::Changed => continue,
                Stand::Behind { nearest, leader, next } => (nearest, leader, next),
            };
            let second_in_line = async {
                match next {
                    Some(next) => {
                        next.fired().await;
                        sleep(LATER.mul_f64(0.5 + fastrand::f64())).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut own => break,
                fired = nearest.fired() => {
                    let leader_left = leader.is_some_and(|path| connection.tells_the_end(fired.as_ref(), &path));
                    // Looked at once more: its event may have come just before the other.
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

/// Where an entry stands.
enum Stand<'a> {
    /// Nobody stands before it.
    First,
    /// Somebody has gone meanwhile: look again.
    Changed,
    /// Behind the nearest, whose path it is when that is the leader; and the one before it.
    Behind { nearest: Watch<'a>, leader: Option<String>, next: Option<Watch<'a>> },
}

/// Looks where `entry` stands, and watches whom it stands behind.
async fn stand<'a>(
    shared: &Shared,
    connection: &'a Connection,
    entry: &Entry,
) -> Result<Stand<'a>, BackendError> {
    let parent = shared.election(&entry.election);
    let children = connection.children(&parent).await.map_err(waiting)?;
    let Some(children) = children else { return Err(entry_gone()) };
    let queue = Queue::new(shared, &parent, children);
    let czxid = i64::try_from(entry.version).map_err(|_| unknown("no such czxid"))?;
    let mut ahead = match queue.ahead_of(connection, &entry.key, czxid).await? {
        Ahead::Gone => return Err(entry_gone()),
        Ahead::Nobody => return Ok(Stand::First),
        Ahead::Others(ahead) => ahead,
    };
    Ok(match nearest(shared, connection, &ahead).await? {
        Nearest::Nobody => Stand::First,
        Nearest::Departed => Stand::Changed,
        Nearest::Watched { watch, at, next } => {
            let leader = (at == 0).then(|| ahead.swap_remove(0));
            Stand::Behind { nearest: watch, leader, next }
        }
    })
}

enum Nearest<'a> {
    /// Whatever has a candidate's name is no candidate.
    Nobody,
    /// One has gone meanwhile: list again.
    Departed,
    /// The nearest, its place among those ahead, and the one before it.
    Watched { watch: Watch<'a>, at: usize, next: Option<Watch<'a>> },
}

/// Watches the nearest of those ahead that is a candidate, and the one before it.
async fn nearest<'a>(
    shared: &Shared,
    connection: &'a Connection,
    ahead: &[String],
) -> Result<Nearest<'a>, BackendError> {
    let Some((at, (stat, watch))) = last_watched(connection, ahead, ahead.len()).await? else {
        return Ok(Nearest::Departed);
    };
    shared.note_unread(&ahead[at], &stat);
    if is_candidate(shared, &stat) {
        return watched(connection, ahead, at, watch).await;
    }
    drop(watch);
    // A znode that is only named like an entry: the nearest that is one is looked for among the rest.
    let rest: Vec<String> = ahead[..at].iter().rev().cloned().collect();
    let found = first_candidate(shared, connection, rest).await.map_err(waiting)?;
    let Some(found) = found else { return Ok(Nearest::Nobody) };
    match last_watched(connection, ahead, at - found).await? {
        Some((at, (stat, watch))) if is_candidate(shared, &stat) => {
            watched(connection, ahead, at, watch).await
        }
        _ => Ok(Nearest::Departed),
    }
}

/// A watch for the end of the last of the first `count` of those ahead, and its place; `None` when it has gone.
async fn last_watched<'a>(
    connection: &'a Connection,
    ahead: &[String],
    count: usize,
) -> Result<Option<(usize, (Stat, Watch<'a>))>, BackendError> {
    let Some(at) = count.checked_sub(1) else { return Ok(None) };
    let watched = connection.watch_end(&ahead[at]).await.map_err(waiting)?;
    Ok(watched.map(|watched| (at, watched)))
}

/// The nearest is at `at`, and watched; so is the one before it from now on.
async fn watched<'a>(
    connection: &'a Connection,
    ahead: &[String],
    at: usize,
    watch: Watch<'a>,
) -> Result<Nearest<'a>, BackendError> {
    if at == 0 {
        return Ok(Nearest::Watched { watch, at, next: None });
    }
    match last_watched(connection, ahead, at).await? {
        None => Ok(Nearest::Departed),
        Some((_, (_, next))) => Ok(Nearest::Watched { watch, at, next: Some(next) }),
    }
}

fn waiting(error: Error) -> BackendError {
    failed("waiting", &error)
}

/// A watch on `entry`; `None` when it is gone.
async fn watch_own<'a>(
    link: &Link,
    connection: &'a Connection,
    entry: &Entry,
) -> Result<Option<Watch<'a>>, BackendError> {
    let found = connection.watch_end(&entry.key).await.map_err(waiting)?;
    let Some((stat, watch)) = found else { return Ok(None) };
    if !is_ours(link, &stat, entry) {
        return Err(gone("the entry belongs to another session"));
    }
    Ok(Some(watch))
}

/// Whether `stat` is the entry's, and our session's.
pub(crate) fn is_ours(link: &Link, stat: &Stat, entry: &Entry) -> bool {
    stat.ephemeral_owner == link.session() && u64::try_from(stat.czxid) == Ok(entry.version)
}

fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry is gone from ZooKeeper")
}
