//! What a backend and its sessions share.

use crate::{blocking_pool::BlockingPool, layout::Layout, watch::Watcher};

/// The directory of a backend, the threads that access it, and the watcher of its files.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) layout: Layout,
    pub(crate) blocking_pool: BlockingPool,
    pub(crate) watcher: Watcher,
}

impl Store {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, blocking_pool: BlockingPool::new(), watcher: Watcher::default() }
    }
}
