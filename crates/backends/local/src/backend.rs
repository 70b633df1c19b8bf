//! The backend: a directory as a store.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use rustix::fs::{Access, AtFlags, CWD};
use tenure_core::{
    Candidate, Diagnosis, ElectionName, Error,
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Observation, SessionOptions,
    },
};
use tracing::warn;

use crate::{
    LocalConfig, candidates,
    error::{io_error, open_error},
    filesystem,
    layout::{Layout, entry_file},
    recheck::RecheckTimer,
    session::LocalSession,
    store::Store,
    watch::{EventFilter, Subscription, Watcher},
};

/// What is wrong with a directory that every user can write to.
const WORLD_WRITABLE: &str = "every user of this machine can write to this directory, and so can enter its elections, delete \
                              entries and end leaderships";
const WORLD_WRITABLE_ADVICE: &str =
    "remove that permission (chmod o-w), or use a directory that only this user can write to";

/// Elections among the processes of this machine, stored in a directory.
///
/// The [crate documentation](crate) lists the guarantees and the assumptions.
#[derive(Debug)]
pub struct LocalBackend {
    store: Arc<Store>,
}

impl LocalBackend {
    /// Opens the directory `dir`, and creates it with access for its owner only if it does not exist.
    ///
    /// A relative path is resolved against the current directory at the time of the call. This function accesses the
    /// disk for a short time without leaving the runtime's thread; call it when a program starts.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] if the directory cannot be created or written to. [`Error::Refused`] if the path is not a
    /// directory, or is on a network file system or FUSE.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let root = std::path::absolute(dir).map_err(|e| open_error("use the directory", dir, &e))?;
        let layout = Layout::new(root);
        layout.create_dirs().map_err(|e| open_error("create the directory", layout.root(), &e))?;
        for dir in [layout.elections(), layout.tokens()] {
            rustix::fs::accessat(
                CWD,
                &dir,
                Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
                AtFlags::EACCESS,
            )
            .map_err(|e| open_error("write to the directory", &dir, &e.into()))?;
        }
        let unsuitable = filesystem::unsuitable_file_system(layout.root())
            .map_err(|e| open_error("use the directory", layout.root(), &e))?;
        if let Some(file_system) = unsuitable {
            let message = format!(
                "cannot use the directory {}: its file system is {file_system}, whose locks need not reach other \
                 mounts or end with the process; use a directory on a disk of this machine (in a container: a volume)",
                layout.root().display()
            );
            return Err(BackendError::new(BackendErrorKind::Invalid, message).into());
        }
        let world_writable =
            layout.world_writable_dir().map_err(|e| open_error("use the directory", layout.root(), &e))?;
        if let Some(directory) = world_writable {
            warn!(directory = %directory.display(), "{WORLD_WRITABLE}; {WORLD_WRITABLE_ADVICE}");
        }
        Ok(Self { store: Arc::new(Store::new(layout)) })
    }

    /// Opens the directory that `config` names, as [`open`](Self::open) does.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn from_config(config: &LocalConfig) -> Result<Self, Error> {
        Self::open(config.dir())
    }

    /// The directory, as an absolute path.
    pub fn dir(&self) -> &Path {
        self.store.layout.root()
    }
}

impl LocalBackend {
    fn diagnose_directory(&self) -> Diagnosis {
        if let Ok(Some(dir)) = self.store.layout.world_writable_dir() {
            let problem = format!("{}: {WORLD_WRITABLE}", dir.display());
            return Diagnosis::warning("directory", problem, WORLD_WRITABLE_ADVICE);
        }
        let directory = self.dir().display();
        Diagnosis::good(
            "directory",
            format!("{directory} is on no file system whose locks are known to be unsuitable"),
        )
    }

    /// How soon a waiting candidate notices that another candidate has left.
    fn diagnose_watching(&self) -> Diagnosis {
        match Watcher::can_watch() {
            Ok(true) => Diagnosis::good(
                "watching",
                "inotify works: waiting candidates notice at once that a leader has left",
            ),
            Ok(false) => Diagnosis::warning(
                "watching",
                "this system has no inotify: waiting candidates poll, and notice later that a leader has left",
                "use another store if a fast takeover is important",
            ),
            Err(error) => Diagnosis::warning(
                "watching",
                format!(
                    "cannot create an inotify instance ({error}): waiting candidates poll, and notice later that a \
                     leader has left"
                ),
                "raise fs.inotify.max_user_instances (sysctl), or end programs of this user that use inotify",
            ),
        }
    }
}

#[async_trait]
impl Backend for LocalBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE.expiring(false)
    }

    fn store_name(&self) -> String {
        format!("local:{}", self.dir().display())
    }

    /// Opens a session. A session is only an id; the kernel keeps the locks of its entries.
    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(LocalSession::new(Arc::clone(&self.store), options.ttl)))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let dir = self.store.layout.election(election);
        let read = move || candidates::candidates(&dir).map_err(|e| io_error("read", &dir, &e));
        self.store.blocking_pool.run(read).await
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        let dir = self.store.layout.election(election);
        let read = move || candidates::leader(&dir).map_err(|e| io_error("read", &dir, &e));
        Ok(self.store.blocking_pool.run(read).await?.map(|(_, candidate)| candidate))
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        let dir = self.store.layout.elections();
        let read = move || candidates::elections(&dir).map_err(|e| io_error("read", &dir, &e));
        self.store.blocking_pool.run(read).await
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        let dir = self.store.layout.election(election);
        let request = move || candidates::request_resign(&dir).map_err(|e| io_error("write to", &dir, &e));
        self.store.blocking_pool.run(request).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let (blocking_pool, watcher) = (self.store.blocking_pool.clone(), self.store.watcher.clone());
        let dir = self.store.layout.election(election);
        Ok(Box::pin(async_stream::try_stream! {
            let mut subscription = Subscription::new(&watcher, dir.clone());
            let mut recheck = RecheckTimer::new();
            let mut yielded = None;
            loop {
                let dir = dir.clone();
                let read = blocking_pool.run(move || {
                    subscription.ensure_watching();
                    let leader = candidates::leader(&dir).map_err(|e| io_error("read", &dir, &e))?;
                    Ok((subscription, leader))
                });
                let (returned_subscription, leader) = read.await?;
                subscription = returned_subscription;
                // While there is a leader, only events of its entry can change who leads: a new candidate has a higher
                // number.
                subscription.set_filter(match &leader {
                    Some((number, _)) => EventFilter::AllOf(entry_file(*number)),
                    None => EventFilter::AnyEntry,
                });
                let leader = leader.map(|(_, candidate)| candidate);
                let without_age = leader.clone().map(|mut candidate| {
                    candidate.age = None;
                    candidate
                });
                if yielded.as_ref() != Some(&without_age) {
                    yielded = Some(without_age);
                    yield leader;
                }
                recheck.wait(&subscription).await;
                if watcher.is_closed() {
                    Err(BackendError::new(BackendErrorKind::Unavailable, "the backend has been closed"))?;
                }
            }
        }))
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        vec![self.diagnose_directory(), self.diagnose_watching()]
    }

    async fn close(&self) {
        self.store.watcher.close().await;
    }
}
