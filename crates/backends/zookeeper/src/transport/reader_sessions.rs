//! Sessions to read over: an elector's session if there is one, otherwise a session opened to read.

use std::sync::{Arc, Mutex, Weak};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, join_all},
};
use tenure_core::spi::{BackendError, BackendErrorKind};

use super::{
    connect_options::READER_TTL, connection::Connection, ensemble::Ensemble, error::unavailable, lock,
    resumable_session::ResumableSession,
};

/// A read session that is being opened. A task of its own opens it for all callers: none of them has to be polled for
/// the others.
type Opening = Shared<BoxFuture<'static, Result<Arc<ResumableSession>, BackendError>>>;

/// The sessions of one backend that reads may use.
#[derive(Debug)]
pub(crate) struct ReaderSessions {
    ensemble: Arc<Ensemble>,
    elector_sessions: Mutex<Vec<Weak<ResumableSession>>>,
    /// The session opened to read, used while there is no elector's session.
    reader: Mutex<Option<Opening>>,
    /// All sessions opened to read. An observer may still use one when an elector's session exists.
    readers: Mutex<Vec<Weak<ResumableSession>>>,
}

impl ReaderSessions {
    pub(crate) fn new(ensemble: Arc<Ensemble>) -> Self {
        Self {
            ensemble,
            elector_sessions: Mutex::default(),
            reader: Mutex::default(),
            readers: Mutex::default(),
        }
    }

    /// Lets reads use an elector's session.
    pub(crate) fn share(&self, session: &Arc<ResumableSession>) {
        remember(&self.elector_sessions, session);
    }

    /// A session to read over: the newest of the electors' if there is one.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<Arc<ResumableSession>, BackendError> {
        let shared = lock(&self.elector_sessions)
            .iter()
            .rev()
            .filter_map(Weak::upgrade)
            .find(|session| !session.is_over());
        if let Some(session) = shared {
            // Callers that read over the other session keep it alive.
            *lock(&self.reader) = None;
            return Ok(session);
        }
        let opening = {
            let mut reader = lock(&self.reader);
            let usable = reader.take().filter(|opening| match opening.peek() {
                None => true,
                Some(opened) => opened.as_ref().is_ok_and(|session| !session.is_over()),
            });
            reader.insert(usable.unwrap_or_else(|| self.open_reader())).clone()
        };
        opening.await
    }

    fn open_reader(self: &Arc<Self>) -> Opening {
        let this = Arc::clone(self);
        let opened = tokio::spawn(async move {
            let (options, servers) = (Arc::clone(&this.ensemble.options), Arc::clone(&this.ensemble.servers));
            let session = Arc::new(ResumableSession::open(options, servers, READER_TTL).await?);
            session.mark_without_entries();
            remember(&this.readers, &session);
            this.ensemble.check(&session, false).await?;
            Ok(session)
        });
        let opened = opened.map(|opened| {
            opened.unwrap_or_else(|error| Err(unavailable(format!("opening a session to read: {error}"))))
        });
        opened.boxed().shared()
    }

    /// Closes the sessions opened to read.
    pub(crate) async fn close(&self) {
        // A session that is still being opened ends as soon as it is open: nothing references it.
        drop(lock(&self.reader).take());
        let readers = std::mem::take(&mut *lock(&self.readers));
        join_all(readers.iter().filter_map(Weak::upgrade).map(|reader| async move { reader.close().await }))
            .await;
    }
}

/// The current connection of a session that is used to read; see [`reader_error`].
pub(crate) async fn reader_connection(session: &ResumableSession) -> Result<Arc<Connection>, BackendError> {
    session.connection().await.map_err(reader_error)
}

/// The error of a read. The end of the session that it used is not the end of the caller's session: the read can be
/// repeated over another one.
pub(crate) fn reader_error(error: BackendError) -> BackendError {
    match error.kind() {
        BackendErrorKind::SessionGone => unavailable(error.to_string()),
        _ => error,
    }
}

/// Adds a session, and removes those that were dropped.
fn remember(sessions: &Mutex<Vec<Weak<ResumableSession>>>, session: &Arc<ResumableSession>) {
    let mut sessions = lock(sessions);
    sessions.retain(|session| session.strong_count() > 0);
    sessions.push(Arc::downgrade(session));
}
