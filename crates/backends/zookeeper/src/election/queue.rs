//! The candidates of an election, in order.

use std::pin::pin;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use zookeeper_client::{Error, Stat};

use super::store::ElectionStore;
use crate::transport::connection::Connection;

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

    /// The paths of the entries ahead of the entry at `path`, which the transaction `czxid` created; the nearest last. `None` if that
    /// entry does not exist.
    pub(crate) async fn ahead_of(
        &self,
        connection: &Connection,
        path: &str,
        czxid: i64,
    ) -> Result<Option<Vec<String>>, Error> {
        let own = self.candidates.iter().find(|(_, name)| self.path(name) == path);
        let Some((number, _)) = own else { return Ok(None) };
        let mut paths = self.ordered(connection, *number, Some((path, czxid))).await?;
        let at = paths.iter().position(|other| other == path);
        Ok(at.map(|at| paths.drain(..at).collect()))
    }

    /// All paths; the first ones are in order even if their numbers are equal.
    pub(crate) async fn in_order(&self, connection: &Connection) -> Result<Vec<String>, Error> {
        let Some((first, _)) = self.candidates.first() else { return Ok(Vec::new()) };
        self.ordered(connection, *first, None).await
    }

    /// All paths. Entries with this number are ordered by the transactions that created them, which are read except for `own`: the
    /// counter sticks at its maximum (hazard Z8). Those that do not exist any more are left out.
    async fn ordered(
        &self,
        connection: &Connection,
        number: u64,
        own: Option<(&str, i64)>,
    ) -> Result<Vec<String>, Error> {
        let mut paths: Vec<_> = self.paths().collect();
        let [start, end] =
            [number, number + 1].map(|number| self.candidates.partition_point(|(other, _)| *other < number));
        if end - start > 1 {
            let czxids = stream::iter(paths[start..end].to_vec()).map(|path| async move {
                let czxid = match own {
                    Some((own, czxid)) if own == path => Some(czxid),
                    _ => connection.stat(&path).await?.map(|stat| stat.czxid),
                };
                Ok::<_, Error>(czxid.map(|czxid| (czxid, path)))
            });
            let tied = czxids.buffered(MAX_CONCURRENT_READS).try_filter_map(async |found| Ok(found));
            let mut tied = tied.try_collect::<Vec<_>>().await?;
            tied.sort_unstable();
            paths.splice(start..end, tied.into_iter().map(|(_, path)| path));
        }
        Ok(paths)
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.parent)
    }
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

/// Whether a znode that is named like an entry is a candidate's entry.
pub(crate) fn is_candidate(store: &ElectionStore, stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 || !store.layout.requires_ephemeral()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        election::{layout::Layout, session_bounds::SessionBounds},
        transport::{
            connect_options::ConnectOptions,
            ensemble::Ensemble,
            scripted_server::{Answer, GRANTED_TTL, Request, ScriptedServer},
        },
    };

    /// Hazard Z8: entries with equal numbers are ordered by transaction. The own entry's is known, also if it may not be read.
    #[tokio::test]
    async fn equal_numbers_are_ordered_by_transaction() {
        let [first, d, c, b, a, last] = [
            (9, "0000000001"),
            (4, "2147483647"),
            (3, "2147483647"),
            (2, "2147483647"),
            (1, "2147483647"),
            (0, "-2147483648"),
        ]
        .map(|(nonce, number)| format!("{}{number}", Layout::Tenure.prefix(nonce)));
        let czxids = [(&d, 5), (&b, 7), (&a, 8)].map(|(name, czxid)| (format!("/root/e/{name}"), czxid));
        let server = ScriptedServer::start(move |request| {
            let answer = match &request {
                Request::Connect { .. } => Answer::Session(7),
                Request::Exists(path) => match czxids.iter().find(|(other, _)| other == path) {
                    Some((_, czxid)) => Answer::stat(*czxid, 1),
                    None => Answer::no_auth(),
                },
                _ => Answer::ok(&[]),
            };
            Box::pin(async { answer })
        })
        .await;
        let options = ConnectOptions::for_tests(GRANTED_TTL);
        let connection = Connection::open(&options, server.address(), GRANTED_TTL, None).await.unwrap();
        let ensemble = Ensemble::new(options, vec![server.address().to_owned()]);
        let store = ElectionStore::new(Layout::Tenure, SessionBounds::default(), ensemble);
        let children = [&last, &a, &b, &c, &d, &first].map(String::clone).to_vec();
        let queue = Queue::new(&store, "/root/e", children);
        let paths =
            |names: &[&String]| names.iter().map(|name| format!("/root/e/{name}")).collect::<Vec<_>>();
        let ahead =
            async |name: &str, czxid| queue.ahead_of(&connection, &format!("/root/e/{name}"), czxid).await;
        assert_eq!(ahead(&c, 6).await, Ok(Some(paths(&[&first, &d]))));
        assert_eq!(ahead(&c, 9).await, Ok(Some(paths(&[&first, &d, &b, &a]))));
        assert_eq!(ahead(&first, 1).await, Ok(Some(Vec::new())));
        assert_eq!(ahead("gone", 1).await, Ok(None));
        // An entry that may not be read is waited for.
        assert_eq!(ahead(&d, 5).await, Ok(Some(paths(&[&first, &c]))));
        let tied = Queue::new(&store, "/root/e", [&a, &b, &d].map(String::clone).to_vec());
        assert_eq!(tied.in_order(&connection).await, Ok(paths(&[&d, &b, &a])));
    }
}
