//! Waiting: for one's turn, and for the end of one's entry.
//!
//! Every watch is for one event and for one connection: after a reconnect everything is looked at again
//! (hazards Z6, Z7, Z11).

use tenure_core::spi::{BackendError, BackendErrorKind, Entry, Parting, is_asked};
use zookeeper_client::{Error, Stat};

use crate::{
    Shared,
    connection::{Connection, Watch},
    error::{failed, gone, unknown},
    link::Link,
    queue::{Ahead, Queue, is_candidate},
};

/// Returns when nobody stands before `entry` any more.
///
/// Two watches at a time, on the entry itself and on the one just ahead (hazard Z16). When that
/// one went, the candidates are listed anew, and nothing is created (hazard Z4).
///
/// # Errors
/// [`EntryGone`](BackendErrorKind::EntryGone) when `entry` is not there, also when it stands under another session.
pub(crate) async fn until_first(shared: &Shared, link: &Link, entry: &Entry) -> Result<(), BackendError> {
    let parent = shared.election(&entry.election);
    loop {
        let connection = link.connection().await?;
        let Some(own) = watch_own(link, &connection, entry).await? else { return Err(entry_gone()) };
        let mut own = std::pin::pin!(own.fired());
        // As long as the own watch has not fired.
        loop {
            let children = connection.children(&parent).await.map_err(|error| failed("waiting", &error))?;
            let Some(children) = children else { return Err(entry_gone()) };
            let queue = Queue::new(shared, &parent, children);
            let czxid = i64::try_from(entry.version).map_err(|_| unknown("no such czxid"))?;
            let ahead = match queue.ahead_of(&connection, &entry.key, czxid).await? {
                Ahead::Gone => return Err(entry_gone()),
                Ahead::Nobody => return Ok(()),
                Ahead::Others(ahead) => ahead,
            };
            let nearest = match nearest(shared, &connection, ahead).await? {
                Nearest::Nobody => return Ok(()),
                Nearest::Departed => continue,
                Nearest::Watched(watch) => watch,
            };
            tokio::select! {
                biased;
                () = &mut own => break,
                () = nearest.fired() => {}
            }
            if !connection.is_unbroken() {
                break;
            }
        }
    }
}

enum Nearest<'a> {
    /// Whatever has a candidate's name is no candidate.
    Nobody,
    /// One has gone meanwhile: list again.
    Departed,
    Watched(Watch<'a>),
}

/// Watches the nearest of those ahead that is a candidate.
async fn nearest<'a>(
    shared: &Shared,
    connection: &'a Connection,
    ahead: Vec<String>,
) -> Result<Nearest<'a>, BackendError> {
    for path in ahead.iter().rev() {
        match connection.watch_end(path).await.map_err(|error| failed("waiting", &error))? {
            None => return Ok(Nearest::Departed),
            Some((stat, watch)) if is_candidate(shared, &stat) => return Ok(Nearest::Watched(watch)),
            Some(_) => {}
        }
    }
    Ok(Nearest::Nobody)
}

/// Returns when `entry` is gone.
pub(crate) async fn until_gone(link: &Link, entry: &Entry) -> Result<(), BackendError> {
    loop {
        let connection = link.connection().await?;
        match watch_own(link, &connection, entry).await? {
            None => return Ok(()),
            Some(watch) => watch.fired().await,
        }
    }
}

/// Returns when `entry` is gone, or its candidate has been asked to resign.
pub(crate) async fn until_parting(link: &Link, entry: &Entry) -> Result<Parting, BackendError> {
    loop {
        let connection = link.connection().await?;
        let found = match connection.watch_data(&entry.key).await {
            // Whoever may not read its own entry is asked in vain.
            Err(Error::NoAuth) => return until_gone(link, entry).await.map(|()| Parting::Gone),
            found => found.map_err(|error| failed("waiting", &error))?,
        };
        let Some((payload, stat, watch)) = found else { return Ok(Parting::Gone) };
        if !is_ours(link, &stat, entry) {
            return Err(gone("the entry belongs to another session"));
        }
        if is_asked(&payload) {
            return Ok(Parting::Asked);
        }
        watch.fired().await;
    }
}

/// A watch on `entry`; `None` when it is gone.
async fn watch_own<'a>(
    link: &Link,
    connection: &'a Connection,
    entry: &Entry,
) -> Result<Option<Watch<'a>>, BackendError> {
    let found = connection.watch_end(&entry.key).await.map_err(|error| failed("waiting", &error))?;
    let Some((stat, watch)) = found else { return Ok(None) };
    if !is_ours(link, &stat, entry) {
        return Err(gone("the entry belongs to another session"));
    }
    Ok(Some(watch))
}

fn is_ours(link: &Link, stat: &Stat, entry: &Entry) -> bool {
    stat.ephemeral_owner == link.session() && u64::try_from(stat.czxid) == Ok(entry.version)
}

fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the entry is gone from ZooKeeper")
}
