//! Which ensemble the servers of the URL belong to.
//!
//! A URL that names servers of two ensembles would have two leaders (hazard G34): a session lives on one of them, but every
//! candidate picks its server at random. ZooKeeper's protocol names no ensemble. What tells two of them apart is a znode that
//! both have: they made it in different transactions, at different times. So the elections' root is compared, by its `czxid`
//! and `ctime`:
//!
//! - When a session opens, the root is made where it is missing. Then every other server that is not known yet is asked
//!   for it, all at once, over a session of its own. When one has another root, or none, nobody can know which ensemble is
//!   meant: the session is refused for good. A server that does not answer in time is not waited for.
//! - A server that answers later with another root is put aside, and the session goes on with the others. One that is never
//!   asked cannot take the session over either: it knows nothing of it, and says that it has expired.
//! - When a known server has another root than before, the root was made again, and all servers are asked anew.
//!
//! Who may not read the root compares nothing. Nor are two ensembles told apart of which one is a copy of the other's data.

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::timeout;
use tracing::{debug, warn};
use zookeeper_client::{Error, Stat};

use crate::{
    READER_TTL, Shared,
    connection::{Connection, is_unread},
    error::failed,
    parents::make_root,
};

/// How long servers have to answer before the session is used without their word.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a difference has to show: the root may be deleted and made again just then.
const LOOKS: usize = 3;

/// How an ensemble is known: when it made the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    czxid: i64,
    ctime: i64,
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "czxid {:#x}, ctime {}", self.czxid, self.ctime)
    }
}

/// What a server has at the root's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Root(Root),
    Nothing,
    /// Something that this user may not read.
    Unreadable,
}

impl From<Option<Stat>> for Found {
    fn from(stat: Option<Stat>) -> Self {
        match stat {
            None => Self::Nothing,
            Some(stat) if is_unread(&stat) => Self::Unreadable,
            Some(Stat { czxid, ctime, .. }) => Self::Root(Root { czxid, ctime }),
        }
    }
}

impl Found {
    /// Whether both are known, and cannot be of one ensemble.
    pub(crate) fn differs(self, other: Self) -> bool {
        self != other && self != Self::Unreadable && other != Self::Unreadable
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => root.fmt(f),
            Self::Nothing => f.write_str("missing"),
            Self::Unreadable => f.write_str("not readable"),
        }
    }
}

/// The ensemble that sessions are opened on.
#[derive(Debug, Default)]
pub(crate) struct Ensemble(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pinned: Option<Root>,
    /// The servers that have the root.
    known: HashSet<String>,
}

/// Compares what the servers have at the root's path, where a session is to be used that `connection` has just opened; the
/// root is made first if the session `enters`.
///
/// # Errors
/// [`Invalid`](BackendErrorKind::Invalid) when they are of two ensembles; [`Unavailable`](BackendErrorKind::Unavailable)
/// when this server is of another one than before, and not all have answered.
pub(crate) async fn check(
    shared: &Arc<Shared>,
    connection: &Connection,
    enters: bool,
) -> Result<(), BackendError> {
    let servers = &shared.config.servers;
    if servers.len() < 2 {
        return Ok(());
    }
    let mut looks = 0;
    loop {
        if enters && let Err(error) = make_root(shared, connection).await {
            // Entering says so, in words.
            debug!(%error, "the root is not made, and not compared");
            return Ok(());
        }
        let own = look(shared, connection).await.map_err(|error| failed("looking at the root", &error))?;
        let Some(asked) = shared.ensemble.others(servers, connection.server(), own) else { return Ok(()) };
        let answers = ask(shared, asked.clone(), own).await;
        looks += 1;
        match answers.iter().find(|(_, found)| found.differs(own)) {
            Some(_) if looks < LOOKS => {}
            Some((server, found)) => {
                let text = conflict(&shared.config.root, (connection.server(), own), (server, *found));
                return Err(BackendError::new(BackendErrorKind::Invalid, text));
            }
            None => {
                shared.servers.take_back();
                return shared.ensemble.agree(connection.server(), own, &asked, &answers);
            }
        }
    }
}

/// What `connection` has at the root's path, as its whole ensemble has it.
pub(crate) async fn look(shared: &Shared, connection: &Connection) -> Result<Found, Error> {
    connection.sync().await?;
    Ok(connection.stat(&shared.config.root).await?.into())
}

