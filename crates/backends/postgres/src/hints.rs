//! Hints that an election's record has changed: notifications, on a connection of their own.
//!
//! Whether they are delivered is tried, by one's own notification: a pooler such as PgBouncer in transaction mode accepts `LISTEN` and
//! delivers nothing. Records are polled then.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, types::Type};
use tracing::{debug, info};

use crate::{
    connect::{Messages, Server, driven, next_message},
    connection::{Parameter, Requests},
};

/// How often it is tried whether notifications are delivered.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// The pause after a connection that has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause after a connection on which nothing was delivered.
const UNDELIVERED_PAUSE: Duration = Duration::from_secs(120);

const LISTENING: &str = "listening for notifications";
const NOTIFYING: &str = "sending notifications";

/// The listener, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    subscriptions: Arc<Mutex<Subscriptions>>,
    /// The task that listens, while somebody asks for hints.
    listener: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Subscriptions {
    delivers: bool,
    /// When somebody has asked for hints last.
    asked: Option<Instant>,
    keys: HashMap<String, watch::Sender<()>>,
}

impl Hints {
    /// Hints of a key; `None` while none are delivered. The first call begins to listen.
    pub(crate) fn of(&self, key: &str, requests: &Arc<Requests>) -> Option<BoxStream<'static, ()>> {
        let mut subscriptions = lock(&self.subscriptions);
        subscriptions.asked = Some(Instant::now());
        let mut listener = lock(&self.listener);
        while listener.try_join_next().is_some() {}
        if listener.is_empty() {
            listener.spawn(listen(Arc::clone(requests), Arc::clone(&self.subscriptions)));
        }
        if !subscriptions.delivers {
            return None;
        }
        let hints = subscriptions.keys.entry(key.to_owned()).or_default().subscribe();
        let hints = stream::unfold(hints, |mut hints| async {
            hints.changed().await.ok()?;
            Some(((), hints))
        });
        Some(hints.boxed())
    }

    pub(crate) fn close(&self) {
        lock(&self.listener).abort_all();
        lock(&self.subscriptions).fail();
    }
}

impl Subscriptions {
    /// Nothing is delivered from now on. The streams end, so that the records are polled.
    fn fail(&mut self) {
        self.delivers = false;
        self.keys.clear();
    }

    fn is_in_use(&mut self) -> bool {
        self.keys.retain(|_, hints| hints.receiver_count() > 0);
        !self.keys.is_empty() || self.asked.is_some_and(|asked| asked.elapsed() < PROBE_INTERVAL)
    }
}

impl fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriptions")
            .field("delivers", &self.delivers)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

async fn answered<T>(
    limit: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let late = |_| {
        let text = format!("{what}: PostgreSQL did not answer within {limit:?}");
        BackendError::new(BackendErrorKind::Unavailable, text)
    };
    timeout(limit, answer).await.map_err(late)?
}

/// Listens as long as somebody waits for hints.
async fn listen(requests: Arc<Requests>, subscriptions: Arc<Mutex<Subscriptions>>) {
    let mut was_reported = false;
    while lock(&subscriptions).is_in_use() {
        let outcome = deliver(&requests, &subscriptions).await;
        lock(&subscriptions).fail();
        let pause = match outcome {
            Ok(()) => UNDELIVERED_PAUSE,
            Err(_) => PAUSE,
        };
        match outcome {
            Ok(()) if !mem::replace(&mut was_reported, true) => info!(
                "PostgreSQL delivers no notifications on this connection, as through PgBouncer in transaction mode; records are polled"
            ),
            Ok(()) => {}
            Err(error) => debug!(%error, "cannot listen for notifications; records are polled"),
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Passes notifications on, until one of its own does not arrive, or nobody waits for them.
async fn deliver(requests: &Requests, subscriptions: &Mutex<Subscriptions>) -> Result<(), BackendError> {
    let Server { client, mut messages, .. } = requests.connect().await?;
    let listening = driven(&mut messages, LISTENING, client.batch_execute(&requests.statements.listen));
    answered(requests.config.attempt_timeout, LISTENING, listening).await?;
    while lock(subscriptions).is_in_use() {
        if !probe(requests, &mut messages, subscriptions).await? {
            return Ok(());
        }
        lock(subscriptions).delivers = true;
        if let Ok(failed) = timeout(PROBE_INTERVAL, pass_on(&mut messages, subscriptions, None)).await {
            return failed;
        }
    }
    Ok(())
}

/// Whether notifications are delivered, tried once.
pub(crate) async fn try_delivery(requests: &Requests) -> Result<bool, BackendError> {
    let Server { client, mut messages, .. } = requests.connect().await?;
    let listening = driven(&mut messages, LISTENING, client.batch_execute(&requests.statements.listen));
    answered(requests.config.attempt_timeout, LISTENING, listening).await?;
    probe(requests, &mut messages, &Mutex::default()).await
}

/// Sends a notification, over the other connection: a pooler passes on what comes during a request on this one. Whether it has arrived.
async fn probe(
    requests: &Requests,
    messages: &mut Messages,
    subscriptions: &Mutex<Subscriptions>,
) -> Result<bool, BackendError> {
    let probe = format!("probe/{:032x}", fastrand::u128(..));
    let sent = async {
        let parameters: [Parameter<'_>; 1] = [(&probe, Type::TEXT)];
        let notified = requests.query(NOTIFYING, &requests.statements.notify, &parameters);
        // One that is not answered is no reason for all others to use another connection, and ends earlier.
        answered(requests.config.attempt_timeout / 2, NOTIFYING, notified).await?;
        sleep(requests.config.attempt_timeout).await;
        Ok(false)
    };
    tokio::select! {
        biased;
        received = pass_on(messages, subscriptions, Some(&probe)) => received.map(|()| true),
        sent = sent => sent,
    }
}

/// Passes notifications on, until this one has come.
async fn pass_on(
    messages: &mut Messages,
    subscriptions: &Mutex<Subscriptions>,
    probe: Option<&str>,
) -> Result<(), BackendError> {
    loop {
        let AsyncMessage::Notification(notification) = next_message(messages, LISTENING).await? else {
            continue;
        };
        if Some(notification.payload()) == probe {
            return Ok(());
        }
        if let Some(hints) = lock(subscriptions).keys.get(notification.payload()) {
            hints.send_replace(());
        }
    }
}
