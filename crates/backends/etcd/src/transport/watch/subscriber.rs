//! Who is notified of a watch, and how.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool,
        Ordering::{Relaxed, SeqCst},
    },
};

use tokio::sync::{Notify, mpsc};

#[cfg(doc)]
use crate::transport::watch::target::START_NOW;

/// The state of a waiter's watches. Every change of it means "read again".
#[derive(Debug, Default)]
pub(crate) struct WatchSignal {
    notify: Notify,
    is_closed: AtomicBool,
    started_late: AtomicBool,
    became_leader: AtomicBool,
    can_delay: AtomicBool,
    /// Whether a watch that started at [`START_NOW`] is established, and whether a read followed.
    is_established: AtomicBool,
    has_read_since: AtomicBool,
}

impl WatchSignal {
    /// The watch that started at [`START_NOW`] is established and stays open. What happened before has to be read.
    pub(crate) fn established(&self) {
        self.is_established.store(true, SeqCst);
        self.notify.notify_one();
    }

    /// The watch is closed.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Relaxed);
        self.notify.notify_one();
    }

    /// One watch is closed, and reading again may be delayed. Other watches of this signal stay open.
    pub(crate) fn read_again_later(&self) {
        self.can_delay.store(true, Relaxed);
        self.notify.notify_one();
    }

    /// The only candidate ahead has left. The watch is closed.
    pub(crate) fn became_leader(&self) {
        self.became_leader.store(true, Relaxed);
        self.close();
    }

    /// The watch is closed, because its start revision was already in the past.
    pub(crate) fn close_late(&self) {
        self.started_late.store(true, Relaxed);
        self.close();
    }

    /// Returns after the next change, or immediately after one since the last return.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.became_leader.load(Relaxed)
    }

    pub(crate) fn started_late(&self) -> bool {
        self.started_late.load(Relaxed)
    }

    /// Whether the next read may be delayed.
    pub(crate) fn can_delay(&self) -> bool {
        self.can_delay.load(Relaxed) && !self.is_closed()
    }

    pub(crate) fn is_established(&self) -> bool {
        self.is_established.load(SeqCst)
    }

    /// Records that a read followed after a watch that started at [`START_NOW`] was established.
    pub(crate) fn record_read(&self) {
        self.has_read_since.store(true, SeqCst);
    }
}

/// Who is notified of a watch.
#[derive(Debug)]
pub(crate) enum Subscriber {
    /// A task that waits for a signal.
    Waiter(Arc<WatchSignal>),
    /// The owner of many watches. Dropping the notifier reports that the watch is closed.
    Notifier(Notifier),
}

/// Sends the updates of one watch to the owner of many.
#[derive(Debug)]
pub(crate) struct Notifier {
    number: u64,
    updates: mpsc::UnboundedSender<WatchUpdate>,
}

/// An update of the watch with this number: read again.
#[derive(Debug)]
pub(crate) struct WatchUpdate {
    pub(crate) number: u64,
    /// Whether the watch is established; otherwise it is closed.
    pub(crate) is_established: bool,
}

impl Notifier {
    pub(crate) fn new(number: u64, updates: mpsc::UnboundedSender<WatchUpdate>) -> Self {
        Self { number, updates }
    }

    fn notify(&self, is_established: bool) {
        let _ = self.updates.send(WatchUpdate { number: self.number, is_established });
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.notify(false);
    }
}

impl Subscriber {
    /// The watch that started at [`START_NOW`] is established.
    pub(crate) fn established(&self) {
        match self {
            Self::Waiter(signal) => signal.established(),
            Self::Notifier(notifier) => notifier.notify(true),
        }
    }

    /// The watch is closed. A notifier reports this when it is dropped.
    pub(crate) fn close(&self) {
        self.signal(WatchSignal::close);
    }

    /// Applies `change` to the signal of a waiter. A notifier reports only that the watch is closed.
    pub(crate) fn signal(&self, change: impl FnOnce(&WatchSignal)) {
        if let Self::Waiter(signal) = self {
            change(signal);
        }
    }

    /// Whether a read followed after a watch that started at [`START_NOW`] was established.
    pub(crate) fn has_read_since(&self) -> bool {
        matches!(self, Self::Waiter(signal) if signal.has_read_since.load(SeqCst))
    }
}