/// What the servers have that have answered in time. Whoever answers later, and has another root than `own`, is put aside.
async fn ask(shared: &Arc<Shared>, servers: Vec<String>, own: Found) -> Vec<(String, Found)> {
    let is_late = Arc::new(AtomicBool::new(false));
    let mut asked: FuturesUnordered<_> = servers
        .into_iter()
        .map(|server| {
            let (shared, is_late) = (Arc::clone(shared), Arc::clone(&is_late));
            // By itself, so that its session is ended also when nobody waits any more.
            tokio::spawn(async move {
                let connection = Connection::open(&shared.terms, &server, READER_TTL, None).await.ok()?;
                let found = look(&shared, &connection).await;
                tokio::spawn(async move { connection.end().await });
                let found = found.ok()?;
                let differs = matches!(own, Found::Root(_)) && found.differs(own);
                if differs && is_late.load(Relaxed) && shared.servers.put_aside(&server) {
                    warn!(
                        server,
                        "{}",
                        conflict(&shared.config.root, ("the session", own), (&server, found))
                    );
                }
                Some((server, found))
            })
        })
        .collect();
    let mut answers = Vec::new();
    let all = async {
        while let Some(answer) = asked.next().await {
            answers.extend(answer.ok().flatten());
        }
    };
    is_late.store(timeout(PATIENCE, all).await.is_err(), Relaxed);
    answers
}

pub(crate) fn conflict(root: &str, (one, own): (&str, Found), (two, other): (&str, Found)) -> String {
    format!(
        "the URL names servers of two ensembles: the root {root} is not the same on {one} ({own}) and on {two} ({other}): \
         candidates would lead on each; name the servers of one ensemble only"
    )
}

impl Ensemble {
    /// Whom to ask, where `own` is what the server has; `None` when there is nothing to compare, or nobody to ask.
    fn others(&self, servers: &[String], server: &str, own: Found) -> Option<Vec<String>> {
        if own == Found::Unreadable {
            return None;
        }
        let state = self.state();
        let is_pinned = matches!(own, Found::Root(root) if state.pinned == Some(root));
        let others = servers.iter().filter(|other| *other != server);
        let unknown: Vec<_> =
            others.filter(|other| !is_pinned || !state.known.contains(*other)).cloned().collect();
        (!unknown.is_empty()).then_some(unknown)
    }

    /// Remembers the root that `server` and those that have `answered` have, of all that were `asked`.
    fn agree(
        &self,
        server: &str,
        own: Found,
        asked: &[String],
        answered: &[(String, Found)],
    ) -> Result<(), BackendError> {
        let Found::Root(root) = own else { return Ok(()) };
        let mut state = self.state();
        if state.pinned != Some(root) {
            let is_stranger = state.pinned.is_some() && !state.known.contains(server);
            if is_stranger && answered.len() < asked.len() {
                let text = format!(
                    "{server} has another root ({root}) than the servers before it: waiting for every server of the URL to \
                     answer"
                );
                return Err(BackendError::new(BackendErrorKind::Unavailable, text));
            }
            *state = State { pinned: Some(root), known: HashSet::new() };
        }
        let same = answered.iter().filter(|(_, found)| *found == own).map(|(server, _)| server.clone());
        state.known.extend(same.chain([server.to_owned()]));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(czxid: i64) -> Found {
        Found::Root(Root { czxid, ctime: 7 })
    }

    /// Hazard G34: roots that were made in two transactions are of two ensembles; what cannot be read says nothing.
    #[test]
    fn roots_tell_ensembles_apart() {
        assert!(root(1).differs(root(2)) && root(1).differs(Found::Nothing));
        assert!(!root(1).differs(root(1)) && !Found::Nothing.differs(Found::Nothing));
        assert!(!root(1).differs(Found::Unreadable) && !Found::Unreadable.differs(Found::Nothing));
    }

    /// Hazard G34: known servers are not asked again; a server that was never asked is not believed alone.
    #[test]
    fn a_root_is_pinned() {
        let ensemble = Ensemble::default();
        let servers = ["a", "b", "c"].map(str::to_owned).to_vec();
        let others = |server: &str, own| ensemble.others(&servers, server, own).unwrap_or_default();
        assert_eq!(others("a", root(1)), ["b", "c"]);
        let answers = |found: &[(&str, Found)]| {
            found.iter().map(|(server, found)| ((*server).to_owned(), *found)).collect::<Vec<_>>()
        };
        ensemble.agree("a", root(1), &others("a", root(1)), &answers(&[("b", root(1))])).unwrap();
        assert_eq!(others("b", root(1)), ["c"]);
        // The root was made again.
        assert_eq!(others("b", root(2)), ["a", "c"]);
        ensemble.agree("b", root(2), &others("b", root(2)), &[]).unwrap();
        assert_eq!(others("b", root(2)), ["a", "c"]);
        let asked = others("c", root(3));
        let alone = ensemble.agree("c", root(3), &asked, &answers(&[("a", root(3))])).unwrap_err();
        assert_eq!(alone.kind(), BackendErrorKind::Unavailable, "{alone}");
        ensemble.agree("c", root(3), &asked, &answers(&[("a", root(3)), ("b", root(3))])).unwrap();
        assert_eq!(others("a", root(3)), [""; 0]);
        assert_eq!(others("a", Found::Unreadable), [""; 0]);
    }
}
