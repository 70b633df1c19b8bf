//! Hints that an election's record has changed: messages on a channel, over the connection for requests.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use redis::{PushInfo, PushKind, Value};
use tenure_core::internal::lock;
use tokio::sync::watch;

/// Who waits for hints.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    is_subscribed: AtomicBool,
    keys: Mutex<HashMap<String, watch::Sender<()>>>,
}

impl Hints {
    /// Hints of a key; `None` while there are none.
    pub(crate) fn of(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        let mut keys = lock(&self.keys);
        if !self.is_subscribed.load(Ordering::Relaxed) {
            return None;
        }
        if keys.len() == keys.capacity() {
            keys.retain(|_, hints| hints.receiver_count() > 0);
        }
        let hints = keys.entry(key.to_owned()).or_default().subscribe();
        let hints = stream::unfold(hints, |mut hints| async {
            hints.changed().await.ok()?;
            Some(((), hints))
        });
        Some(hints.boxed())
    }

    pub(crate) fn begin(&self) {
        self.is_subscribed.store(true, Ordering::Relaxed);
    }

    /// The streams end, so that the records are polled.
    pub(crate) fn end(&self) {
        let mut keys = lock(&self.keys);
        self.is_subscribed.store(false, Ordering::Relaxed);
        keys.clear();
    }

    /// Passes a message of the server on.
    pub(crate) fn pass_on(&self, push: &PushInfo) {
        match (&push.kind, push.data.get(1)) {
            (PushKind::Message, Some(Value::BulkString(key))) => {
                let keys = lock(&self.keys);
                if let Some(hints) = std::str::from_utf8(key).ok().and_then(|key| keys.get(key)) {
                    hints.send_replace(());
                }
            }
            (PushKind::Disconnection, _) => self.end(),
            _ => {}
        }
    }
}
