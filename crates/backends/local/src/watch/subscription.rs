//! A waiter's subscription to the events of one directory.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

#[cfg(target_os = "linux")]
use super::inotify::{WatchGuard, Watcher};
use super::listener::{EventFilter, Listener};
#[cfg(not(target_os = "linux"))]
use super::polling::{WatchGuard, Watcher};

/// Why a waiter woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WakeReason {
    /// No event came in time.
    Timeout,
    /// A file changed.
    Change,
    /// A file was closed. Its lock may be released a moment later.
    FileClosed,
}

/// What a subscription watches at present.
#[derive(Debug)]
#[expect(dead_code, reason = "the guards end the watches when they are dropped")]
enum WatchTarget {
    /// The directory.
    Directory(WatchGuard),
    /// The parent of the directory, which does not exist yet.
    Parent(WatchGuard),
    /// Nothing: neither directory exists.
    Missing,
    /// Nothing: the kernel does not report changes, and the waiter has to poll.
    Polling,
}

/// A subscription to the events of one directory, which may not exist yet.
#[derive(Debug)]
pub(crate) struct Subscription {
    watcher: Watcher,
    dir: PathBuf,
    listener: Arc<Listener>,
    target: WatchTarget,
}

impl Subscription {
    /// A subscription to `dir`. It receives no events before [`ensure_watching`](Self::ensure_watching) is called.
    pub(crate) fn new(watcher: &Watcher, dir: PathBuf) -> Self {
        let listener = Arc::new(Listener::new());
        Self { watcher: watcher.clone(), dir, listener, target: WatchTarget::Missing }
    }

    /// Watches the directory if that is possible now. Must be called before each check of the directory.
    pub(crate) fn ensure_watching(&mut self) {
        let stale = self.listener.take_stale();
        if matches!(self.target, WatchTarget::Directory(_)) && !stale {
            return;
        }
        if stale {
            self.target = WatchTarget::Missing;
        }
        if self.watch_dir() {
            return;
        }
        if matches!(self.target, WatchTarget::Missing)
            && let (Some(parent), Some(name)) = (self.dir.parent(), self.dir.file_name())
            && let Some(name) = name.to_str()
            && let Ok(guard) = self.watcher.add(parent, &self.listener, Some(name))
        {
            self.target = WatchTarget::Parent(guard);
            // The directory may have been created before its parent was watched.
            self.watch_dir();
        }
    }

    /// Watches the directory itself. Returns whether nothing else is left to try.
    fn watch_dir(&mut self) -> bool {
        match self.watcher.add(&self.dir, &self.listener, None) {
            Ok(guard) => self.target = WatchTarget::Directory(guard),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => {
                if !matches!(self.target, WatchTarget::Polling) {
                    tracing::warn!(%error, dir = %self.dir.display(), "cannot watch the election; polling instead");
                }
                self.target = WatchTarget::Polling;
            }
        }
        true
    }

    /// Changes which events wake the waiter. An earlier event that has already woken it is not lost.
    pub(crate) fn set_filter(&self, filter: EventFilter) {
        *self.listener.filter() = filter;
    }

    /// Whether the kernel reports no changes, so that the waiter has to check often.
    pub(crate) fn is_polling(&self) -> bool {
        matches!(self.target, WatchTarget::Polling)
    }

    /// Waits for an event since the last call, for at most `timeout`.
    pub(crate) async fn wait(&self, timeout: Duration) -> WakeReason {
        if tokio::time::timeout(timeout, self.listener.notified()).await.is_err() {
            WakeReason::Timeout
        } else if self.listener.take_file_closed() {
            WakeReason::FileClosed
        } else {
            WakeReason::Change
        }
    }
}
