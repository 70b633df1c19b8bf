//! The candidates of an election in their order.

use tenure_core::spi::BackendError;
use zookeeper_client::Stat;

use crate::{Shared, connection::Connection, error::failed};

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
        let mut tied = Vec::new();
        for (_, name) in
            self.candidates.iter().filter(|(other, name)| *other == number && self.path(name) != path)
        {
            let other = self.path(name);
            let stat =
                connection.stat(&other).await.map_err(|error| failed("looking at a candidate", &error))?;
            tied.extend(stat.filter(|stat| stat.czxid < czxid).map(|stat| (stat.czxid, other)));
        }
        tied.sort_unstable();
        ahead.extend(tied.into_iter().map(|(_, path)| path));
        Ok(if ahead.is_empty() { Ahead::Nobody } else { Ahead::Others(ahead) })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.parent)
    }
}

/// Whether any of the znodes at `paths` is a candidate's, and not only named like one.
pub(crate) async fn any_candidate(
    shared: &Shared,
    connection: &Connection,
    paths: &[String],
) -> Result<bool, BackendError> {
    if !shared.config.layout.is_ephemeral() {
        return Ok(!paths.is_empty());
    }
    for path in paths {
        let stat = connection.stat(path).await.map_err(|error| failed("looking at a candidate", &error))?;
        // One that has just gone counts as well: whoever waits looks again.
        if stat.is_none_or(|stat| is_candidate(shared, &stat)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a znode with a candidate's name is a candidate's.
pub(crate) fn is_candidate(shared: &Shared, stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 || !shared.config.layout.is_ephemeral()
}
