//! Checks that the servers of the URL belong to one ensemble.
//!
//! A URL that names servers of two ensembles would have two leaders (hazard G34): a session lives on one of them, and
//! every candidate picks a server at random. ZooKeeper's protocol does not identify an ensemble. But a znode that two
//! ensembles both have was created in different transactions, at different times. Therefore the elections' root is
//! compared, by its `czxid` and `ctime`:
//!
//! - When a session is opened, the root is created where it is missing. Then every other server, which is every address of
//!   every name, is asked for it unless it is known to have it: in parallel, each over a session of its own. If one has another
//!   root, or none, it is unknown which ensemble is meant, and the session is refused permanently. A server that does not
//!   answer in time is not waited for.
//! - If a server answers later and has another root, the session's own root is read once more. If the two differ, the session
//!   ends: a candidate whose session is on that server may lead as well. A late answer that there is no root ends nothing: a
//!   server that lags, or a deposed leader, may not have it yet.
//! - Such a server is remembered until it has the same root as the others. Meanwhile every session waits longer for its
//!   answer, and is not used without it. Sessions that are in use go on: a server of another ensemble cannot resume them,
//!   since it does not know them.
//! - When an address that had the pinned root has another one, the root was created again, and all servers are asked again. At
//!   another address, a session with another root is used once one address of every other name has answered.
//!
//! Nothing is compared if the user may not read the root. An ensemble whose data is a copy of another one's is not
//! recognized.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt as _, future::join, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use zookeeper_client::Error;

use super::{
    connect_options::{ConnectOptions, READER_TTL},
    connection::Connection,
    ensemble_identity::{EnsembleIdentity, RootState, conflict},
    error::{backend_error, session_gone},
    lock,
    parents::create_root,
    resumable_session::ResumableSession,
    servers::{Servers, Target},
    session_state::SessionState,
};

/// How long the other servers have to answer before the session is used without their answers. A candidate waits for this
/// long before its first campaign if one of the servers is silent.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a difference has to be seen before it is reported: the root may have just been deleted and created again.
const ATTEMPTS: usize = 3;
/// The delay before the session's own root is read again after that has failed.
const REREAD_DELAY: Duration = Duration::from_millis(100);

/// The ensemble that the configuration names.
#[derive(Debug)]
pub(crate) struct Ensemble {
    pub(crate) options: Arc<ConnectOptions>,
    pub(crate) servers: Arc<Servers>,
    identity: EnsembleIdentity,
}

impl Ensemble {
    pub(crate) fn new(options: ConnectOptions, servers: Vec<String>) -> Self {
        let servers = Arc::new(Servers::new(servers, options.tls.is_some()));
        let options = Arc::new(options);
        Self { options, servers, identity: EnsembleIdentity::default() }
    }

