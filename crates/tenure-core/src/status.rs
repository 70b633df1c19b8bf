//! The state of the connection between an elector and its store.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing::{info, warn};

use crate::{BootInstant, Clock, spi::BackendError};

/// The minimum time between two warnings of one elector that requests to the store fail.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);

/// The state of the connection between an elector and its store, for a health endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Whether the store answers.
    pub connection: Connection,
    /// The identifier of the current session, as the store's own tools show it.
    pub session: Option<String>,
    /// The text of the last failure. It stays after the store answers again.
    pub last_error: Option<String>,
}

/// Whether the store answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connection {
    /// No request was sent yet.
    #[default]
    Idle,
    /// The last request was answered.
    Connected,
    /// The last request was not answered; it is retried.
    Retrying,
    /// The store refuses the elector permanently: its configuration must be changed.
    Refused,
}

/// The status, and the log of outages: a warning at the first failure, a summary now and then, and the recovery.
#[derive(Debug)]
pub(crate) struct StatusCell {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    /// Its name in the log.
    store: String,
}

#[derive(Debug, Default)]
struct State {
    status: Status,
    outage: Option<Outage>,
    warning: Option<Warning>,
}

/// The last warning.
#[derive(Clone, Copy, Debug)]
struct Warning {
    at: BootInstant,
    /// Whether it said when a leadership ends.
    has_deadline: bool,
}

/// Requests that failed, without a pause of [`WARNING_INTERVAL`] between one failure and the next answer and failure.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: BootInstant,
    last_failure: BootInstant,
    failed: u64,
    /// Whether it was warned about since the last answer that was logged.
    is_logged: bool,
    /// Whether the store has answered since the last failure.
    is_answered: bool,
    /// Whether requests have failed again after an answer.
    alternates: bool,
}

impl StatusCell {
    pub(crate) fn new(clock: Arc<dyn Clock>, store: String) -> Self {
        Self { state: Mutex::default(), clock, store }
    }

    pub(crate) fn get(&self) -> Status {
        self.lock().status.clone()
    }

    /// Whether the last request was not answered.
    pub(crate) fn is_retrying(&self) -> bool {
        self.lock().status.connection == Connection::Retrying
    }

    /// A request was answered. The first answer ends an outage; while answers and failures alternate, the first one that comes some
    /// seconds after the last failure.
    pub(crate) fn answered(&self) {
        {
            let mut state = self.lock();
            state.status.connection = Connection::Connected;
            if state.outage.is_none() {
                return;
            }
        }
        // Not under the lock: the clock may be the application's.
        let now = self.clock.now();
        let ended = {
            let mut state = self.lock();
            let Some(outage) = &mut state.outage else { return };
            let is_quiet = now >= outage.last_failure + WARNING_INTERVAL;
            let ends = is_quiet || !outage.alternates;
            let is_logged = ends && std::mem::take(&mut outage.is_logged);
            outage.is_answered = true;
            let Outage { since, last_failure, failed, alternates, .. } = *outage;
            if is_quiet {
                state.outage = None;
            }
            is_logged.then_some((if alternates { last_failure } else { now }.since(since), failed))
        };
        if let Some((lasted, failed)) = ended {
            info!(store = self.store, lasted = %rounded(lasted), failed, "the store answers again");
        }
    }

    /// A request has failed. A permanent error is logged by the caller.
    pub(crate) fn failed(&self, error: &BackendError) {
        self.record(error);
        if !error.is_permanent() {
            self.warn(error, None);
        }
    }

    /// A heartbeat has failed, of which nobody else gets the error. `left` is the time until the deadline of a leadership.
    pub(crate) fn heartbeat_failed(&self, error: &BackendError, left: Option<Duration>) {
        self.record(error);
        self.warn(error, left);
    }

    fn record(&self, error: &BackendError) {
        crate::telemetry::request_failed();
        let mut state = self.lock();
        let is_permanent = error.is_permanent();
        state.status.connection = if is_permanent { Connection::Refused } else { Connection::Retrying };
        state.status.last_error = Some(error.to_string());
    }

    /// Warns of the first failure of an outage, and again after a while.
    fn warn(&self, error: &BackendError, left: Option<Duration>) {
        let now = self.clock.now();
        let Outage { since, failed, .. } = {
            let mut state = self.lock();
            let is_over =
                |outage: &Outage| outage.is_answered && now >= outage.last_failure + WARNING_INTERVAL;
            let new = Outage {
                since: now,
                last_failure: now,
                failed: 0,
                is_logged: false,
                is_answered: false,
                alternates: false,
            };
            let mut outage = state.outage.filter(|outage| !is_over(outage)).unwrap_or(new);
            outage.alternates |= std::mem::take(&mut outage.is_answered);
            outage.failed += 1;
            outage.last_failure = now;
            // That a leadership may be lost is said at once, even if other requests have failed before.
            let was_warned = state.warning.is_some_and(|Warning { at, has_deadline }| {
                now < at + WARNING_INTERVAL && (has_deadline || left.is_none())
            });
            outage.is_logged |= !was_warned;
            state.outage = Some(outage);
            if was_warned {
                return;
            }
            state.warning = Some(Warning { at: now, has_deadline: left.is_some() });
            outage
        };
        let store = self.store.as_str();
        let left = left.map(|left| tracing::field::display(rounded(left)));
        let lasted = rounded(now.since(since));
        match (error.is_permanent(), failed) {
            (true, 1) => warn!(store, %error, left, "the store refuses a heartbeat; trying again"),
            (true, _) => warn!(store, %error, failed, %lasted, left, "the store still refuses requests"),
            (false, 1) => warn!(store, %error, left, "a request to the store failed; trying again"),
            (false, _) => warn!(store, %error, failed, %lasted, left, "requests to the store still fail"),
        }
    }

    pub(crate) fn session_opened(&self, id: String) {
        self.lock().status.session = Some(id);
    }

    /// Does nothing if another session was opened meanwhile.
    pub(crate) fn session_closed(&self, id: &str) {
        let mut state = self.lock();
        if state.status.session.as_deref() == Some(id) {
            state.status.session = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A duration for the log, with two significant digits.
fn rounded(duration: Duration) -> humantime::FormattedDuration {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let unit = 10_u64.pow(millis.max(1).ilog10().saturating_sub(1));
    humantime::format_duration(Duration::from_millis(millis / unit * unit))
}
