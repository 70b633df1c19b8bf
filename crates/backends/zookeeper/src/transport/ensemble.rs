//! Checks that the servers of the URL belong to one ensemble.
//!
//! A URL that names servers of two ensembles would have two leaders (hazard G34): a session lives on one of them, and
//! every candidate picks its server at random. ZooKeeper's protocol does not identify an ensemble. But a znode that two
//! ensembles both have was created in different transactions, at different times. Therefore the elections' root is
//! compared, by its `czxid` and `ctime`:
//!
//! - When a session is opened, the root is created where it is missing. Then every other server that is not known yet is
//!   asked for it, in parallel, each over a session of its own. If one has another root, or none, it is
//!   unknown which ensemble is meant, and the session is refused permanently. A server that does not answer in time is
//!   not waited for.
//! - If a server answers later and has another root, the session ends: a candidate whose session is on that server may
//!   lead as well. The next session is refused, since that server answers by now. A server that never answers cannot
//!   resume the session: it does not know it, and reports it as expired.
//! - When a known server has another root than before, the root was created again, and all servers are asked again.
//!
//! Nothing is compared if the user may not read the root. An ensemble whose data is a copy of another one's is not
//! recognized.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::timeout;
use tracing::{debug, warn};
use zookeeper_client::{Error, Stat};

use super::{
    connect_options::{ConnectOptions, READER_TTL},
    connection::Connection,
    error::{backend_error, session_gone},
    parents::create_root,
    resumable_session::ResumableSession,
    servers::Servers,
    session_state::SessionState,
    znode_stat::is_unreadable,
};

/// How long the other servers have to answer before the session is used without their answers. A candidate waits for this
/// long before its first campaign if one of the servers is silent.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a difference has to be seen before it is reported: the root may have just been deleted and created again.
const ATTEMPTS: usize = 3;

/// Identifies a root: the transaction and the time of its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootId {
    czxid: i64,
    ctime: i64,
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "czxid {:#x}, ctime {}", self.czxid, self.ctime)
    }
}

/// What a server has at the root's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootState {
    Present(RootId),
    Missing,
    /// It exists, and this user may not read it.
    Unreadable,
}

impl From<Option<Stat>> for RootState {
    fn from(stat: Option<Stat>) -> Self {
        match stat {
            None => Self::Missing,
            Some(stat) if is_unreadable(&stat) => Self::Unreadable,
            Some(Stat { czxid, ctime, .. }) => Self::Present(RootId { czxid, ctime }),
        }
    }
}

impl RootState {
    /// Whether both are known and cannot be of one ensemble.
    pub(crate) fn differs(self, other: Self) -> bool {
        self != other && self != Self::Unreadable && other != Self::Unreadable
    }
}

impl fmt::Display for RootState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(root) => root.fmt(f),
            Self::Missing => f.write_str("missing"),
            Self::Unreadable => f.write_str("not readable"),
        }
    }
}

/// The ensemble that the configuration names.
#[derive(Debug)]
pub(crate) struct Ensemble {
    pub(crate) options: Arc<ConnectOptions>,
    pub(crate) servers: Arc<Servers>,
    identity: EnsembleIdentity,
}

impl Ensemble {
    pub(crate) fn new(options: ConnectOptions, servers: Vec<String>) -> Self {
        let (options, servers) = (Arc::new(options), Arc::new(Servers::new(servers)));
        Self { options, servers, identity: EnsembleIdentity::default() }
    }

