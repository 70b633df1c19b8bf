//! The part of a subscription that the watcher notifies.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::layout::entry_number;

/// Which events wake a waiter.
#[derive(Debug)]
pub(crate) enum EventFilter {
    /// The creation and the removal of any entry.
    AnyEntry,
    /// The removal of these files.
    Removal(Vec<String>),
    /// Every event of this file, including changes of its content.
    AllOf(String),
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileEvent {
    Created,
    Removed,
    Closed,
    Modified,
}

impl EventFilter {
    pub(super) fn matches(&self, file: &str, event: FileEvent) -> bool {
        match self {
            Self::AnyEntry => event != FileEvent::Modified && entry_number(file).is_some(),
            Self::Removal(files) => {
                matches!(event, FileEvent::Removed | FileEvent::Closed) && files.iter().any(|f| f == file)
            }
            Self::AllOf(one) => one == file,
        }
    }
}

/// Receives the events of one subscription.
#[derive(Debug)]
pub(super) struct Listener {
    filter: Mutex<EventFilter>,
    notify: Notify,
    file_closed: AtomicBool,
    /// No more events will come, because the directory or the watcher is gone.
    stale: AtomicBool,
}

impl Listener {
    pub(super) fn new() -> Self {
        Self {
            filter: Mutex::new(EventFilter::AnyEntry),
            notify: Notify::new(),
            file_closed: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        }
    }

    pub(super) fn filter(&self) -> MutexGuard<'_, EventFilter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self, event: FileEvent) {
        if event == FileEvent::Closed {
            self.file_closed.store(true, Ordering::Release);
        }
        self.notify.notify_one();
    }

    pub(super) fn mark_stale(&self) {
        self.stale.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Waits for a wake-up since the last call.
    pub(super) async fn notified(&self) {
        self.notify.notified().await;
    }

    /// Whether a file was closed since the last call.
    pub(super) fn take_file_closed(&self) -> bool {
        self.file_closed.swap(false, Ordering::AcqRel)
    }

    /// Whether the listener became stale since the last call.
    pub(super) fn take_stale(&self) -> bool {
        self.stale.swap(false, Ordering::AcqRel)
    }
}
