//! All watches of a backend, on one stream.
//!
//! A waiting candidate subscribes to the *deletion* of entries. All of these subscriptions are served by one watch of
//! the deletions below the prefix, the [`informer`]. A leader, which may be asked to
//! resign, and an observer each open a watch of *changes*, of a key or of a prefix. [`stream`] runs both kinds on one gRPC stream.
//!
//! A subscription only says "read again", with one exception: the informer reports deletions completely and in order,
//! so that a candidate whose only predecessor was deleted, and whose own entry was not, leads without a read. When the
//! stream ends, for whatever reason, all subscriptions are lost, and their owners read and subscribe again. So a
//! compaction, a lost connection, and a frozen or partitioned member are all the same case.

pub(crate) mod informer;
pub(crate) mod stream;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicI64, AtomicU8, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tenure_core::internal::lock;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use crate::transport::{
    members::Members,
    watch::{
        informer::WatchedKeys,
        stream::{Command, FIRST_ID, IDS_PER_SUBSCRIPTION},
    },
};

/// The share of a reread interval that each open subscription costs: at most about five reads per second in one
/// process.
const REREAD_INTERVAL_PER_SUBSCRIPTION: Duration = Duration::from_millis(200);

/// The subscription is not served any more.
const LOST: u8 = 1 << 7;
/// Something has changed, or a watch of changes is established.
const CHANGED: u8 = 1 << 6;

/// Opens subscriptions on the stream of a backend.
#[derive(Debug)]
pub(crate) struct Watcher {
    members: Arc<Members>,
    next_id: AtomicI64,
    open: Arc<AtomicUsize>,
    stream: Mutex<Option<StreamTask>>,
}

#[derive(Debug)]
struct StreamTask {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

/// What its owner waits for. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    id: i64,
    signal: Arc<Signal>,
    commands: mpsc::UnboundedSender<Command>,
    open: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Signal {
    /// One bit per deleted key, by its index, and [`LOST`] and [`CHANGED`]. Never cleared.
    flags: AtomicU8,
    notify: Notify,
}

/// The stream's end of a subscription. Dropping it reports that the subscription is lost.
#[derive(Debug)]
pub(crate) struct Notifier(Arc<Signal>);

impl Notifier {
    /// The keys with these bits were deleted. Bits of one call become visible together.
    pub(crate) fn deleted(&self, bits: u8) {
        self.set(bits);
    }

    /// Something has changed, or the watch is established.
    pub(crate) fn changed(&self) {
        self.set(CHANGED);
    }

    /// The owner has to read, and to subscribe again.
    pub(crate) fn lost(&self) {
        self.set(LOST);
    }

    fn set(&self, flags: u8) {
        self.0.flags.fetch_or(flags, SeqCst);
        self.0.notify.notify_one();
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.lost();
    }
}

impl Watcher {
    pub(crate) fn new(members: Arc<Members>) -> Self {
        let next_id = AtomicI64::new(FIRST_ID);
        Self { members, next_id, open: Arc::default(), stream: Mutex::default() }
    }

    /// Subscribes to the deletion of `keys` after the revision `after`, at which they were read.
    pub(crate) fn deletions(&self, keys: WatchedKeys, after: i64) -> Subscription {
        self.subscribe(|id, notifier| Command::Deletions { id, keys, after, notifier })
    }

    /// Subscribes to all changes of a key, or below a prefix. Reports once that it is established; what happened before has to
    /// be read then.
    pub(crate) fn changes(&self, key: Arc<str>, is_prefix: bool) -> Subscription {
        self.subscribe(|id, notifier| Command::Changes { id, key, is_prefix, notifier })
    }

    fn subscribe(&self, command: impl FnOnce(i64, Notifier) -> Command) -> Subscription {
        let id = self.next_id.fetch_add(IDS_PER_SUBSCRIPTION, Relaxed);
        let signal = Arc::new(Signal::default());
        let commands = self.commands();
        // If the task has ended, the notifier is dropped with the command, which reports a lost subscription.
        let _ = commands.send(command(id, Notifier(Arc::clone(&signal))));
        self.open.fetch_add(1, Relaxed);
        Subscription { id, signal, commands, open: Arc::clone(&self.open) }
    }

    /// How long to wait for a signal before reading again without one.
    ///
    /// etcd can lose an event around a compaction (issue 18089). A lost stream is noticed otherwise, so these reads
    /// can be rare, and the interval grows with the number of subscriptions.
    pub(crate) fn reread_interval(&self, min: Duration) -> Duration {
        let count = u32::try_from(self.open.load(Relaxed)).unwrap_or(u32::MAX);
        let base = min.max(REREAD_INTERVAL_PER_SUBSCRIPTION.saturating_mul(count));
        base.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Ends the stream and its task. Later subscriptions start a new one.
    pub(crate) fn close(&self) {
        if let Some(stream) = lock(&self.stream).take() {
            stream.task.abort();
        }
    }

    fn commands(&self) -> mpsc::UnboundedSender<Command> {
        let mut stream = lock(&self.stream);
        if let Some(StreamTask { commands, task }) = &*stream
            && !task.is_finished()
        {
            return commands.clone();
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(stream::run(Arc::clone(&self.members), receiver));
        *stream = Some(StreamTask { commands: commands.clone(), task });
        commands
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Subscription {
    /// Returns after the next change, or immediately after one since the last return.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn changed(&self) {
        self.signal.notify.notified().await;
    }

    /// Wakes the owner.
    pub(crate) fn waker(&self) -> impl FnOnce() + Send + 'static {
        let signal = Arc::clone(&self.signal);
        move || signal.notify.notify_one()
    }

    /// Whether the key with this index was deleted.
    pub(crate) fn is_deleted(&self, key: usize) -> bool {
        self.has(1 << key)
    }

    /// Whether the owner has to subscribe again.
    pub(crate) fn is_lost(&self) -> bool {
        self.has(LOST)
    }

    fn has(&self, flag: u8) -> bool {
        self.signal.flags.load(SeqCst) & flag != 0
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        let _ = self.commands.send(Command::Remove { id: self.id });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A subscription that nothing serves, and what would.
    pub(crate) fn subscription() -> (Subscription, Notifier) {
        let signal = Arc::new(Signal::default());
        let subscription = Subscription {
            id: FIRST_ID,
            signal: Arc::clone(&signal),
            commands: mpsc::unbounded_channel().0,
            open: Arc::new(AtomicUsize::new(1)),
        };
        (subscription, Notifier(signal))
    }

    #[tokio::test]
    async fn a_subscription_is_lost_once_nothing_serves_it() {
        let (subscription, notifier) = subscription();
        notifier.deleted(0b10);
        subscription.changed().await;
        assert!(subscription.is_deleted(1) && !subscription.is_deleted(0) && !subscription.is_lost());
        drop(notifier);
        subscription.changed().await;
        assert!(subscription.is_lost());
    }
}
