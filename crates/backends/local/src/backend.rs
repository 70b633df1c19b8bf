//! The directory as a store.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustix::fs::{Access, AtFlags, CWD};
use tenure_core::{
    Candidate, Diagnosis, ElectionName, Error,
    spi::{Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Observation},
};
use tracing::warn;

use crate::{
    LocalConfig,
    fault::{fault, unusable},
    filesystem,
    jobs::Jobs,
    layout::Layout,
    pace::Pace,
    session::LocalSession,
    view,
    watch::{Interest, Subscription, Watcher},
};

/// What is wrong with a directory that everybody may change, and what to do.
const OPEN: &str = "everybody on this machine may write to this directory, and so stand in its elections, delete its entries and end \
                    leaderships";
const CLOSE: &str = "take that away (chmod o-w), or use a directory that is this user's alone";

/// Elections among the processes of this machine, kept in a directory.
///
/// The [crate's documentation](crate) says what is guaranteed, and on what assumptions.
#[derive(Debug)]
pub struct LocalBackend {
    store: Arc<Store>,
}

/// What the backend and its sessions share.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) layout: Layout,
    pub(crate) jobs: Jobs,
    pub(crate) watcher: Watcher,
}

impl LocalBackend {
    /// Uses the directory `dir`, which is made (for its owner alone) when it does not exist.
    ///
    /// A relative path is taken from the current directory of this moment. Touches the
    /// disk, shortly: it is meant to be called when a program starts.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when the directory cannot be made or written to, and
    /// [`Error::Refused`] when it cannot be used as such: the path is no directory, or
    /// lies on a network file system.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let root = std::path::absolute(dir).map_err(|e| unusable("use the directory", dir, e))?;
        let layout = Layout::new(root);
        layout.make().map_err(|e| unusable("make the directory", layout.root(), e))?;
        for dir in [layout.elections(), layout.tokens()] {
            rustix::fs::accessat(
                CWD,
                &dir,
                Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
                AtFlags::EACCESS,
            )
            .map_err(|e| unusable("write to the directory", &dir, e.into()))?;
        }
        let network = filesystem::network(layout.root())
            .map_err(|e| unusable("use the directory", layout.root(), e))?;
        if let Some(network) = network {
            let message = format!(
                "cannot use the directory {}: it is on a network file system ({network}), whose locks do not \
                 end with the process; allowed are local file systems",
                layout.root().display()
            );
            return Err(BackendError::new(BackendErrorKind::Invalid, message).into());
        }
        let everybodys = layout.everybodys().map_err(|e| unusable("use the directory", layout.root(), e))?;
        if let Some(directory) = everybodys {
            warn!(directory = %directory.display(), "{OPEN}; {CLOSE}");
        }
        Ok(Self { store: Arc::new(Store { layout, jobs: Jobs::new(), watcher: Watcher::default() }) })
    }

    /// Uses the directory that `config` names; see [`open`](Self::open).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_config(config: &LocalConfig) -> Result<Self, Error> {
        Self::open(config.dir())
    }

    /// The directory, as an absolute path.
    pub fn dir(&self) -> &Path {
        self.store.layout.root()
    }
}

impl LocalBackend {
    fn directory(&self) -> Diagnosis {
        if let Ok(Some(open)) = self.store.layout.everybodys() {
            return Diagnosis::warning("directory", format!("{}: {OPEN}", open.display()), CLOSE);
        }
        let directory = self.dir().display();
        Diagnosis::good("directory", format!("{directory}, which is on no network file system that is known"))
    }

    /// How quickly a departure is noticed.
    fn watching(&self) -> Diagnosis {
        match Watcher::can_watch() {
            Ok(true) => Diagnosis::good("watching", "by inotify: a departure is noticed at once"),
            Ok(false) => Diagnosis::warning(
                "watching",
                "this system has no inotify: departures are looked for, and noticed later",
                "use another store where a quick fail-over matters",
            ),
            Err(error) => Diagnosis::warning(
                "watching",
                format!(
                    "no inotify instance can be had ({error}): departures are looked for, and noticed later"
                ),
                "raise fs.inotify.max_user_instances (sysctl), or end programs of this user that hold some",
            ),
        }
    }
}

#[async_trait]
impl Backend for LocalBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE.expiring(false)
    }

    /// Opens a session. It is a name only; the kernel knows it by its entries' locks.
    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(LocalSession::new(Arc::clone(&self.store), ttl)))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        let dir = self.store.layout.election(election);
        self.store.jobs.run(move || view::candidates(&dir).map_err(|e| fault("read", &dir, e))).await
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        let dir = self.store.layout.election(election);
        let leader = move || view::leader(&dir).map_err(|e| fault("read", &dir, e));
        Ok(self.store.jobs.run(leader).await?.map(|(_, candidate)| candidate))
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        let dir = self.store.layout.election(election);
        self.store.jobs.run(move || view::request_resign(&dir).map_err(|e| fault("write to", &dir, e))).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let (jobs, watcher) = (self.store.jobs.clone(), self.store.watcher.clone());
        let dir = self.store.layout.election(election);
        Ok(Box::pin(async_stream::try_stream! {
            let mut subscription = Subscription::new(&watcher, dir.clone());
            let mut pace = Pace::new();
            let mut shown = None;
            loop {
                let dir = dir.clone();
                let look = jobs.run(move || {
                    subscription.renew();
                    let leader = view::leader(&dir).map_err(|e| fault("read", &dir, e))?;
                    Ok((subscription, leader))
                });
                let (renewed, leader) = look.await?;
                subscription = renewed;
                // A newcomer's number is higher than the leader's, so that only what
                // happens to the leader's own entry can change anything.
                subscription.narrow(match &leader {
                    Some((number, _)) => Interest::All(crate::layout::entry_file(*number)),
                    None => Interest::Any,
                });
                let leader = leader.map(|(_, candidate)| candidate);
                let ageless = leader.clone().map(|mut candidate| {
                    candidate.age = None;
                    candidate
                });
                if shown.as_ref() != Some(&ageless) {
                    shown = Some(ageless);
                    yield leader;
                }
                pace.wait(&subscription).await;
                if watcher.is_closed() {
                    Err(BackendError::new(BackendErrorKind::Unavailable, "the backend has been closed"))?;
                }
            }
        }))
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        vec![self.directory(), self.watching()]
    }

    async fn close(&self) {
        self.store.watcher.close().await;
    }
}