    /// Compares the root on all servers, before `session` is used, which was just opened. Creates the root first if
    /// `creates_root`.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the servers belong to two ensembles;
    /// [`Unavailable`](BackendErrorKind::Unavailable) when this server belongs to another one than before, and not enough
    /// have answered; or when a server does not answer that had another root.
    pub(crate) async fn check(
        self: &Arc<Self>,
        session: &ResumableSession,
        creates_root: bool,
    ) -> Result<(), BackendError> {
        let servers = self.servers.in_order().await;
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
            let Some(asked) = self.identity.servers_to_ask(&servers, &connection.target, own) else {
                return Ok(());
            };
            let answers = self.ask(asked.clone(), (&connection.target, own), &session.state).await;
            attempts += 1;
            match answers.iter().find(|(_, found)| found.differs(own)) {
                Some((server, found)) if attempts < ATTEMPTS && !self.identity.has_shown(server, *found) => {}
                Some((server, found)) => {
                    let text = conflict(&self.options.root, (&connection.target, own), (server, *found));
                    return Err(BackendError::new(BackendErrorKind::Invalid, text));
                }
                None => return self.identity.agree(&connection.target, own, &asked, &answers),
            }
        }
    }

    /// Reads the root, after a `sync`. Both are sent at once.
    pub(crate) async fn read_root(&self, connection: &Connection) -> Result<RootState, Error> {
        let (synced, root) = join(connection.sync(), connection.stat(&self.options.root)).await;
        synced?;
        Ok(root?.into())
    }

    /// Asks `servers` for the root. Returns the answers that arrive in time. Those that arrive later are
    /// [compared](Self::compare_late), too.
    async fn ask(
        self: &Arc<Self>,
        servers: Vec<Target>,
        (own_server, own): (&Target, RootState),
        session: &Arc<SessionState>,
    ) -> Vec<(Target, RootState)> {
        let limit = match self.identity.has_conflict(&servers) {
            true => self.options.attempt_timeout.max(ANSWER_TIMEOUT),
            false => ANSWER_TIMEOUT,
        };
        // `None` once they are not waited for any more.
        let answers = Arc::new(Mutex::new(Some(Vec::new())));
        let mut asked: FuturesUnordered<_> = servers
            .into_iter()
            .map(|server| {
                let (this, answers) = (Arc::clone(self), Arc::clone(&answers));
                let (own_server, session) = (own_server.clone(), Arc::downgrade(session));
                // In a task of its own, so that its session is closed also after the timeout.
                tokio::spawn(async move {
                    let Some(found) = this.ask_server(&server).await else { return };
                    if let Some(answers) = lock(&answers).as_mut() {
                        answers.push((server, found));
                        return;
                    }
                    this.identity.record_same(&server, found);
                    if let Some(session) = session.upgrade() {
                        this.compare_late(&session, (&own_server, own), (&server, found)).await;
                    }
                })
            })
            .collect();
        let all = async { while asked.next().await.is_some() {} };
        let _ = timeout(limit, all).await;
        lock(&answers).take().unwrap_or_default()
    }

    /// [Refuses](SessionState::refuse) `session` if `server` has `found`, and the session's own root still differs from that.
    /// The root may have been created again since `own` was read.
    async fn compare_late(
        &self,
        session: &SessionState,
        (own_server, own): (&Target, RootState),
        (server, found): (&Target, RootState),
    ) {
        let RootState::Present(other) = found else { return };
        if !found.differs(own) {
            return;
        }
        let (own_server, own) = match self.reread_root(session).await {
            Reread::Root(server, root) => (server, root),
            Reread::Failed => (own_server.clone(), own),
            Reread::Over => return,
        };
        if matches!(own, RootState::Present(_)) && found.differs(own) {
            self.identity.record_conflict(server, other);
            let text = conflict(&self.options.root, (&own_server, own), (server, found));
            warn!(session = %session.session.id(), "the session ends: {text}");
            session.refuse(session_gone(text));
        }
    }

    /// Reads the root once more at the server that `session` is connected to, as a quorum has it.
    async fn reread_root(&self, session: &SessionState) -> Reread {
        for _ in 0..ATTEMPTS {
            let Ok(connection) = session.connection().await else { return Reread::Over };
            let read = async {
                connection.barrier(&self.options.barrier_path).await?;
                connection.stat(&self.options.root).await
            };
            match read.await {
                Ok(root) => return Reread::Root(connection.target.clone(), root.into()),
                Err(error) => debug!(%error, "cannot read the root again"),
            }
            sleep(REREAD_DELAY).await;
        }
        Reread::Failed
    }

    /// What `server` has at the root's path, read over a session of its own; `None` if it does not answer.
    async fn ask_server(&self, server: &Target) -> Option<RootState> {
        let connection = Connection::open(&self.options, server, READER_TTL, None).await.ok()?;
        let found = self.read_root(&connection).await;
        tokio::spawn(async move { connection.close_session().await });
        found.ok()
    }
}

/// The outcome of reading a session's own root once more.
enum Reread {
    /// A server, and what it has.
    Root(Target, RootState),
    Failed,
    /// The session has ended.
    Over,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

    use tokio::task::yield_now;

    use super::*;
    use crate::transport::scripted_server::{Answer, Request, ScriptedServer};

    const TTL: Duration = Duration::from_secs(10);
    /// More than [`ANSWER_TIMEOUT`].
    const LATE: Duration = Duration::from_millis(1_500);

    /// The session's own server, with the root that the transaction `czxid` has created; and another one.
    struct Setup {
        own: ScriptedServer,
        czxid: Arc<AtomicI64>,
        reads: Arc<AtomicUsize>,
        other: ScriptedServer,
        /// How long the other server waits before it answers what it has, and that.
        answer: Arc<Mutex<(Duration, Answer)>>,
        closed: Arc<AtomicUsize>,
        ensemble: Arc<Ensemble>,
    }

    fn session_answer(request: Request) -> Answer {
        match request {
            Request::Connect { .. } => Answer::Session(7),
            Request::Sync => Answer::ok(&[0, 0, 0, 1, b'/']),
            Request::Delete(_) => Answer::no_node(),
            _ => Answer::ok(&[]),
        }
    }

