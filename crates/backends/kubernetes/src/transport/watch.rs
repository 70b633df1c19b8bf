//! The watch on one Lease.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use http_body_util::BodyExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{client::Client, refusal::Status};
use crate::record::Record;

/// The pauses before a watch that has ended is started again.
const MIN_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// The longest line of a watch: an object has 1.5 MiB at most.
const MAX_LINE: usize = 4 << 20;

/// What a watch reports.
#[derive(Debug)]
pub(crate) enum WatchEvent {
    /// The Lease was created or changed.
    Present(Box<Record>),
    /// The Lease was deleted: its last state, with the version in which that was done.
    Deleted(Box<Record>),
    /// Events may have been missed: read the Lease.
    Lost,
}

/// A watch on a Lease. Starts again where it ended, and says so if events may have been missed.
///
/// It is a hint: a cache may serve it, late, or not at all.
pub(crate) struct Watch {
    client: Arc<Client>,
    name: String,
    /// The version after which it goes on; without one it begins with the present state.
    from: Option<String>,
    open: Option<Open>,
    delay: Duration,
    open_at: Option<Instant>,
}

struct Open {
    body: Body,
    buffer: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    object: Value,
}

impl Watch {
    /// A watch that reports what comes after the version `from`.
    pub(crate) fn new(client: &Arc<Client>, name: &str, from: Option<u64>) -> Self {
        let from = from.map(|version| version.to_string());
        let (client, name) = (Arc::clone(client), name.to_owned());
        Self { client, name, from, open: None, delay: MIN_DELAY, open_at: None }
    }

    /// Starts again with the present state: what it reports is older than what was read.
    pub(crate) fn restart(&mut self) {
        (self.open, self.from) = (None, None);
    }

    /// The next event. Waits while too many watches are open.
    ///
    /// # Errors
    /// Only permanent ones: the watch is forbidden.
    ///
    /// # Cancellation safety
    /// No event is lost.
    pub(crate) async fn next(&mut self) -> Result<WatchEvent, BackendError> {
        loop {
            let Some(open) = &mut self.open else {
                match self.start().await? {
                    Some(lost) => return Ok(lost),
                    None => continue,
                }
            };
            if let Some(end) = open.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = open.buffer.drain(..=end).collect();
                match self.read(&line) {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            match open.body.frame().await {
                Some(Ok(frame)) if open.buffer.len() < MAX_LINE => {
                    open.buffer.extend(frame.into_data().unwrap_or_default());
                }
                _ => self.pause(),
            }
        }
    }

    /// Starts the watch, after a pause if it has just ended.
    async fn start(&mut self) -> Result<Option<WatchEvent>, BackendError> {
        if let Some(open_at) = self.open_at {
            sleep_until(open_at).await;
        }
        let Some(permit) = self.client.watch_permit() else {
            self.pause();
            return Ok(None);
        };
        match self.client.watch(&self.name, self.from.as_deref()).await {
            Ok(Ok(body)) => {
                self.open = Some(Open { body, buffer: Vec::new(), _permit: permit });
                Ok(None)
            }
            Ok(Err((_, error))) if error.kind() == BackendErrorKind::Forbidden => Err(error),
            // The version is too old (410), or too new for a server that lags or was restored.
            Ok(Err((code, error))) => {
                debug!(lease = self.name, %error, "starting the watch again");
                self.pause();
                Ok((self.from.take().is_some() || code == StatusCode::GONE).then_some(WatchEvent::Lost))
            }
            Err(error) => {
                debug!(lease = self.name, %error, "starting the watch again");
                self.pause();
                Ok(None)
            }
        }
    }

    fn read(&mut self, line: &[u8]) -> Option<WatchEvent> {
        let Ok(Line { r#type, object }) = serde_json::from_slice(line) else {
            self.pause();
            return None;
        };
        if r#type != "ERROR" {
            self.delay = MIN_DELAY;
        }
        let version = object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        match r#type.as_str() {
            "BOOKMARK" => {
                self.from = version;
                None
            }
            "ADDED" | "MODIFIED" | "DELETED" => {
                let lease: Lease = serde_json::from_value(object).ok()?;
                let record = Record::new(lease).ok()?;
                self.from = version;
                Some(match r#type.as_str() {
                    "DELETED" => WatchEvent::Deleted(Box::new(record)),
                    _ => WatchEvent::Present(Box::new(record)),
                })
            }
            _ => {
                let code = Status::parse(object.to_string().as_bytes()).code;
                debug!(lease = self.name, code, "the watch has ended");
                self.pause();
                self.from = None;
                Some(WatchEvent::Lost)
            }
        }
    }

    /// Ends the watch, and pauses before the next one: longer each time, with jitter, until there was an event.
    fn pause(&mut self) {
        self.open = None;
        self.open_at = Some(Instant::now() + self.delay.mul_f64(0.5 + fastrand::f64() / 2.0));
        self.delay = (self.delay * 2).min(MAX_DELAY);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).field("from", &self.from).finish_non_exhaustive()
    }
}
