//! Where the kernel has no inotify: every waiter polls.

use std::{io, path::Path, sync::Arc};

use super::Listener;

#[derive(Clone, Debug, Default)]
pub(crate) struct Watcher;

#[derive(Debug)]
pub(super) struct Ticket;

impl Watcher {
    /// Whether the kernel tells of changes.
    pub(crate) fn can_watch() -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn add(&self, _: &Path, _: &Arc<Listener>, _: Option<&str>) -> io::Result<Ticket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn is_closed(&self) -> bool {
        false
    }

    pub(crate) async fn close(&self) {}
}
