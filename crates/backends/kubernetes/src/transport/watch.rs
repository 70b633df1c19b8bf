//! The watch on one Lease.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use http_body_util::BodyExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;
use tenure_core::spi::BackendErrorKind;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    client::{Client, WatchRefused},
    refusal::Status,
};
use crate::record::Record;

/// The pauses before a watch that has ended is started again.
const MIN_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// The longest pause of a watch that is forbidden; the shortest is half of it. The Role may be changed meanwhile.
const FORBIDDEN_DELAY: Duration = Duration::from_secs(300);
/// For how long a watch has to stay open until it counts as working.
const WORKS_AFTER: Duration = Duration::from_secs(5);
/// After how many failures in a row a watch counts as failing.
const MAX_FAILURES: u32 = 5;
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
    /// The watch has begun to [fail](Watch::failure). It is started again now and then.
    Failing,
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
    /// How often it has failed in a row, and why it did last.
    failures: u32,
    failure: String,
    is_forbidden: bool,
    /// Whether it was reported that it fails.
    is_reported: bool,
}

struct Open {
    since: Instant,
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
        Self {
            client: Arc::clone(client),
            name: name.to_owned(),
            from,
            open: None,
            delay: MIN_DELAY,
            open_at: None,
            failures: 0,
            failure: String::new(),
            is_forbidden: false,
            is_reported: false,
        }
    }

    /// Starts again with the present state: what it reports is older than what was read.
    pub(crate) fn restart(&mut self) {
        (self.open, self.from) = (None, None);
    }

    /// Why the watch does not work, if it has failed again and again, or is forbidden: poll the Lease meanwhile.
    pub(crate) fn failure(&self) -> Option<&str> {
        let works = self.open.as_ref().is_some_and(|open| open.since.elapsed() >= WORKS_AFTER);
        (self.failures >= MAX_FAILURES && !works).then_some(&*self.failure)
    }

    /// Whether the watch is forbidden: it fails, and other requests do not.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.is_forbidden
    }

    /// The next event. Waits while too many watches are open, and while the watch fails.
    ///
    /// # Cancellation safety
    /// No event is lost.
    pub(crate) async fn next(&mut self) -> WatchEvent {
        loop {
            if !self.is_reported && self.failure().is_some() {
                self.is_reported = true;
                return WatchEvent::Failing;
            }
            let Some(open) = &mut self.open else {
                match self.start().await {
                    Some(lost) => return lost,
                    None => continue,
                }
            };
            if let Some(end) = open.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = open.buffer.drain(..=end).collect();
                match self.read(&line) {
                    Some(event) => return event,
                    None => continue,
                }
            }
            match open.body.frame().await {
                Some(Ok(frame)) if open.buffer.len() < MAX_LINE => {
                    open.buffer.extend(frame.into_data().unwrap_or_default());
                }
                Some(Ok(_)) => self.fail("it has sent a line that is too long"),
                Some(Err(error)) => self.fail(format!("the connection broke: {error}")),
                None => self.fail("the server has closed it"),
            }
        }
    }

    /// Starts the watch, after a pause if it has just ended.
    async fn start(&mut self) -> Option<WatchEvent> {
        if let Some(open_at) = self.open_at {
            sleep_until(open_at).await;
        }
        let Some(permit) = self.client.watch_permit() else {
            self.pause();
            return None;
        };
        match self.client.watch(&self.name, self.from.as_deref()).await {
            Ok(body) => {
                self.is_forbidden = false;
                self.open = Some(Open { since: Instant::now(), body, buffer: Vec::new(), _permit: permit });
                None
            }
            Err(WatchRefused { code, wait, error }) => {
                self.fail(error.to_string());
                self.is_forbidden = error.kind() == BackendErrorKind::Forbidden;
                if self.is_forbidden {
                    self.failures = MAX_FAILURES;
                }
                let wait = if self.is_forbidden { Some(jittered(FORBIDDEN_DELAY)) } else { wait };
                if let Some(wait) = wait {
                    self.open_at = self.open_at.max(Some(Instant::now() + wait));
                    return None;
                }
                // The version is too old (410), or too new for a server that lags or was restored.
                let is_lost = code.is_some_and(|code| self.from.take().is_some() || code == StatusCode::GONE);
                is_lost.then_some(WatchEvent::Lost)
            }
        }
    }

    fn read(&mut self, line: &[u8]) -> Option<WatchEvent> {
        let Ok(Line { r#type, object }) = serde_json::from_slice(line) else {
            self.fail("it has sent a line that is not understood");
            return None;
        };
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
                self.fail(format!("the server has ended it with the code {code}"));
                self.from = None;
                Some(WatchEvent::Lost)
            }
        }
    }

    /// Ends the watch, which has failed, or has ended after a while as each does.
    fn fail(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        debug!(lease = self.name, reason, "starting the watch again");
        let has_worked = self.open.take().is_some_and(|open| open.since.elapsed() >= WORKS_AFTER);
        if has_worked {
            // An event alone is no reason: a watch may begin with the present state, and end.
            (self.delay, self.failures, self.is_reported) = (MIN_DELAY, 0, false);
        }
        self.failures = self.failures.saturating_add(1);
        self.failure = reason;
        self.pause();
    }

    /// Pauses before the next watch: longer each time, with jitter, until one has worked.
    fn pause(&mut self) {
        self.open_at = Some(Instant::now() + jittered(self.delay));
        self.delay = (self.delay * 2).min(MAX_DELAY);
    }
}

/// From half of `delay` to all of it.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).field("from", &self.from).finish_non_exhaustive()
    }
}
