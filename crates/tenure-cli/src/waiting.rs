//! What commands say, and when they give up, while the store does not answer.

use std::{convert::Infallible, fmt, future::Future, time::Duration};

use anyhow::Result;
use tenure::{Connection, Elector};
use tokio::time::{Instant, interval, sleep};

use crate::{messages, store::Store};

/// How long commands wait for an answer by default. [`Limit::NONE`] waits for ever.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command waits before it says so.
const SILENCE: Duration = Duration::from_secs(1);
/// How often it says that again.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// How often the state of the connection is read.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often it is read during all of `tenure run`.
const ADVICE_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// What to do about a store that does not answer.
pub(crate) const ADVICE: &str = "`tenure doctor` examines the store";

/// How long to wait for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(Option<Duration>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => humantime::format_duration(time).fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl Limit {
    /// Waits for ever.
    pub(crate) const NONE: Self = Self(None);
    /// For answers of the store.
    pub(crate) const DEFAULT: Self = Self(Some(DEFAULT_TIMEOUT));

    pub(crate) const fn of(time: Duration) -> Self {
        Self(Some(time))
    }

    pub(crate) fn is_zero(self) -> bool {
        self.0.is_some_and(|time| time.is_zero())
    }

    /// Returns after this time.
    pub(crate) async fn elapsed(self) {
        match self.0 {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
    }
}

/// The store did not answer in time.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    what: String,
    store: String,
    limit: Limit,
    error: Option<String>,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no answer from {}", self.what, self.store)?;
        if self.limit != Limit::NONE {
            write!(f, " within {}", self.limit)?;
        }
        if let Some(error) = &self.error {
            write!(f, ": {error}")?;
        }
        write!(f, "; {ADVICE}")
    }
}

impl std::error::Error for NoAnswer {}

/// Waits for an answer of the store. Says after a second that there is none, and fails at `limit`.
pub(crate) async fn answer<T, E>(
    elector: &dyn Elector,
    store: &Store,
    what: &str,
    limit: Limit,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T>
where
    anyhow::Error: From<E>,
{
    let advice = format!("; {ADVICE}");
    tokio::select! {
        biased;
        answer = request => Ok(answer?),
        () = limit.elapsed() => {
            let (what, store) = (what.to_owned(), store.name.clone());
            Err(NoAnswer { what, store, limit, error: last_error(elector) }.into())
        }
        never = report_silence(elector, store, what, limit, &advice) => match never {},
    }
}

/// Says after a second, and every few seconds from then on, that there is no answer.
pub(crate) async fn report_silence(
    elector: &dyn Elector,
    store: &Store,
    what: &str,
    limit: Limit,
    advice: &str,
) -> Infallible {
    let began = Instant::now();
    sleep(SILENCE).await;
    let mut ticks = interval(REPEAT_AFTER);
    loop {
        ticks.tick().await;
        let error = last_error(elector).map(|error| format!(": {error}")).unwrap_or_default();
        let left = limit.0.map(|time| {
            let left = Duration::from_secs(time.saturating_sub(began.elapsed()).as_secs_f64().ceil() as u64);
            format!("; trying for {} more", humantime::format_duration(left))
        });
        let left = left.unwrap_or_default();
        messages::print(&format!("{what}: no answer yet from {}{error}{left}{advice}", store.name));
    }
}

/// Says, in each outage that lasts longer than a second, which store it is and what to do. The log has the errors.
pub(crate) async fn advise_in_outages(elector: &dyn Elector, store: &Store) -> Infallible {
    let mut since: Option<Instant> = None;
    let mut is_said = false;
    let mut ticks = interval(ADVICE_POLL_INTERVAL);
    loop {
        ticks.tick().await;
        let error = match elector.status().connection {
            // Until the first request is answered or fails.
            Connection::Idle => None,
            Connection::Retrying => last_error(elector),
            _ => {
                (since, is_said) = (None, false);
                continue;
            }
        };
        if !is_said && since.get_or_insert_with(Instant::now).elapsed() >= SILENCE {
            is_said = messages::try_print(&outage(&store.name, error.as_deref()));
        }
    }
}

/// What etcd answers to a request that needs space, under the NOSPACE alarm. Such a request is repeated, as without an answer.
const NO_SPACE: &str = "database space exceeded";

/// Says that `store` does not answer, or that it refuses, with the error of the last request; and what to do.
pub(crate) fn outage(store: &str, error: Option<&str>) -> String {
    let refuses = error.is_some_and(|error| error.contains(NO_SPACE));
    let what = if refuses { "refuses requests" } else { "does not answer" };
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    format!("{store} {what}{error}; {ADVICE}")
}

/// Waits until a request to the store has failed. Returns the error, or `None` at `limit`.
pub(crate) async fn failure(elector: &dyn Elector, limit: Limit) -> Option<String> {
    let failed = async {
        let mut ticks = interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            if elector.status().connection == Connection::Retrying {
                return last_error(elector);
            }
        }
    };
    tokio::select! {
        biased;
        error = failed => error,
        () = limit.elapsed() => last_error(elector),
    }
}

/// The last error, if the store does not answer.
pub(crate) fn last_error(elector: &dyn Elector) -> Option<String> {
    let status = elector.status();
    status.last_error.filter(|_| status.connection == Connection::Retrying)
}
