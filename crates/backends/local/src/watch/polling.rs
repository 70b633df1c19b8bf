//! The watcher for systems without inotify: it reports nothing, and every waiter polls.

use std::{io, path::Path, sync::Arc};

use super::listener::Listener;

#[derive(Clone, Debug, Default)]
pub(crate) struct Watcher;

#[derive(Debug)]
pub(super) struct WatchGuard;

impl Watcher {
    /// Whether the kernel reports changes.
    pub(crate) fn can_watch() -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn add(&self, _: &Path, _: &Arc<Listener>, _: Option<&str>) -> io::Result<WatchGuard> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn is_closed(&self) -> bool {
        false
    }

    pub(crate) async fn close(&self) {}
}