    /// Compares the root on all servers, before `session` is used, which was just opened. Creates the root first if
    /// `creates_root`.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the servers belong to two ensembles;
    /// [`Unavailable`](BackendErrorKind::Unavailable) when this server belongs to another one than before, and not all
    /// have answered.
    pub(crate) async fn check(
        self: &Arc<Self>,
        session: &ResumableSession,
        creates_root: bool,
    ) -> Result<(), BackendError> {
        let servers = self.servers.all();
        if servers.len() < 2 {
            return Ok(());
        }
        let connection = &*session.connection().await?;
        let mut attempts = 0;
        loop {
            if creates_root && let Err(error) = create_root(&self.options, connection).await {
                // Entering an election fails in the same way, and reports it.
                debug!(%error, "cannot create the root; the servers are not compared");
                return Ok(());
            }
            let own = self.read_root(connection).await;
            let own = own.map_err(|error| backend_error("reading the root", &error))?;
            let Some(asked) = self.identity.servers_to_ask(servers, connection.server(), own) else {
                return Ok(());
            };
            let answers = self.ask(asked.clone(), (connection.server(), own), session.state()).await;
            attempts += 1;
            match answers.iter().find(|(_, found)| found.differs(own)) {
                Some(_) if attempts < ATTEMPTS => {}
                Some((server, found)) => {
                    let text = conflict(&self.options.root, (connection.server(), own), (server, *found));
                    return Err(BackendError::new(BackendErrorKind::Invalid, text));
                }
                None => return self.identity.agree(connection.server(), own, &asked, &answers),
            }
        }
    }

    /// Reads the root, after a `sync`.
    pub(crate) async fn read_root(&self, connection: &Connection) -> Result<RootState, Error> {
        connection.sync().await?;
        Ok(connection.stat(&self.options.root).await?.into())
    }

    /// Asks `servers` for the root. Returns the answers that arrive in time. If a server answers later, and has another
    /// root than `own`, the session is [refused](SessionState::refuse).
    async fn ask(
        self: &Arc<Self>,
        servers: Vec<String>,
        (own_server, own): (&str, RootState),
        session: &Arc<SessionState>,
    ) -> Vec<(String, RootState)> {
        // `None` once they are not waited for any more.
        let answers = Arc::new(Mutex::new(Some(Vec::new())));
        let mut asked: FuturesUnordered<_> = servers
            .into_iter()
            .map(|server| {
                let (this, answers) = (Arc::clone(self), Arc::clone(&answers));
                let (own_server, session) = (own_server.to_owned(), Arc::downgrade(session));
                // In a task of its own, so that its session is closed also after the timeout.
                tokio::spawn(async move {
                    let Some(found) = this.ask_server(&server).await else { return };
                    if let Some(answers) = lock(&answers).as_mut() {
                        answers.push((server, found));
                        return;
                    }
                    let Some(session) = session.upgrade() else { return };
                    if matches!(own, RootState::Present(_)) && found.differs(own) {
                        let text = conflict(&this.options.root, (&own_server, own), (&server, found));
                        warn!(session = %session.session.id(), "the session ends: {text}");
                        session.refuse(session_gone(text));
                    }
                })
            })
            .collect();
        let all = async { while asked.next().await.is_some() {} };
        let _ = timeout(ANSWER_TIMEOUT, all).await;
        lock(&answers).take().unwrap_or_default()
    }

    /// What `server` has at the root's path, read over a session of its own; `None` if it does not answer.
    async fn ask_server(&self, server: &str) -> Option<RootState> {
        let connection = Connection::open(&self.options, server, READER_TTL, None).await.ok()?;
        let found = self.read_root(&connection).await;
        tokio::spawn(async move { connection.close_session().await });
        found.ok()
    }
}

/// The text for two servers whose roots differ.
pub(crate) fn conflict(root: &str, (one, own): (&str, RootState), (two, other): (&str, RootState)) -> String {
    format!(
        "the URL names servers of two ensembles: the root {root} is not the same on {one} ({own}) and on {two} ({other}), so \
         that each ensemble would have a leader; name the servers of one ensemble only"
    )
}

/// The root that the servers agreed on, and which servers have it.
#[derive(Debug, Default)]
struct EnsembleIdentity(Mutex<PinnedRoot>);

#[derive(Debug, Default)]
struct PinnedRoot {
    root: Option<RootId>,
    /// The servers that have this root.
    servers: HashSet<String>,
}

