//! Watches: each for one event, on one connection.

use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::timeout;
use zookeeper_client::WatchedEvent;

use super::{Connection, lock};

/// What a watch has seen, once it has.
pub(crate) type Event = BoxFuture<'static, WatchedEvent>;

/// A watch on one connection.
///
/// Dropped, it is taken back with the next heartbeat: the library would ask the server for that at
/// once, and what is asked for next, a departure often, would wait behind it.
pub(crate) struct Watch<'a> {
    pub(super) event: Option<Event>,
    pub(super) connection: &'a Connection,
}

impl Watch<'_> {
    /// The bare event, for whoever looks after its connection: not to be polled when that has [ended](Connection::has_ended).
    pub(crate) fn into_event(mut self) -> Option<Event> {
        self.event.take()
    }

    /// Returns when something has happened, if only to the connection: look again. What it was, when the server has
    /// told.
    ///
    /// The events of one connection come in the order in which its server carried out what they tell of.
    pub(crate) async fn fired(mut self) -> Option<WatchedEvent> {
        let fired = AssertUnwindSafe(self.event.as_mut()?).catch_unwind();
        // First whether the client's task has ended: its watches panic then.
        let event = tokio::select! {
            biased;
            () = self.connection.lost() => return None,
            () = self.connection.ended.cancelled() => return None,
            event = fired => event,
        };
        self.event = None;
        event.ok()
    }

    /// The same, or when `least` is over, or more where many wait: look again, whatever for.
    ///
    /// A server keeps to itself what happens to a znode that we may not read *when it happens* (ZOOKEEPER-4799): a watch that
    /// was set while we might is never heard of again.
    pub(crate) async fn fired_or_due(self, least: Duration) {
        let waiting = Waiting::begin(&self.connection.waiting);
        let patience = waiting.patience(least);
        let _ = timeout(patience, self.fired()).await;
    }
}

/// One more that looks again now and then, for as long as this lives.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }

    /// At most some five look each second, however many wait.
    fn patience(&self, least: Duration) -> Duration {
        let base = least.max(Duration::from_millis(200).saturating_mul(self.0.load(Relaxed)));
        base.mul_f64(0.75 + fastrand::f64() / 2.0)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(event) = self.event.take() else { return };
        // Nobody is left to be asked, and the library would panic.
        if self.connection.ended.is_cancelled() {
            return;
        }
        let mut over = lock(&self.connection.over);
        over.push(event);
        if over.len() > MANY {
            let all = std::mem::take(&mut *over);
            drop(over);
            take_back(all);
        }
    }
}

/// So many watches that are over are taken back at once.
const MANY: usize = 256;

/// Has the library take watches back that have not fired.
pub(super) fn take_back(watches: Vec<BoxFuture<'static, WatchedEvent>>) {
    for watch in watches {
        // Looked at first: of one that has fired the server knows nothing any more.
        let _ = AssertUnwindSafe(watch).catch_unwind().now_or_never();
    }
}
