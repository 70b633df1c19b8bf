//! Opens and closes watches.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};

use crate::transport::{
    members::Members,
    watch::{
        stream::{self, Command},
        subscriber::{Notifier, Subscriber, WatchSignal},
        target::{FIRST_WATCH_ID, START_NOW, WatchTarget},
    },
};

/// The share of a reread interval that each open subscription costs: at most about five reads per second in one
/// process.
const REREAD_INTERVAL_PER_SUBSCRIPTION: Duration = Duration::from_millis(200);

/// Opens watches on the stream of a backend.
#[derive(Debug)]
pub(crate) struct Watcher {
    members: Arc<Members>,
    next_id: AtomicI64,
    subscriptions: Arc<AtomicUsize>,
    stream: Mutex<Option<StreamTask>>,
}

#[derive(Debug)]
struct StreamTask {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

/// Watches of a waiter. They are closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    signal: Arc<WatchSignal>,
    ids: Vec<i64>,
    commands: mpsc::UnboundedSender<Command>,
    subscriptions: Arc<AtomicUsize>,
}

impl Watcher {
    pub(crate) fn new(members: Arc<Members>) -> Self {
        Self {
            members,
            next_id: AtomicI64::new(FIRST_WATCH_ID),
            subscriptions: Arc::default(),
            stream: Mutex::default(),
        }
    }

    /// Watches `targets` from `start_revision` on.
    ///
    /// That is the revision of the read before, plus one. If others have written in the meantime it lies in the past,
    /// and etcd would serve the watch from a loop that runs every 100 ms (hazard E15). Such a watch is closed
    /// immediately, and its signal says that it [started late](WatchSignal::started_late). The next one should start
    /// at [`START_NOW`] instead, which costs one more read: it signals "read again" once it is established.
    pub(crate) fn watch(
        &self,
        targets: impl IntoIterator<Item = WatchTarget>,
        start_revision: i64,
    ) -> Subscription {
        let signal = Arc::new(WatchSignal::default());
        let commands = self.commands();
        let mut ids = Vec::with_capacity(2);
        for target in targets {
            let id = self.next_id.fetch_add(1, Relaxed);
            ids.push(id);
            let subscriber = Subscriber::Waiter(Arc::clone(&signal));
            if commands.send(Command::Add { id, target, start_revision, subscriber }).is_err() {
                signal.close();
            }
        }
        self.subscriptions.fetch_add(1, Relaxed);
        Subscription { signal, ids, commands, subscriptions: Arc::clone(&self.subscriptions) }
    }

    /// Watches `target` from when the watch is established, for the owner of many watches. Returns the watch's id.
    pub(crate) fn subscribe(&self, target: WatchTarget, notifier: Notifier) -> i64 {
        let id = self.next_id.fetch_add(1, Relaxed);
        let subscriber = Subscriber::Notifier(notifier);
        // If the stream's task has ended, the notifier is dropped, which reports a closed watch.
        let _ = self.commands().send(Command::Add { id, target, start_revision: START_NOW, subscriber });
        id
    }

    /// Closes a watch that [`subscribe`](Self::subscribe) opened.
    pub(crate) fn unsubscribe(&self, id: i64) {
        if let Some(stream) = &*self.stream() {
            let _ = stream.commands.send(Command::Remove { id });
        }
    }

    /// How long to wait for a signal before reading again without one.
    ///
    /// etcd can lose an event around a compaction (issue 18089). A lost stream is noticed otherwise, so these reads
    /// can be rare, and the interval grows with the number of subscriptions.
    pub(crate) fn reread_interval(&self, min: Duration) -> Duration {
        let count = u32::try_from(self.subscriptions.load(Relaxed)).unwrap_or(u32::MAX);
        let base = min.max(REREAD_INTERVAL_PER_SUBSCRIPTION.saturating_mul(count));
        base.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Ends the stream and its task. Watches opened later start a new one.
    pub(crate) fn close(&self) {
        if let Some(stream) = self.stream().take() {
            stream.task.abort();
        }
    }

    fn commands(&self) -> mpsc::UnboundedSender<Command> {
        let mut stream = self.stream();
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

    fn stream(&self) -> MutexGuard<'_, Option<StreamTask>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Subscription {
    pub(crate) fn signal(&self) -> &WatchSignal {
        &self.signal
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.subscriptions.fetch_sub(1, Relaxed);
        for id in &self.ids {
            let _ = self.commands.send(Command::Remove { id: *id });
        }
    }
}
