//! The candidates of an election in their order.

use std::pin::pin;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure_core::spi::BackendError;
use zookeeper_client::{Error, Stat};

use crate::{Shared, connection::Connection, error::failed};

/// How many znodes are asked for at a time. Whoever may write to an election can put thousands into it that are named
/// like entries, and each has to be looked at.
pub(crate) const AT_ONCE: usize = 64;

/// The candidates of one election, as one listing showed them.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The election's znode.
    parent: String,
    /// By number, and by name where the numbers are the same.
    candidates: Vec<(u64, String)>,
}

/// Who stands before an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// The entry is not there.
    Gone,
    /// Nobody: the entry leads.
    Nobody,
    /// The paths of those before it, the nearest last.
    Others(Vec<String>),
}

impl Queue {
    /// Sorts what was found below `parent` and counts the strangers among it.
    pub(crate) fn new(shared: &Shared, parent: &str, children: Vec<String>) -> Self {
        let found = children.len();
        let layout = shared.config.layout;
        let mut candidates: Vec<_> =
            children.into_iter().filter_map(|name| Some((layout.number(&name)?, name))).collect();
        candidates.sort_unstable();
        shared.note_strangers(parent, found - candidates.len());
        Self { parent: parent.to_owned(), candidates }
    }

    /// The path of the entry whose name begins so.
    pub(crate) fn find(&self, prefix: &str) -> Option<String> {
        let mut names = self.candidates.iter().map(|(_, name)| name);
        names.find(|name| name.starts_with(prefix)).map(|name| self.path(name))
    }

    /// All paths, in order but for those whose numbers are the same.
    pub(crate) fn paths(&self) -> impl Iterator<Item = String> {
        self.candidates.iter().map(|(_, name)| self.path(name))
    }

    /// Who stands before the entry at `path`, which was created by the transaction `czxid`.
    ///
    /// Numbers that are the same are told apart by the transactions that made the entries: the
    /// counter sticks at its end (hazard Z8).
    pub(crate) async fn ahead_of(
        &self,
        connection: &Connection,
        path: &str,
        czxid: i64,
    ) -> Result<Ahead, BackendError> {
        let own = self.candidates.iter().find(|(_, name)| self.path(name) == path);
        let Some(&(number, _)) = own else { return Ok(Ahead::Gone) };
        let earlier = self.candidates.iter().filter(|(other, _)| *other < number);
        let mut ahead: Vec<String> = earlier.map(|(_, name)| self.path(name)).collect();
        let others = self.candidates.iter().filter(|(other, _)| *other == number);
        let others: Vec<_> = others.map(|(_, name)| self.path(name)).filter(|other| other != path).collect();
        let mut tied = by_transaction(connection, others).await.map_err(looking)?;
        tied.retain(|(other, _)| *other < czxid);
        ahead.extend(tied.into_iter().map(|(_, path)| path));
        Ok(if ahead.is_empty() { Ahead::Nobody } else { Ahead::Others(ahead) })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.parent)
    }
}

/// The znodes at `paths` that are still there, with the transactions that made them, in that order.
pub(crate) async fn by_transaction(
    connection: &Connection,
    paths: Vec<String>,
) -> Result<Vec<(i64, String)>, Error> {
    let asked = stream::iter(paths).map(|path| async move {
        let stat = connection.stat(&path).await?;
        Ok::<_, Error>(stat.map(|stat| (stat.czxid, path)))
    });
    let found = asked.buffered(AT_ONCE).try_filter_map(async |found| Ok(found));
    let mut found = found.try_collect::<Vec<_>>().await?;
    found.sort_unstable();
    Ok(found)
}

/// Where the first of the znodes at `paths` stands that is a candidate's, and not only named like one; or that has
/// just gone: whoever waits looks again.
pub(crate) async fn first_candidate(
    shared: &Shared,
    connection: &Connection,
    paths: Vec<String>,
) -> Result<Option<usize>, Error> {
    if !shared.config.layout.is_ephemeral() {
        return Ok((!paths.is_empty()).then_some(0));
    }
    // The first alone: it almost always is one, and in a long queue nobody is asked about the others in vain.
    let mut paths = paths.into_iter();
    let Some(first) = paths.next() else { return Ok(None) };
    let stat = async |path: String| (connection.stat(&path).await, path);
    let others = stream::iter(paths).map(stat).buffered(AT_ONCE);
    let mut stats = pin!(stream::once(stat(first)).chain(others).enumerate());
    while let Some((at, (stat, path))) = stats.next().await {
        let stat = stat?;
        if let Some(stat) = &stat {
            shared.note_unread(&path, stat);
        }
        if stat.is_none_or(|stat| is_candidate(shared, &stat)) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The same, as whether there is any.
pub(crate) async fn any_candidate(
    shared: &Shared,
    connection: &Connection,
    paths: Vec<String>,
) -> Result<bool, BackendError> {
    Ok(first_candidate(shared, connection, paths).await.map_err(looking)?.is_some())
}

fn looking(error: Error) -> BackendError {
    failed("looking at a candidate", &error)
}

/// Whether a znode with a candidate's name is a candidate's.
pub(crate) fn is_candidate(shared: &Shared, stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 || !shared.config.layout.is_ephemeral()
}