    impl Setup {
        async fn new(answer: (Duration, Answer)) -> Self {
            let (czxid, reads) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicUsize::new(0)));
            let (answer, closed) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
            let (own_czxid, own_reads) = (Arc::clone(&czxid), Arc::clone(&reads));
            let own = ScriptedServer::start(move |request| {
                let answer = match request {
                    Request::Exists(_) => {
                        own_reads.fetch_add(1, SeqCst);
                        Answer::stat(own_czxid.load(SeqCst), 0)
                    }
                    request => session_answer(request),
                };
                Box::pin(async { answer })
            })
            .await;
            let (other_answer, other_closed) = (Arc::clone(&answer), Arc::clone(&closed));
            let other = ScriptedServer::start(move |request| {
                if request == Request::CloseSession {
                    other_closed.fetch_add(1, SeqCst);
                }
                let (delay, answer) = match request {
                    Request::Exists(_) => lock(&other_answer).clone(),
                    request => (Duration::ZERO, session_answer(request)),
                };
                Box::pin(async move {
                    sleep(delay).await;
                    answer
                })
            })
            .await;
            let servers = [&own, &other].map(|server| server.address().to_owned()).to_vec();
            let ensemble = Arc::new(Ensemble::new(ConnectOptions::for_tests(TTL), servers));
            Self { own, czxid, reads, other, answer, closed, ensemble }
        }

        async fn has_conflict(&self) -> bool {
            self.ensemble.identity.has_conflict(&self.ensemble.servers.in_order().await)
        }

        /// A session at the own server, and the outcome of the check.
        async fn check(&self) -> (ResumableSession, Result<(), BackendError>) {
            let own = Arc::new(Servers::new(vec![self.own.address().to_owned()], false));
            let session = ResumableSession::open(Arc::clone(&self.ensemble.options), own, TTL).await.unwrap();
            let checked = self.ensemble.check(&session, false).await;
            (session, checked)
        }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let holds = async {
            while !condition() {
                yield_now().await;
            }
        };
        timeout(TTL, holds).await.expect(what);
    }

    /// Hazard G34: a server of another ensemble that always answers late ends one session, and no second one is used.
    #[tokio::test]
    async fn a_server_that_always_answers_late_is_remembered() {
        let setup = Setup::new((LATE, Answer::stat(2, 0))).await;
        let (session, checked) = setup.check().await;
        checked.unwrap();
        until("the session ends", || session.is_over()).await;
        let refused = setup.check().await.1.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Invalid, "{refused}");
        *lock(&setup.answer) = (Duration::ZERO, Answer::Disconnect);
        let silent = setup.check().await.1.unwrap_err();
        assert_eq!(silent.kind(), BackendErrorKind::Unavailable, "{silent}");
        *lock(&setup.answer) = (LATE, Answer::stat(1, 0));
        setup.check().await.1.unwrap();
        assert!(!setup.has_conflict().await);
    }

    /// Hazard G34: the addresses of one name are compared, too, since sessions go to each of them.
    #[tokio::test]
    async fn the_addresses_of_a_name_are_compared() {
        let setup = Setup::new((Duration::ZERO, Answer::stat(2, 0))).await;
        let [own, other] = [&setup.own, &setup.other].map(|server| server.address().parse().unwrap());
        let options = Arc::clone(&setup.ensemble.options);
        let named = |addresses| Arc::new(Servers::with_addresses("zoo:2181", addresses));
        let session = ResumableSession::open(Arc::clone(&options), named(vec![own]), TTL).await.unwrap();
        let both =
            Ensemble { options, servers: named(vec![own, other]), identity: EnsembleIdentity::default() };
        let refused = Arc::new(both).check(&session, false).await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Invalid, "{refused}");
    }

    /// Hazard G34: a late answer ends no session whose own root was created again and is the same by now, nor does a late answer
    /// that there is no root.
    #[tokio::test]
    async fn a_late_answer_is_compared_with_the_present_root() {
        let setup = Setup::new((LATE, Answer::stat(2, 0))).await;
        let (session, checked) = setup.check().await;
        checked.unwrap();
        setup.czxid.store(2, SeqCst);
        until("the root is read again", || setup.reads.load(SeqCst) == 2).await;
        *lock(&setup.answer) = (LATE, Answer::no_node());
        let (second, checked) = setup.check().await;
        checked.unwrap();
        until("both have answered", || setup.closed.load(SeqCst) == 2).await;
        assert!(!session.is_over() && !second.is_over());
        assert!(!setup.has_conflict().await);
    }
}