impl EnsembleIdentity {
    /// Which servers to ask if `server` has `own`; `None` if there is nothing to compare or no server to ask.
    fn servers_to_ask(&self, servers: &[String], server: &str, own: RootState) -> Option<Vec<String>> {
        if own == RootState::Unreadable {
            return None;
        }
        let pinned = self.pinned();
        let is_pinned = matches!(own, RootState::Present(root) if pinned.root == Some(root));
        let others = servers.iter().filter(|other| *other != server);
        let unknown: Vec<_> =
            others.filter(|other| !is_pinned || !pinned.servers.contains(*other)).cloned().collect();
        (!unknown.is_empty()).then_some(unknown)
    }

    /// Pins the root of `server` and of the servers that have `answered`, of all that were `asked`.
    fn agree(
        &self,
        server: &str,
        own: RootState,
        asked: &[String],
        answered: &[(String, RootState)],
    ) -> Result<(), BackendError> {
        let RootState::Present(root) = own else { return Ok(()) };
        let mut pinned = self.pinned();
        if pinned.root != Some(root) {
            let is_unknown = pinned.root.is_some() && !pinned.servers.contains(server);
            if is_unknown && answered.len() < asked.len() {
                let text = format!(
                    "{server} has another root ({root}) than the servers used before: waiting until every server of the URL \
                     answers"
                );
                return Err(BackendError::new(BackendErrorKind::Unavailable, text));
            }
            *pinned = PinnedRoot { root: Some(root), servers: HashSet::new() };
        }
        let same = answered.iter().filter(|(_, found)| *found == own).map(|(server, _)| server.clone());
        pinned.servers.extend(same.chain([server.to_owned()]));
        Ok(())
    }

    fn pinned(&self) -> MutexGuard<'_, PinnedRoot> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(czxid: i64) -> RootState {
        RootState::Present(RootId { czxid, ctime: 7 })
    }

    /// Hazard G34: roots that were created in two transactions are of two ensembles; an unreadable root proves nothing.
    #[test]
    fn roots_tell_ensembles_apart() {
        assert!(root(1).differs(root(2)) && root(1).differs(RootState::Missing));
        assert!(!root(1).differs(root(1)) && !RootState::Missing.differs(RootState::Missing));
        assert!(
            !root(1).differs(RootState::Unreadable) && !RootState::Unreadable.differs(RootState::Missing)
        );
    }

    /// Hazard G34: known servers are not asked again; a new root on a server that was never asked needs every answer.
    #[test]
    fn a_root_is_pinned() {
        let identity = EnsembleIdentity::default();
        let servers = ["a", "b", "c"].map(str::to_owned).to_vec();
        let to_ask = |server: &str, own| identity.servers_to_ask(&servers, server, own).unwrap_or_default();
        assert_eq!(to_ask("a", root(1)), ["b", "c"]);
        let answers = |found: &[(&str, RootState)]| {
            found.iter().map(|(server, found)| ((*server).to_owned(), *found)).collect::<Vec<_>>()
        };
        identity.agree("a", root(1), &to_ask("a", root(1)), &answers(&[("b", root(1))])).unwrap();
        assert_eq!(to_ask("b", root(1)), ["c"]);
        // The root was created again.
        assert_eq!(to_ask("b", root(2)), ["a", "c"]);
        identity.agree("b", root(2), &to_ask("b", root(2)), &[]).unwrap();
        assert_eq!(to_ask("b", root(2)), ["a", "c"]);
        let asked = to_ask("c", root(3));
        let alone = identity.agree("c", root(3), &asked, &answers(&[("a", root(3))])).unwrap_err();
        assert_eq!(alone.kind(), BackendErrorKind::Unavailable, "{alone}");
        identity.agree("c", root(3), &asked, &answers(&[("a", root(3)), ("b", root(3))])).unwrap();
        assert_eq!(to_ask("a", root(3)), [""; 0]);
        assert_eq!(to_ask("a", RootState::Unreadable), [""; 0]);
    }
}
