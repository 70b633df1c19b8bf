//! One-shot watches. A watch belongs to one connection and reports one event.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zookeeper_client::{OneshotWatcher, WatchedEvent};

use super::lock;

/// How many dropped watches are collected before they are removed at the server without waiting for a heartbeat.
const MAX_DROPPED_WATCHES: usize = 256;
/// The least recheck interval for each waiter of a connection, so that all together recheck five times a second at most.
const RECHECK_SPACING: Duration = Duration::from_millis(200);

/// The event of a watch, once it has fired.
type Event = BoxFuture<'static, WatchedEvent>;

/// What the watches of one connection share.
pub(crate) struct WatchSet {
    /// Watches that were dropped before they fired, and are not removed at the server yet.
    dropped: Mutex<Vec<Event>>,
    /// How many waiters read again periodically, because a watch may never fire.
    recheckers: AtomicU32,
    /// Cancelled when the client's task has ended.
    client_ended: CancellationToken,
    /// Cancelled when the connection must not be used any more.
    lost: CancellationToken,
}

impl WatchSet {
    pub(crate) fn new(client_ended: CancellationToken, lost: CancellationToken) -> Self {
        Self { dropped: Mutex::default(), recheckers: AtomicU32::new(0), client_ended, lost }
    }

    pub(crate) fn watch(&self, watcher: OneshotWatcher) -> Watch<'_> {
        Watch { event: Some(watcher.changed().boxed()), set: self }
    }

    /// Removes the dropped watches at the server.
    pub(crate) fn remove_dropped(&self) {
        let dropped = std::mem::take(&mut *lock(&self.dropped));
        remove(dropped);
    }
}

/// A watch on one connection.
///
/// A dropped watch is removed at the server with the next heartbeat. The library would send that request at once, and
/// the next request, often the deletion of an entry, would wait behind it.
pub(crate) struct Watch<'a> {
    event: Option<Event>,
    set: &'a WatchSet,
}

impl Watch<'_> {
    /// Waits until the watch has fired or the connection is lost; the caller reads again in both cases. Returns the
    /// event if the server sent one.
    ///
    /// The events of one connection arrive in the order in which its server applied the changes.
    pub(crate) async fn fired(mut self) -> Option<WatchedEvent> {
        let fired = AssertUnwindSafe(self.event.as_mut()?).catch_unwind();
        // The end of the client's task is checked first: its watches panic from then on.
        let event = tokio::select! {
            biased;
            () = self.set.lost.cancelled() => return None,
            () = self.set.client_ended.cancelled() => return None,
            event = fired => event,
        };
        self.event = None;
        event.ok()
    }

    /// Like [`fired`](Self::fired), but also returns after about `interval`, or later if many wait.
    ///
    /// A server sends no event for a znode that the user may not read *at the time of the change* (ZOOKEEPER-4799): a
    /// watch that was set while the user had permission may never fire.
    pub(crate) async fn fired_or_recheck_due(self, interval: Duration) {
        let rechecker = Rechecker::register(&self.set.recheckers);
        let interval = rechecker.interval(interval);
        let _ = timeout(interval, self.fired()).await;
    }
}

/// Counts one waiter that reads again periodically, for as long as this lives.
struct Rechecker<'a>(&'a AtomicU32);

impl<'a> Rechecker<'a> {
    fn register(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }

    /// A jittered interval with which all waiters together read about five times a second at most.
    fn interval(&self, least: Duration) -> Duration {
        let base = least.max(RECHECK_SPACING.saturating_mul(self.0.load(Relaxed)));
        base.mul_f64(0.75 + fastrand::f64() / 2.0)
    }
}

impl Drop for Rechecker<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(event) = self.event.take() else { return };
        // The client that would remove it is gone, and the library would panic.
        if self.set.client_ended.is_cancelled() {
            return;
        }
        let mut dropped = lock(&self.set.dropped);
        dropped.push(event);
        if dropped.len() > MAX_DROPPED_WATCHES {
            let all = std::mem::take(&mut *dropped);
            drop(dropped);
            remove(all);
        }
    }
}

/// Has the library remove watches that have not fired.
fn remove(watches: Vec<Event>) {
    for watch in watches {
        // Polled once: the server has already forgotten a watch that has fired.
        let _ = AssertUnwindSafe(watch).catch_unwind().now_or_never();
    }
}
