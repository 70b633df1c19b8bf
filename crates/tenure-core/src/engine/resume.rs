//! Ends the sessions of an earlier process, and saves those of this one for the next. Saves the highest fencing tokens, too.
//!
//! The engine calls this at three places: before the first session is opened ([`Resume::end_earlier_sessions`]), after a session
//! was opened and before it has an entry ([`Resume::save`]), and after a session was closed ([`Resume::forget`]); and some time
//! after tokens were seen ([`Resume::save_tokens`]).

use std::{
    path::Path,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use tokio::{sync::Mutex, task::spawn_blocking};
use tracing::{info, warn};

use super::{
    rules::token_marks::TokenMarks,
    runtime::retry::{Retry, with_timeout},
};
use crate::{
    Config, Error, InvalidConfig,
    resume::{Contents, Durability, EarlierContents, ResumeFile},
    spi::{Backend, BackendError, BackendErrorKind, BackendSession, SessionRecord},
    sync::timeout,
};

/// How many tokens are kept.
const MAX_TOKENS: usize = 256;

/// Ends one session. Retries for the request timeout at most.
pub(super) async fn end(
    backend: &dyn Backend,
    record: &SessionRecord,
    config: &Config,
) -> Result<(), BackendError> {
    let limit = config.request_timeout;
    let mut retry = Retry::new(config.retry);
    let mut last = None;
    let attempts = async {
        loop {
            match backend.end_session(record).await {
                Err(error) if error.kind() == BackendErrorKind::SessionGone => return Ok(()),
                Err(error) if !error.is_permanent() => last = Some(error),
                outcome => return outcome,
            }
            retry.pause().await;
        }
    };
    match timeout(limit, attempts).await {
        Ok(outcome) => outcome,
        Err(_) => Err(last.unwrap_or_else(|| {
            let text = format!("no answer within {}", humantime::format_duration(limit));
            BackendError::new(BackendErrorKind::Unavailable, text)
        })),
    }
}

/// The resume file of an elector, which is locked until this is dropped.
#[derive(Debug)]
pub(crate) struct Resume {
    file: Arc<ResumeFile>,
    /// As in [`ElectorContext`](super::elector_context::ElectorContext).
    nonce: u64,
    sessions: Mutex<Sessions>,
    /// The elector's marks, of which the highest are kept.
    token_marks: Arc<std::sync::Mutex<TokenMarks>>,
    /// Whether [`save_tokens`](Self::save_tokens) is about to be called.
    are_tokens_pending: AtomicBool,
    /// Held while the file is written, also by a write that nobody waits for any more: the last contents win.
    writing: Arc<Mutex<()>>,
    /// Whether the last write has failed or was not done in time.
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Sessions {
    /// Those of earlier processes that are not known to have ended. They are ended before the first session is opened.
    earlier: Vec<SessionRecord>,
    are_earlier_handled: bool,
    /// This elector's own that were not closed yet.
    own: Vec<SessionRecord>,
}

impl Resume {
    /// Locks and reads the resume file at `path`.
    ///
    /// # Errors
    /// [`InvalidConfig::ResumeFile`] when the file cannot be used, or not with this store.
    pub(super) fn open(backend: &dyn Backend, path: &Path, nonce: u64) -> Result<Self, Error> {
        let refused = |problem: String| InvalidConfig::ResumeFile { path: path.to_owned(), problem };
        let capabilities = backend.capabilities();
        if !capabilities.expiring {
            let problem = "the kernel ends a session of this store together with its process, so that nothing is left to end";
            return Err(refused(problem.to_owned()).into());
        }
        if !capabilities.ends_sessions {
            return Err(refused("this store cannot end the session of another process".to_owned()).into());
        }
        let (file, earlier) = ResumeFile::open(path).map_err(refused)?;
        let earlier = match earlier {
            EarlierContents::Valid(contents) => contents,
            EarlierContents::Ignored(reason) => {
                warn!(file = %path.display(), reason, "the resume file is ignored: sessions of an earlier process expire by themselves");
                Contents::default()
            }
        };
        Ok(Self {
            file: Arc::new(file),
            nonce,
            sessions: Mutex::new(Sessions { earlier: earlier.sessions, ..Sessions::default() }),
            token_marks: Arc::new(TokenMarks::with(earlier.tokens).into()),
            are_tokens_pending: AtomicBool::new(false),
            writing: Arc::default(),
            failed: AtomicBool::new(false),
        })
    }

    /// The elector's marks, which begin with those in the file.
    pub(super) fn token_marks(&self) -> &Arc<std::sync::Mutex<TokenMarks>> {
        &self.token_marks
    }

    /// Ends the sessions of earlier processes in the store, once. Retries for the request timeout at most, all at the same time.
    pub(crate) async fn end_earlier_sessions(&self, backend: &dyn Backend, config: &Config) {
        let mut sessions = self.sessions.lock().await;
        if std::mem::replace(&mut sessions.are_earlier_handled, true) {
            return;
        }
        let ended = sessions.earlier.iter().map(|record| async move {
            let session = &record.session;
            match end(backend, record, config).await {
                Ok(()) => info!(session, "no entry of an earlier process's session is left that can be found"),
                Err(error) if error.kind() == BackendErrorKind::Invalid => {
                    warn!(session, %error, "the session of an earlier process is ignored");
                }
                Err(error) => {
                    warn!(session, %error, "the session of an earlier process was not ended: it expires by its TTL");
                    return Some(record.clone());
                }
            }
            None
        });
        let left = join_all(ended).await;
        sessions.earlier = left.into_iter().flatten().collect();
    }

    /// Saves `session`, before it has an entry. If that fails, the next process cannot end it, and it expires by its TTL.
    ///
    /// Waits for the store for `limit` at most, and then for the disk for `limit` and for a quarter of the TTL at most: no
    /// heartbeat is sent meanwhile.
    pub(crate) async fn save(&self, session: &dyn BackendSession, limit: Duration) {
        let id = session.id();
        let cluster = match with_timeout("identifying the store", limit, session.cluster()).await {
            Ok(cluster) => cluster,
            Err(error) => {
                warn!(session = id, %error, "the session is not saved for the next process");
                return;
            }
        };
        self.sessions.lock().await.own.push(SessionRecord::new(id, cluster, self.nonce));
        self.write(Durability::Synced, limit.min(session.granted_ttl() / 4)).await;
    }

    /// Removes a session that was closed. Waits for the disk for `limit` at most.
    pub(crate) async fn forget(&self, session: &str, limit: Duration) {
        let mut sessions = self.sessions.lock().await;
        let before = sessions.own.len();
        sessions.own.retain(|record| record.session != session);
        let is_changed = sessions.own.len() < before;
        drop(sessions);
        if is_changed {
            // A session that is over can stay in the file: ending it once more has no effect.
            self.write(Durability::Unsynced, limit).await;
        }
    }

    /// Tokens are to be saved. True if nobody is about to do it: the caller then calls [`save_tokens`](Self::save_tokens), a
    /// moment later, so that thousands of tokens cost one write.
    pub(crate) fn are_tokens_to_be_saved(&self) -> bool {
        !self.are_tokens_pending.swap(true, Ordering::AcqRel)
    }

    /// Saves the tokens. Waits for the disk for `limit` at most.
    pub(crate) async fn save_tokens(&self, limit: Duration) {
        self.are_tokens_pending.store(false, Ordering::Release);
        self.write(Durability::Unsynced, limit).await;
    }

    /// Writes the file, on a thread that may block. Waits for `limit` at most; a write that has begun goes on. Warns of the
    /// first of several failures.
    async fn write(&self, durability: Durability, limit: Duration) {
        let written = timeout(limit, async {
            // A disk that stalls holds one thread, whatever the number of writes.
            let writing = Arc::clone(&self.writing).lock_owned().await;
            let sessions = self.sessions.lock().await;
            let all: Vec<_> = sessions.earlier.iter().chain(&sessions.own).cloned().collect();
            drop(sessions);
            let tokens = self.token_marks.lock().unwrap_or_else(PoisonError::into_inner).highest(MAX_TOKENS);
            let contents = Contents { sessions: all, tokens };
            let file = Arc::clone(&self.file);
            spawn_blocking(move || {
                let _writing = writing;
                file.write(contents, durability)
            })
            .await
        });
        let error = match written.await {
            Ok(Ok(Ok(()))) => return self.failed.store(false, Ordering::Relaxed),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the disk has not answered within {}", humantime::format_duration(limit)),
        };
        if !self.failed.swap(true, Ordering::Relaxed) {
            warn!(file = %self.file.path().display(), error, "the resume file was not written: the next process waits for the TTL");
        }
    }
}

#[cfg(all(test, target_os = "linux", not(tenure_loom), not(tenure_shuttle)))]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{SimClock, memory::MemoryStore, spi::SessionOptions};

    const SECOND: Duration = Duration::from_secs(1);

    /// Hazard G39: a disk that stalls delays neither a campaign nor a resignation for long, and the last contents are written.
    #[tokio::test(start_paused = true)]
    async fn a_stalled_disk_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resume");
        let backend = MemoryStore::new().backend();
        let resume = Resume::open(&backend, &path, 7).unwrap();
        let saved = || std::fs::read_to_string(&path).unwrap().matches("\nsession ").count();
        let options = SessionOptions::new(8 * SECOND, Arc::new(SimClock::new()), 0.1);
        let first = backend.open_session(&options).await.unwrap();
        let stalled = Arc::clone(&resume.writing).lock_owned().await;
        let begun = Instant::now();
        resume.save(&*first, 5 * SECOND).await;
        assert_eq!(begun.elapsed().as_secs(), 2, "a quarter of the TTL");
        resume.forget("another", SECOND).await;
        assert_eq!((begun.elapsed().as_secs(), saved()), (2, 0));
        drop(stalled);
        let second = backend.open_session(&options).await.unwrap();
        resume.save(&*second, 5 * SECOND).await;
        assert_eq!(saved(), 2);
        let stalled = Arc::clone(&resume.writing).lock_owned().await;
        resume.forget(&first.id(), SECOND).await;
        assert_eq!((begun.elapsed().as_secs(), saved()), (3, 2));
        drop(stalled);
        resume.forget(&second.id(), SECOND).await;
        assert_eq!(saved(), 0);
    }
}
