//! Hints that an election's record has changed: notifications, on a connection of their own.
//!
//! Whether they are delivered is tried, by one's own notification: a pooler such as PgBouncer in transaction mode accepts `LISTEN` and
//! delivers nothing. Records are polled then.

use std::{
    collections::HashMap,
    mem,
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
    time::{sleep, timeout},
};
use tokio_postgres::AsyncMessage;
use tracing::{debug, info, warn};

use crate::{
    connect::{Server, driven, next_message},
    connection::{Requests, text},
};

/// How often it is tried whether notifications are delivered.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// The pause after a connection that has failed: doubled each time, up to the limit.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How many failures, while requests are served, are reported, once.
const REPORTED_FAILURES: u32 = 3;
/// The pause after a connection on which nothing was delivered.
const UNDELIVERED_PAUSE: Duration = Duration::from_secs(600);

/// A pooler may give the server's connection to other clients, which have not asked for these notifications.
const UNLISTEN: &str = "UNLISTEN *";
const LISTENING: &str = "listening for notifications";

/// The listener, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    subscriptions: Arc<Mutex<Subscriptions>>,
    /// The task that listens, since somebody has asked for hints.
    listener: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Subscriptions {
    delivers: bool,
    keys: HashMap<String, watch::Sender<()>>,
}

impl Hints {
    /// Hints of a key; `None` while none are delivered. The first call begins to listen.
    pub(crate) fn of(&self, key: &str, requests: &Arc<Requests>) -> Option<BoxStream<'static, ()>> {
        let mut listener = lock(&self.listener);
        while listener.try_join_next().is_some() {}
        let mut subscriptions = lock(&self.subscriptions);
        if listener.is_empty() {
            subscriptions.fail();
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
    /// Nothing is delivered from now on. The streams end, so that the records are polled. Returns whether something was delivered.
    fn fail(&mut self) -> bool {
        self.keys.clear();
        mem::take(&mut self.delivers)
    }
}

/// Listens for as long as it is not aborted.
async fn listen(requests: Arc<Requests>, subscriptions: Arc<Mutex<Subscriptions>>) {
    let (mut failures, mut failures_beside_requests, mut was_reported) = (0, 0, false);
    loop {
        let outcome = deliver(&requests, &subscriptions).await;
        let has_delivered = lock(&subscriptions).fail();
        if has_delivered {
            (failures, failures_beside_requests) = (0, 0);
        }
        let pause = match outcome {
            // One notification that is late, or lost, on a connection that has delivered others is no pooler's.
            Undelivered::ByPooler if !has_delivered => {
                if !was_reported {
                    was_reported = true;
                    info!(
                        "PostgreSQL delivers no notifications on this connection, as through PgBouncer in transaction mode; records are polled"
                    );
                }
                UNDELIVERED_PAUSE
            }
            other => {
                let error = match other {
                    Undelivered::Failed(error) => error,
                    Undelivered::ByPooler => unavailable("a notification of its own is late".to_owned()),
                };
                failures += 1;
                // While no request is served either, the requests report the outage.
                let is_beside_requests = requests.is_connected();
                failures_beside_requests += u32::from(is_beside_requests);
                if is_beside_requests && failures_beside_requests == REPORTED_FAILURES {
                    warn!(%error, "cannot listen for notifications, {REPORTED_FAILURES} times; records are polled");
                } else {
                    debug!(%error, "cannot listen for notifications; records are polled");
                }
                FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(MAX_PAUSE)
            }
        };
        // Requests that have just been answered by a server are a reason to try again.
        let _ = timeout(pause.mul_f64(0.5 + fastrand::f64()), requests.reconnected()).await;
    }
}

/// Why nothing is delivered any more.
enum Undelivered {
    /// A notification of its own does not arrive.
    ByPooler,
    Failed(BackendError),
}

/// Passes notifications on for as long as they are delivered.
async fn deliver(requests: &Arc<Requests>, subscriptions: &Mutex<Subscriptions>) -> Undelivered {
    let mut server = match listening(requests).await {
        Ok(server) => server,
        Err(error) => return Undelivered::Failed(error),
    };
    let identity = server.host.identity;
    loop {
        let superseded = async {
            requests.superseded(identity).await;
            Err(unavailable("another server is the primary by now".to_owned()))
        };
        let delivered = async {
            if !probe(requests, &mut server, subscriptions).await? {
                return Ok(false);
            }
            {
                let mut subscriptions = lock(subscriptions);
                subscriptions.delivers = true;
                subscriptions.keys.retain(|_, hints| hints.receiver_count() > 0);
            }
            match timeout(PROBE_INTERVAL, pass_on(&mut server, subscriptions, None)).await {
                Ok(failed) => failed.map(|()| true),
                Err(_) => Ok(true),
            }
        };
        // First whether there was a failover: a probe that requests send to the new primary does not arrive from the former one.
        let outcome = tokio::select! {
            biased;
            superseded = superseded => superseded,
            delivered = delivered => delivered,
        };
        match outcome {
            Ok(true) => {}
            Ok(false) => {
                return match run(requests, &mut server, UNLISTEN).await {
                    Ok(()) => Undelivered::ByPooler,
                    Err(error) => Undelivered::Failed(error),
                };
            }
            Err(error) => return Undelivered::Failed(error),
        }
    }
}

/// Whether notifications are delivered, tried once.
pub(crate) async fn try_delivery(requests: &Arc<Requests>) -> Result<bool, BackendError> {
    let mut server = listening(requests).await?;
    let is_delivered = probe(requests, &mut server, &Mutex::default()).await?;
    run(requests, &mut server, UNLISTEN).await?;
    Ok(is_delivered)
}

/// A connection that listens.
async fn listening(requests: &Requests) -> Result<Server, BackendError> {
    let mut server = requests.connect().await?;
    run(requests, &mut server, &requests.database.statements.listen).await?;
    Ok(server)
}

async fn run(requests: &Requests, server: &mut Server, statement: &str) -> Result<(), BackendError> {
    let limit = requests.database.config.attempt_timeout;
    let answered = driven(&mut server.messages, LISTENING, server.client.batch_execute(statement));
    let late = |_| Err(unavailable(format!("PostgreSQL did not answer within {limit:?}")));
    timeout(limit, answered).await.unwrap_or_else(late)
}

/// Sends a notification, over the connection for requests, and returns whether it has arrived. On the listener's own a pooler would deliver it.
async fn probe(
    requests: &Arc<Requests>,
    server: &mut Server,
    subscriptions: &Mutex<Subscriptions>,
) -> Result<bool, BackendError> {
    let probe = format!("probe/{:032x}", fastrand::u128(..));
    let sent = async {
        let statement = &requests.database.statements.probe;
        requests.query("sending a notification", statement, vec![text(&probe)]).await?;
        sleep(requests.database.config.attempt_timeout).await;
        Ok(false)
    };
    tokio::select! {
        biased;
        received = pass_on(server, subscriptions, Some(&probe)) => received.map(|()| true),
        sent = sent => sent,
    }
}

/// Passes notifications on, until this one has come.
async fn pass_on(
    server: &mut Server,
    subscriptions: &Mutex<Subscriptions>,
    probe: Option<&str>,
) -> Result<(), BackendError> {
    loop {
        let AsyncMessage::Notification(notification) = next_message(&mut server.messages, LISTENING).await?
        else {
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

fn unavailable(why: String) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{LISTENING}: {why}"))
}
