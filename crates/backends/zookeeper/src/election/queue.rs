//! The candidates of an election, in order.

use std::pin::pin;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure_core::spi::BackendError;
use zookeeper_client::{Error, Stat};

use super::store::ElectionStore;
use crate::transport::{connection::Connection, error::backend_error};

/// How many znodes are read concurrently. A user that may write to an election can create thousands of znodes in it that
/// are named like entries, and each has to be read.
pub(crate) const MAX_CONCURRENT_READS: usize = 64;

/// The candidates of one election, as listed at one time.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The election's znode.
    parent: String,
    /// Sorted by number, and by name where the numbers are equal.
    candidates: Vec<(u64, String)>,
}

/// The entries ahead of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// The entry itself does not exist.
    EntryGone,
    /// The entry leads.
    Nobody,
    /// Their paths, the nearest last.
    Entries(Vec<String>),
}

impl Queue {
    /// Sorts the children of `parent`, and counts the foreign entries among them.
    pub(crate) fn new(store: &ElectionStore, parent: &str, children: Vec<String>) -> Self {
        let found = children.len();
        let layout = store.layout;
        let mut candidates: Vec<_> =
            children.into_iter().filter_map(|name| Some((layout.number(&name)?, name))).collect();
        candidates.sort_unstable();
        store.foreign_entries.record(parent, found - candidates.len());
        Self { parent: parent.to_owned(), candidates }
    }

    /// The path of the entry whose name begins with `prefix`.
    pub(crate) fn find(&self, prefix: &str) -> Option<String> {
        let mut names = self.candidates.iter().map(|(_, name)| name);
        names.find(|name| name.starts_with(prefix)).map(|name| self.path(name))
    }

    /// All paths in order, except that entries with equal numbers are ordered by name.
    pub(crate) fn paths(&self) -> impl Iterator<Item = String> {
        self.candidates.iter().map(|(_, name)| self.path(name))
    }

    /// The entries ahead of the entry at `path`, which the transaction `czxid` created.
    ///
    /// Entries with equal numbers are ordered by the transactions that created them: the counter
    /// sticks at its maximum (hazard Z8).
    pub(crate) async fn ahead_of(
        &self,
        connection: &Connection,
        path: &str,
        czxid: i64,
    ) -> Result<Ahead, BackendError> {
        let own = self.candidates.iter().find(|(_, name)| self.path(name) == path);
        let Some(&(number, _)) = own else { return Ok(Ahead::EntryGone) };
        let earlier = self.candidates.iter().filter(|(other, _)| *other < number);
        let mut ahead: Vec<String> = earlier.map(|(_, name)| self.path(name)).collect();
        let others = self.candidates.iter().filter(|(other, _)| *other == number);
        let others: Vec<_> = others.map(|(_, name)| self.path(name)).filter(|other| other != path).collect();
        let mut tied = by_transaction(connection, others).await.map_err(reading_candidate)?;
        tied.retain(|(other, _)| *other < czxid);
        ahead.extend(tied.into_iter().map(|(_, path)| path));
        Ok(if ahead.is_empty() { Ahead::Nobody } else { Ahead::Entries(ahead) })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.parent)
    }
}

/// The znodes at `paths` that still exist, with the transactions that created them, sorted by these.
pub(crate) async fn by_transaction(
    connection: &Connection,
    paths: Vec<String>,
) -> Result<Vec<(i64, String)>, Error> {
    let stats = stream::iter(paths).map(|path| async move {
        let stat = connection.stat(&path).await?;
        Ok::<_, Error>(stat.map(|stat| (stat.czxid, path)))
    });
    let found = stats.buffered(MAX_CONCURRENT_READS).try_filter_map(async |found| Ok(found));
    let mut found = found.try_collect::<Vec<_>>().await?;
    found.sort_unstable();
    Ok(found)
}

/// The index of the first of the znodes at `paths` that is a candidate's entry and not only named like one. A znode that
/// has just been deleted counts as well: callers that wait read again.
pub(crate) async fn first_candidate(
    store: &ElectionStore,
    connection: &Connection,
    paths: Vec<String>,
) -> Result<Option<usize>, Error> {
    if !store.layout.requires_ephemeral() {
        return Ok((!paths.is_empty()).then_some(0));
    }
    // The first one alone: it almost always is an entry, and reading the others of a long queue would be wasted.
    let mut paths = paths.into_iter();
    let Some(first) = paths.next() else { return Ok(None) };
    let stat = async |path: String| (connection.stat(&path).await, path);
    let others = stream::iter(paths).map(stat).buffered(MAX_CONCURRENT_READS);
    let mut stats = pin!(stream::once(stat(first)).chain(others).enumerate());
    while let Some((at, (stat, path))) = stats.next().await {
        let stat = stat?;
        if let Some(stat) = &stat {
            store.foreign_entries.warn_if_unreadable(&path, stat);
        }
        if stat.is_none_or(|stat| is_candidate(store, &stat)) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Whether any of the znodes at `paths` is a candidate's entry.
pub(crate) async fn any_candidate(
    store: &ElectionStore,
    connection: &Connection,
    paths: Vec<String>,
) -> Result<bool, BackendError> {
    Ok(first_candidate(store, connection, paths).await.map_err(reading_candidate)?.is_some())
}

fn reading_candidate(error: Error) -> BackendError {
    backend_error("reading a candidate", &error)
}

/// Whether a znode that is named like an entry is a candidate's entry.
pub(crate) fn is_candidate(store: &ElectionStore, stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 || !store.layout.requires_ephemeral()
}
